"""Edits of given images: exact where they promise it, and near what Gaussian data have exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusion.helpers import SHAPE, VARIABLES, keys_of, model, sample, with_memory

from aigc_jax import build
from aigc_jax.diffusion import editing
from aigc_jax.diffusion import process as gaussian
from aigc_jax.family import DataSpec, Field
from aigc_jax.sampling.driver import Driver, draw
from aigc_jax.training.sharding import make_mesh
from configs import ddpm_digits

PROCESSES = {
    "discrete": {"name": "discrete", "schedule": "linear", "timesteps": 1000},
    "zero_terminal": {"name": "discrete", "schedule": "cosine", "zero_terminal_snr": True},
    "vp": {"name": "vp"},
    "flow": {"name": "flow"},
    "log_snr": {"name": "log_snr"},
    "edm": {"name": "edm"},
}
SAMPLERS = ("ddim", "ancestral", "heun", "dpmpp_2m", "unipc", "predictor_corrector")
# Four pixels with a covariance like that of neighbours.
ROOT = np.array([[0.5, 0, 0, 0], [0.4, 0.3, 0, 0], [0.3, 0.1, 0.3, 0], [0.2, 0.3, 0.2, 0.2]])
COVARIANCE = ROOT @ ROOT.T
MEAN = np.array([0.3, -0.2, 0.0, 0.1])
# Of a half of them.
MASK = np.array([1.0, 0, 1, 0])


def gaussian_model(process="discrete", steps=40, **changes):
    """The exact denoiser of N(MEAN, COVARIANCE)."""
    settings = PROCESSES[process]
    made = gaussian.build(settings)
    values, vectors = np.linalg.eigh(COVARIANCE)

    def of(x, t, label, train):
        if process == "edm":
            t = jnp.exp(4 * t)
        elif not made.total:
            t = t / 1000
        alpha, sigma = (c[:, None] for c in made.coefficients(t))
        flat = (x.reshape(len(x), 4) - alpha * MEAN[None]) @ vectors
        flat = alpha * values[None] / (alpha**2 * values[None] + sigma**2) * flat
        return (MEAN[None] + flat @ vectors.T).reshape(x.shape)

    sampling = {"sampler": "ddim", "steps": steps, "clip": False} | changes.pop("sampling", {})
    return model(of, process=settings, sampling=sampling, **changes)


def images(n, seed=0):
    flat = MEAN + np.random.default_rng(seed).normal(size=(n, 4)) @ ROOT.T
    return jnp.asarray(flat.reshape(n, *SHAPE), jnp.float32)


def mask_of(n):
    return jnp.broadcast_to(jnp.asarray(MASK, jnp.float32).reshape(1, *SHAPE), (n, *SHAPE))


def run(drawing, n, platform="cpu", **cond):
    return np.asarray(Driver(drawing, platform)(VARIABLES, keys_of(n), cond))


@pytest.mark.parametrize("process", PROCESSES)
def test_a_weak_variation_is_the_image_and_the_strongest_a_plain_sample(process):
    made, x = gaussian_model(process), images(256)
    distance = [
        np.abs(run(editing.vary(made, strength=strength), 256, image=x) - x).mean()
        for strength in (1e-9, 0.3, 0.7)
    ]
    assert distance[0] < 0.1
    assert distance[0] < distance[1] < distance[2] > 0.15
    np.testing.assert_array_equal(
        run(editing.vary(made, strength=1.0), 256, image=x), sample(made, 256)
    )


@pytest.mark.parametrize("sampler", SAMPLERS[:-1])  # a corrector has a spread of its own
def test_variations_are_of_the_data_whatever_the_strength_and_solver(sampler):
    made = gaussian_model(steps=100, sampling={"sampler": sampler})
    for strength in (0.2, 0.5):
        drawing = editing.vary(made, strength=strength)
        assert drawing.steps == pytest.approx(strength * made.solver.calls, abs=1)
        found = run(drawing, 4096, image=images(4096)).reshape(-1, 4)
        np.testing.assert_allclose(found.mean(0), MEAN, atol=0.03)
        np.testing.assert_allclose(np.cov(found.T), COVARIANCE, atol=0.03)


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.01, float("nan")])
def test_a_strength_is_a_share_of_the_steps(strength):
    with pytest.raises(ValueError, match="above 0 and at most 1, not"):
        editing.vary(gaussian_model(), strength=strength)


@pytest.mark.parametrize("process", PROCESSES)
def test_what_is_known_comes_back_and_the_rest_has_its_conditional_mean(process):
    made, n = gaussian_model(process, steps=50), 2048
    x = jnp.broadcast_to(images(1, seed=3), (n, *SHAPE))
    drawing = editing.inpaint(made, resample=8)
    assert drawing.steps == 49 * 8 + 1
    found = run(drawing, n, image=x, mask=mask_of(n)).reshape(n, 4)
    known = MASK == 0
    np.testing.assert_array_equal(found[:, known], np.asarray(x).reshape(n, 4)[:, known])
    given = np.asarray(x[0]).reshape(4)[known] - MEAN[known]
    gain = COVARIANCE[~known][:, known] @ np.linalg.inv(COVARIANCE[known][:, known])
    np.testing.assert_allclose(found[:, ~known].mean(0), MEAN[~known] + gain @ given, atol=0.1)
    left = COVARIANCE[~known][:, ~known] - gain @ COVARIANCE[known][:, ~known]
    np.testing.assert_allclose(np.cov(found[:, ~known].T), left, atol=0.05)


def test_what_is_known_has_the_noise_of_each_level_on_the_way():
    made, n = gaussian_model(steps=10), 4096
    grid, drawing = made.solver.grid, editing.inpaint(made, resample=2)
    cond = {"image": jnp.ones((n, *SHAPE)), "mask": mask_of(n)}
    step = jax.jit(drawing.step)
    carry = drawing.start(VARIABLES, keys_of(n), cond)
    for i in range(drawing.steps - 1):
        carry, _ = step(VARIABLES, carry, cond, jnp.int32(i))
        known = np.asarray(carry["x"][0]).reshape(n, 4)[:, MASK == 0]
        level = (i + 1) // 2  # after the first time of a step x is back where that began
        np.testing.assert_allclose(known.mean(0), grid.alpha[level], atol=0.06)
        np.testing.assert_allclose(known.std(0), grid.sigma[level], atol=0.04)
        assert abs(np.corrcoef(known.T)[0, 1]) < 0.06


def test_resampling_is_what_makes_the_parts_fit():
    made, n = gaussian_model(), 2048
    x = jnp.ones((n, *SHAPE))
    known = MASK == 0
    gain = COVARIANCE[~known][:, known] @ np.linalg.inv(COVARIANCE[known][:, known])
    expected = MEAN[~known] + gain @ (1 - MEAN[known])
    error = []
    for resample in (1, 8):
        drawing = editing.inpaint(made, resample=resample)
        found = run(drawing, n, image=x, mask=mask_of(n)).reshape(n, 4)
        error.append(np.abs(found[:, ~known].mean(0) - expected).max())
    assert error[1] < 0.5 * error[0]


def test_inpainting_asks_a_learned_variance():
    def of(x, t, label, train):
        return jnp.concatenate([0.5 * x, jnp.full_like(x, 0.3)], axis=-1)

    made = model(of, variance="learned", sampling={"sampler": "ancestral", "variance": "learned"})
    x = images(4)
    drawing = editing.inpaint(made, resample=3)
    found = run(drawing, 4, image=x, mask=mask_of(4))
    known = np.asarray(mask_of(4)) == 0
    np.testing.assert_array_equal(found[known], np.asarray(x)[known])
    assert np.isfinite(found).all()
    with pytest.raises(ValueError, match="how often each step is made, 1 or more, not 0"):
        editing.inpaint(made, resample=0)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("clip", [True, False])
def test_what_is_upscaled_has_the_means_of_the_small_image(sampler, clip):
    def of(x, t, label, train):
        return 3 * jnp.tanh(x + 0.3)

    made = model(of, shape=(4, 8, 3), sampling={"sampler": sampler, "clip": clip})
    small = jax.random.uniform(jax.random.key(0), (16, 2, 4, 3), minval=-1, maxval=1)
    small = small.at[0].set(1.0).at[1].set(-1.0)
    drawing = editing.upscale(made, factor=2)
    assert drawing.conditions["image"].shape == (2, 4, 3)
    found = run(drawing, 16, image=small)
    assert found.shape == (16, 4, 8, 3)
    assert np.abs(found).max() <= 1
    means = found.reshape(16, 2, 2, 4, 2, 3).mean((2, 4))
    np.testing.assert_allclose(means, small, atol=1e-5)
    assert found.std((1, 2, 3))[2:].min() > 0.3


def test_estimates_on_the_way_have_the_means_too():
    made, small = gaussian_model(steps=10), jnp.full((4, 1, 1, 1), 0.2)
    walk = Driver(editing.upscale(made, factor=2), "cpu").walk(
        VARIABLES, keys_of(4), {"image": small}
    )  # fmt: skip
    for _, preview in walk:
        np.testing.assert_allclose(preview.mean((1, 2, 3)), 0.2, atol=1e-5)


def test_upscaling_keeps_what_the_model_says_of_the_rest():
    """Of pixels whose mean is given, a Gaussian's differences do not depend on it here."""
    made, n = gaussian_model(steps=100, sampling={"sampler": "ancestral"}), 2048
    found = run(editing.upscale(made, factor=2), n, image=jnp.full((n, 1, 1, 1), 0.2)).reshape(n, 4)
    np.testing.assert_allclose(found.mean(1), 0.2, atol=1e-5)
    ones = np.full(4, 0.25)
    gain = COVARIANCE @ ones / (ones @ COVARIANCE @ ones)
    np.testing.assert_allclose(found.mean(0), MEAN + gain * (0.2 - MEAN.mean()), atol=0.06)


