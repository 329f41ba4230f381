"""The VQ-VAE as a family: what moves the codebook, what reaches the encoder, which codes live."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from aigc_jax import build
from aigc_jax.data.datasets import DataSpec
from aigc_jax.training import loop, step
from aigc_jax.training.sharding import make_mesh, put
from aigc_jax.vae import likelihood, quantize, vector
from configs import vqvae_cifar

SHAPE, CODES, WIDTH = (4, 4, 1), 6, 3
GAUSSIAN = likelihood.build("gaussian", 1, sigma=0.5)
IMAGES = jax.random.uniform(jax.random.key(1), (8, *SHAPE), minval=-1.0)
BATCH = {"image": IMAGES}


class Linear(NamedTuple):
    """2x2 patches to vectors and back, by one matrix each; a label shifts what is decoded."""

    num_classes: int = 0
    latent_shape: tuple = (2, 2, WIDTH)

    def init(self, key, x):
        keys = jax.random.split(key)
        sizes = {"in": (4, WIDTH), "out": (WIDTH, 4)}
        draws = zip(keys, sizes.items(), strict=True)
        return {"params": {name: jax.random.normal(k, size) for k, (name, size) in draws}}

    def apply(self, variables, *args, method):
        return method(*args, params=variables["params"])

    def encode(self, x, label, params):
        patches = x.reshape(-1, 2, 2, 2, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 2, 2, 4)
        return patches @ params["in"], None

    def decode(self, z, label, params):
        out = (z @ params["out"]).reshape(-1, 2, 2, 2, 2).transpose(0, 1, 3, 2, 4)
        shift = 0 if label is None else label.reshape(-1, 1, 1, 1).astype(jnp.float32)
        return out.reshape(-1, *SHAPE) + shift


def family(num_classes=0, **changes):
    settings = {
        "codes": CODES,
        "decay": 0.9,
        "commitment": 0.25,
        "restart": 0.0,
        "prior": "frequency",
    } | changes
    return vector.vq(Linear(num_classes), SHAPE, GAUSSIAN, **settings)


@functools.cache
def state():
    """Parameters, and a codebook wide enough for several codes to be used."""
    params, extra = family().init(jax.random.key(0))
    codebook = jax.random.normal(jax.random.key(2), (CODES, WIDTH))
    return params, {**extra, "codebook": codebook, "sums": codebook}


def z_of(params):
    return Linear().encode(IMAGES, None, params["net"]["network"])[0]


def differentiated(made, params, extra, batch=None):
    of = jax.jit(jax.value_and_grad(made.phases[0].loss, argnums=(0, 1), has_aux=True))
    return of(params, extra, batch or BATCH, jax.random.key(0))


def test_the_loss_is_the_distortion_and_the_commitment():
    params, extra = state()
    z = z_of(params)
    index = np.linalg.norm(z[..., None, :] - extra["codebook"][None, None, None], axis=-1).argmin(
        -1
    )
    z_q = extra["codebook"][index]
    distance = np.sum((z - z_q) ** 2, axis=(1, 2, 3))
    outputs = Linear().decode(z_q, None, params["net"]["network"])
    distortion = -GAUSSIAN.log_prob(outputs, IMAGES)
    (value, (metrics, _)), _ = differentiated(family(), params, extra)
    np.testing.assert_allclose(value, np.mean(distortion + 0.25 * distance), rtol=1e-5)
    np.testing.assert_allclose(metrics["commitment"], distance.mean(), rtol=1e-5)
    counts = np.bincount(index.reshape(-1), minlength=CODES)
    np.testing.assert_allclose(metrics["perplexity"], quantize.perplexity(counts), rtol=1e-5)
    found = jax.jit(family().evaluate)(params, extra, BATCH, jax.random.key(0))
    np.testing.assert_allclose(found["distortion"], distortion, rtol=1e-5)
    np.testing.assert_allclose(found["commitment"], distance, rtol=1e-5)
    # Four places, a uniform prior over the codes.
    np.testing.assert_allclose(found["kl"], 4 * math.log(CODES), rtol=1e-6)
    np.testing.assert_allclose(found["neg_elbo"], distortion + 4 * math.log(CODES), rtol=1e-5)
    codes = jax.jit(family().codes)(params, extra, BATCH)
    np.testing.assert_array_equal(codes["index"], index)


def test_the_encoder_gets_the_gradient_at_its_code_and_the_commitments():
    params, extra = state()
    z = z_of(params)
    z_q, _ = quantize.quantize(z, extra["codebook"])

    def distortion(z_q):
        outputs = Linear().decode(z_q, None, params["net"]["network"])
        return -jnp.mean(GAUSSIAN.log_prob(outputs, IMAGES))

    through = jax.grad(distortion)(z_q) + 0.25 * 2 * (z - z_q) / len(z)

    def pulled(kernel):
        return jnp.sum(Linear().encode(IMAGES, None, {"in": kernel})[0] * through)

    expected = jax.grad(pulled)(params["net"]["network"]["in"])
    _, (grads, _) = differentiated(family(), params, extra)
    np.testing.assert_allclose(grads["net"]["network"]["in"], expected, rtol=1e-4, atol=1e-4)
    assert np.abs(expected).max() > 0.1


def test_the_codebook_has_no_gradient_and_moves_by_averages():
    params, extra = state()
    (_, (_, moved)), (_, to_extra) = differentiated(family(), params, extra)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(to_extra))
    z = z_of(params)
    _, index = quantize.quantize(z, extra["codebook"])
    expected = quantize.update(extra, z, index, 0.9)
    assert moved.keys() == expected.keys() == extra.keys()
    for name in expected:
        np.testing.assert_allclose(moved[name], expected[name], rtol=1e-5, atol=1e-6)
    assert np.abs(moved["codebook"] - extra["codebook"]).max() > 0.01


def test_the_averages_move_no_parameter_and_evaluation_moves_nothing():
    made = family()
    params, extra = state()
    # Nothing depends on what `extra` is to become: the same gradients, whatever the decay.
    _, (a, _) = differentiated(made, params, extra)
    _, (b, _) = differentiated(family(decay=0.5), params, extra)
    assert toys.same(a, b)


def test_dead_codes_start_anew_at_vectors_of_the_batch():
    params, extra = state()
    far = {**extra, "codebook": extra["codebook"].at[0].set(100.0)}
    far |= {"sums": far["codebook"], "counts": jnp.ones(CODES)}
    (_, (_, left)), _ = differentiated(family(), params, far)
    assert np.all(np.abs(left["codebook"][0]) > 99)
    (_, (_, moved)), _ = differentiated(family(restart=0.95), params, far)  # 1 has become 0.9
    restarted = np.asarray(moved["codebook"])[0]
    distance = np.linalg.norm(np.asarray(z_of(params)).reshape(-1, WIDTH) - restarted, axis=1)
    assert distance.min() < 1e-5
    assert float(moved["counts"][0]) == pytest.approx(0.95)


def test_eight_devices_see_the_loss_and_the_codebook_of_one():
    params, extra = state()
    made = family(restart=1.0)

    def run(devices):
        mesh = make_mesh(jax.devices()[:devices])
        batch = put(mesh, {"image": np.asarray(IMAGES)})
        return differentiated(made, params, extra, batch)

    for one, eight in zip(toys.arrays(run(1)), toys.arrays(run(8)), strict=True):
        np.testing.assert_allclose(one, eight, rtol=1e-5, atol=1e-5)


def test_a_sample_depends_on_its_key_alone():
    params, extra = state()
    keys = jax.random.split(jax.random.key(0), 8)
    made = family()
    images = np.asarray(made.sample(params, extra, keys, {}))
    few = np.asarray(made.sample(params, extra, keys[2:4], {}))
    np.testing.assert_allclose(few, images[2:4], atol=1e-6)
    assert len(np.unique(images.reshape(8, -1).round(4), axis=0)) > 1


def test_indices_of_samples_are_as_frequent_as_in_training_or_uniform():
    params, extra = state()
    extra = {**extra, "counts": jnp.array([0.0, 3.0, 0.0, 1.0, 0.0, 0.0])}
    keys = jax.random.split(jax.random.key(0), 2000)

    def first_patches(prior):
        return np.asarray(family(prior=prior).sample(params, extra, keys, {}))[:, :2, :2]

    def share(images, code):
        one = jnp.full((1, 2, 2), code)
        patch = family().decode(params, extra, one, None)[:, :2, :2]
        return np.isclose(images, patch, atol=1e-5).all(axis=(1, 2, 3)).mean()

    frequent, uniform = first_patches("frequency"), first_patches("uniform")
    assert share(frequent, 1) == pytest.approx(0.75, abs=0.04)
    assert share(frequent, 3) == pytest.approx(0.25, abs=0.04)
    for code in range(CODES):
        assert share(uniform, code) == pytest.approx(1 / CODES, abs=0.04)


def test_indices_and_vectors_decode_to_the_reconstruction():
    params, extra = state()
    made = family()
    given, restored = jax.jit(made.restore)(params, extra, BATCH, jax.random.key(0))[
        "reconstruction"
    ]
    np.testing.assert_array_equal(given, IMAGES)
    index = made.codes(params, extra, BATCH)["index"]
    for code in (index, z_of(params), extra["codebook"][index]):
        images = made.decode(params, extra, code, None)
        np.testing.assert_allclose(images, restored, atol=1e-5)


def test_labels_reach_the_decoder():
    params, extra = state()
    made = family(num_classes=2)
    assert made.num_classes == 2
    keys = jax.random.split(jax.random.key(0), 2)
    dark, light = (
        made.sample(params, extra, keys, {"label": jnp.full(2, label)}) for label in (0, 1)
    )
    assert np.mean(light - dark) > 0.2
    found = [
        made.evaluate(params, extra, BATCH | {"label": jnp.full(8, label)}, None)["distortion"]
        for label in (0, 1)
    ]
    assert not np.allclose(*found)


def test_the_diagnosis_is_the_perplexity_and_warns_of_unused_codes():
    found, warning = vector.diagnose({"index": np.arange(100).reshape(25, 2, 2)}, size=100)
    assert found == {"perplexity": pytest.approx(100.0, rel=1e-5), "codes_used": 100}
    assert warning == ""
    found, warning = vector.diagnose({"index": np.arange(100).reshape(25, 2, 2) % 2}, size=100)
    assert found == {"perplexity": pytest.approx(2.0, rel=1e-5), "codes_used": 2}
    assert warning.startswith("Codebook collapse: 2 of 100 codes")
    assert family().diagnose({"index": np.zeros((3, 2, 2), int)})[0]["perplexity"] == 1


def test_a_resumed_run_is_the_uninterrupted_one_with_its_codebook(tmp_path):
    whole, resumed = toys.resumed(tmp_path, family(restart=1.0), stop=2, steps=4)
    assert toys.same(resumed, whole)
    assert whole.extra.keys() == {"codebook", "counts", "sums"}


def test_the_smoke_config_trains_through_the_shared_step():
    config = vqvae_cifar.get_config("smoke")
    config.network.multipliers = (1, 1)
    made = build.build(config, DataSpec((4, 4, 3), 10, {}))
    plan = loop.recipe(config, made)
    now = jax.jit(functools.partial(step.init_state, plan))(jax.random.key(0))
    run = jax.jit(functools.partial(step.train_step, plan, (0,)))
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (1, 16, 1, 1, 3), np.uint8)
    batch = {"image": np.broadcast_to(colours, (1, 16, 4, 4, 3))}
    before, seen = now.extra, []
    for _ in range(40):
        now, metrics = run(now, batch)
        seen.append(float(metrics["net/distortion"]))
    assert np.mean(seen[-5:]) < np.mean(seen[:5]) - 5
    assert int(now.skipped) == 0
    assert not toys.same(before, now.extra)
    assert float(metrics["net/perplexity"]) > 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": 1}, "vae.codes is at least 2"),
        ({"decay": 1.0}, "vae.code_decay"),
        ({"commitment": 0.0}, "vae.commitment must be above 0"),
        ({"restart": -1.0}, "vae.restart"),
        ({"prior": "normal"}, "sampling.prior is one of frequency, uniform"),
    ],
)
def test_settings_that_cannot_work_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        family(**changes)


@pytest.mark.parametrize(("key", "value"), [("beta", 4.0), ("kl", "linear"), ("importance", 5)])
def test_a_setting_that_a_codebook_cannot_follow_is_refused(key, value):
    config = vqvae_cifar.get_config("smoke")
    config.vae[key] = value
    with pytest.raises(ValueError, match=rf"with a codebook vae\.{key} is"):
        build.build(config, DataSpec((32, 32, 3), 10, {}))