@pytest.mark.parametrize("factor", [1, 0, -2, 3, 8])
def test_a_factor_divides_the_images(factor):
    with pytest.raises(ValueError, match="divide the model's images of 4x8, not"):
        editing.upscale(model(with_memory, shape=(4, 8, 3)), factor=factor)


@pytest.mark.parametrize("process", PROCESSES)
def test_an_inverted_image_comes_back_the_better_the_more_steps(process):
    x, errors = images(64), []
    for steps in (25, 50, 100):
        made = gaussian_model(process, steps)
        invert, back = editing.invert(made), editing.reconstruct(made)
        assert invert.steps == back.steps == steps
        latent = run(invert, 64, image=x)
        errors.append(np.abs(run(back, 64, latent=latent) - x).mean())
    assert errors[2] < 0.03
    assert errors[1] < 0.65 * errors[0]
    assert errors[2] < 0.65 * errors[1]
    # Data of N(MEAN, COVARIANCE) come of standard normal noise.
    flat = latent.reshape(64, 4) / made.solver.std
    whitened = (np.asarray(x).reshape(64, 4) - MEAN) @ np.linalg.inv(_square_root()).T
    np.testing.assert_allclose(flat, whitened, atol=0.6)
    assert np.corrcoef(flat.ravel(), whitened.ravel())[0, 1] > 0.99


def test_the_first_step_up_is_undone_by_the_last_step_down():
    """An error of fourth order in the noise of the lowest level, of second order without it."""
    made, x = gaussian_model("flow", steps=10), images(64)
    lowest = jax.tree.map(lambda a: jnp.float32(a[-2]), made.solver.grid)
    invert = editing.invert(made)
    cond = {"image": x}
    start = invert.start(VARIABLES, keys_of(64), cond)
    carry, _ = invert.step(VARIABLES, start, cond, jnp.int32(0))
    errors = [
        np.abs(made.denoise(VARIABLES, {}, c["x"][0], lowest).x0 - x).mean() for c in (carry, start)
    ]
    assert errors[0] < 0.4 * errors[1]


def _square_root():
    values, vectors = np.linalg.eigh(COVARIANCE)
    return vectors * np.sqrt(values) @ vectors.T


def test_interpolation_goes_from_one_image_to_the_other_along_a_sphere():
    made, x = gaussian_model(steps=100), images(8)
    latent = run(editing.invert(made), 8, image=x)
    drawing = editing.interpolate(made)
    for share, end in ((0.0, latent), (1.0, latent[::-1])):
        found = run(
            drawing, 8, latent=latent, other=latent[::-1], share=jnp.full((8,), share)
        )  # fmt: skip
        there = run(editing.reconstruct(made), 8, latent=end)
        np.testing.assert_allclose(found, there, atol=1e-5)
    a, b = np.array([[3.0, 0, 0, 0]]), np.array([[0, 3.0, 0, 0]])
    half = editing.between(jnp.asarray(a), jnp.asarray(b), jnp.asarray([1 / 3]))
    angle = np.pi / 6
    np.testing.assert_allclose(half[0], [3 * np.cos(angle), 3 * np.sin(angle), 0, 0], atol=1e-6)
    same = editing.between(jnp.asarray(a), jnp.asarray(a), jnp.asarray([0.5]))
    np.testing.assert_allclose(same, a, atol=1e-6)


EDITS = {
    "vary": ({"strength": 0.6}, ("image",)),
    "inpaint": ({"resample": 2}, ("image", "mask")),
    "upscale": ({"factor": 2}, ("small",)),
    "invert": ({}, ("image",)),
    "reconstruct": ({}, ("latent",)),
    "interpolate": ({}, ("latent", "other", "share")),
}


def given_for(names, count, other=None):
    """A function of the numbers of samples, as `draw` takes it; image `other` is another one."""
    x = np.array(images(count))
    if other is not None:
        x[other] -= 0.4
    known = {
        "image": x, "mask": np.asarray(mask_of(count)), "latent": x, "other": x[::-1],
        "share": np.linspace(0, 1, count, dtype=np.float32), "small": x[:, :1, :1],
    }  # fmt: skip
    return lambda index: {name.replace("small", "image"): known[name][index] for name in names}


@pytest.mark.parametrize("name", EDITS)
def test_edit_i_depends_on_the_seed_and_image_i_alone(name):
    settings, names = EDITS[name]
    made = model(with_memory, 3, sampling={"sampler": "ancestral"})
    drawing = editing.edits(made)[name](**settings)
    driver = Driver(drawing, "cpu")

    def drawn(devices, batch_size, count=11, **changes):
        mesh = make_mesh(jax.devices()[:devices])
        options = {"seed": 0, "labels": [0, 1, 2], "given": given_for(names, 11)} | changes
        options |= {"count": count, "batch_size": batch_size}
        return np.concatenate(list(draw(driver, VARIABLES, mesh, **options)))

    whole = drawn(8, 16)
    assert whole.shape == (11, *SHAPE)
    for devices, batch_size in ((1, 4), (8, 8)):
        np.testing.assert_allclose(drawn(devices, batch_size), whole, atol=1e-6)
    np.testing.assert_allclose(drawn(8, 8, count=3), whole[:3], atol=1e-6)
    other = np.abs(drawn(8, 16, seed=1) - whole).max()
    assert (other > 0.01) == (name in ("vary", "inpaint", "upscale"))
    assert np.abs(drawn(8, 16, labels=[1]) - whole).max() > 0.001
    changed = drawn(8, 16, given=given_for(names, 11, other=5)) - whole  # in the middle
    assert np.flatnonzero(np.abs(changed).max((1, 2, 3)) > 1e-4).tolist() == [5]
    asked = {**given_for(names, 11)(np.arange(11)), "label": np.arange(11) % 3}
    assert asked.keys() == drawing.conditions.keys()
    for key, field in drawing.conditions.items():
        assert asked[key].shape[1:] == field.shape


def test_a_scan_and_a_host_loop_agree():
    made = model(with_memory, 3, sampling={"sampler": "ancestral"})
    cond = {"label": jnp.arange(4) % 3, "mask": mask_of(4), "image": images(4)}
    drawing = editing.inpaint(made, resample=2)
    looped, scanned = (run(drawing, 4, platform, **cond) for platform in ("cpu", "tpu"))
    np.testing.assert_allclose(looped, scanned, rtol=1e-5, atol=1e-6)


def test_models_of_images_edit_and_others_do_not():
    spec = DataSpec({"x": Field("image", (8, 8, 1))}, {}, {})
    config = ddpm_digits.get_config("smoke")
    assert build.build(config, spec).edits.keys() == EDITS.keys()
    points = DataSpec({"x": Field("points", (2,))}, {}, {})
    config.network = {"name": "mlp"}
    config.sampling.clip = False
    assert not build.build(config, points).edits
