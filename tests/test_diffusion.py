"""The diffusion family with networks that are formulas: loss, guidance, clipping, sampling."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.data.datasets import DataSpec
from aigc_jax.diffusion import family as families
from aigc_jax.diffusion import likelihood
from aigc_jax.diffusion import process as gaussian
from aigc_jax.sampling import draw
from aigc_jax.training.sharding import make_mesh, put
from configs import ddpm_digits

SHAPE = (2, 2, 1)
SAMPLING = {"sampler": "ddim", "steps": 5, "clip": True, "guidance": 1.0}
T = 20
LEVELS = jnp.array([0.1, 0.2, 0.05])  # of two classes, and of "none"


class Formula(NamedTuple):
    """A network without parameters: (x, t, label, train) -> output like x."""

    of: Callable[..., Any]
    num_classes: int = 0

    def init(self, *_):
        return {"params": {}}

    def apply(self, variables, x, t, label, *, train=False, rngs=None):
        assert train == (rngs is not None)
        assert t.shape == (len(x),)
        return self.of(x, t, label, train) + jnp.zeros_like(x)


def family(of, num_classes=0, *, shape=SHAPE, sampling=None, **changes):
    settings = {
        "schedule": "linear",
        "timesteps": T,
        "prediction": "x0",
        "weighting": "simple",
        "sampling": {**SAMPLING, **(sampling or {})},
        **changes,
    }
    return families.diffusion(Formula(of, num_classes), shape, **settings)


def images(n, value=0.0):
    return {"image": jnp.full((n, *SHAPE), value)}


def loss(made, batch, seed=0):
    return jax.jit(made.phases[0].loss)({"net": {}}, {}, batch, jax.random.key(seed))[0]


def metrics(made, batch, seed=0):
    return jax.jit(made.evaluate)({"net": {}}, {}, batch, jax.random.key(seed))


def evaluate(made, batch, seed=0):
    return metrics(made, batch, seed)["loss"]


def restored(made, batch, seed=0):
    return jax.jit(made.restore)({"net": {}}, {}, batch, jax.random.key(seed))


def sample(made, n=4, cond=None):
    keys = jax.vmap(jax.random.key)(jnp.arange(n))
    return np.asarray(made.sample({"net": {}}, {}, keys, cond or {}))


def column(values):
    return jnp.asarray(values)[:, None, None, None]


def believing(prediction, x0_of):
    """A network whose estimate of x_0 is `x0_of(label)`, whatever it sees."""
    process = gaussian.variance_preserving(gaussian.betas("linear", T))
    alpha_of, sigma_of = gaussian.per_time(process.alpha), gaussian.per_time(process.sigma)

    def of(x, t, label, train):
        alpha, sigma = alpha_of(t.astype(int)), sigma_of(t.astype(int))
        x0 = x0_of(label) + jnp.zeros_like(x)
        return gaussian.target(prediction, x0, gaussian.to_eps(x0, x, alpha, sigma), alpha, sigma)

    return of


def test_a_network_that_puts_out_zero_has_loss_one():
    made = family(lambda x, *_: 0.0, prediction="eps")
    value = loss(made, images(20_000, 0.3))
    np.testing.assert_allclose(value, 1.0, atol=0.02)  # 80,000 squares of unit noise


@pytest.mark.parametrize("prediction", gaussian.PREDICTIONS)
def test_a_network_that_knows_the_image_has_loss_zero(prediction):
    made = family(believing(prediction, lambda label: 0.3), prediction=prediction)
    assert loss(made, images(64, 0.3)) < 1e-8
    assert loss(made, images(64, 0.5)) > 1e-4
    np.testing.assert_allclose(sample(made), 0.3, atol=1e-4)


def test_evaluation_weighs_each_example_by_its_time_and_visits_all_times_evenly():
    made = family(lambda x, *_: 0.0, weighting="snr")
    process = gaussian.variance_preserving(gaussian.betas("linear", T))
    snr = (process.alpha / process.sigma) ** 2
    # As many examples as times: example i is at time i, whatever the key.
    for seed in range(3):
        np.testing.assert_allclose(evaluate(made, images(T, 0.5), seed), 0.25 * snr, rtol=1e-5)
    half = evaluate(made, images(T // 2, 0.5))
    either = np.isclose(half[:, None], 0.25 * snr.reshape(-1, 2), rtol=1e-5)
    assert np.array_equal(either.sum(axis=1), np.ones(T // 2))


def test_times_of_the_loss_are_uniform_over_the_whole_process():
    def of(x, t, label, train):  # its error is 1 at t = 0 and at T - 1 only
        return column(jnp.where((t == 0) | (t == T - 1), 1.0, 0.0))

    np.testing.assert_allclose(loss(family(of), images(20_000)), 2 / T, atol=0.01)


def test_dropout_is_for_training_only():
    made = family(lambda x, t, label, train: 1.0 if train else 0.0)
    assert loss(made, images(8)) == 1
    assert np.all(evaluate(made, images(8)) == 0)
    assert np.all(sample(made) == 0)


def test_labels_are_dropped_at_their_rate_in_training_and_never_in_evaluation():
    def of(x, t, label, train):  # its error is 1 where the label was dropped
        return column(jnp.where(label == 10, 1.0, jnp.where(label == 3, 0.0, 100.0)))

    batch = images(20_000) | {"label": jnp.full(20_000, 3)}
    for rate in (0.0, 0.1, 1.0):
        made = family(of, 10, label_dropout=rate)
        np.testing.assert_allclose(loss(made, batch), rate, atol=0.01)
        assert np.all(evaluate(made, batch) == 0)


def test_an_unconditional_model_never_sees_a_label():
    def of(x, t, label, train):
        assert label is None
        return 0.0

    made = family(of)
    batch = images(4) | {"label": jnp.zeros(4, jnp.int32)}
    loss(made, batch)
    evaluate(made, batch)
    restored(made, batch)
    sample(made, 4, {"label": jnp.zeros(4, jnp.int32)})


def test_evaluation_is_one_look_of_the_network_at_one_draw():
    seen = []

    def of(x, t, label, train):
        seen.append((x, t))
        return 0.1 * x

    made = family(of, weighting="snr")
    batch = {"image": jax.random.uniform(jax.random.key(1), (6, *SHAPE), minval=-1.0)}
    found = made.evaluate({"net": {}}, {}, batch, jax.random.key(7))
    assert found.keys() == {"loss"}
    ((x_t, t),) = seen
    # The draw that stored results were made with.
    time_key, noise_key = jax.random.split(jax.random.key(7))
    u = (np.arange(6) + jax.random.uniform(time_key, (6,))) / 6
    index = np.asarray(u * T, int)
    np.testing.assert_array_equal(t, index)
    process = gaussian.variance_preserving(gaussian.betas("linear", T))
    alpha, sigma = process.alpha[index], process.sigma[index]
    eps = jax.random.normal(noise_key, (6, *SHAPE))
    np.testing.assert_allclose(
        x_t, gaussian.diffuse(batch["image"], eps, alpha, sigma), rtol=1e-5, atol=1e-6
    )
    error = np.mean((0.1 * x_t - batch["image"]) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(found["loss"], (alpha / sigma) ** 2 * error, rtol=1e-5)


def bits(made, batch, key=0):
    return made.likelihood({"net": {}}, {}, batch, jax.random.key(key))["bits_per_dim"]


@pytest.mark.parametrize("prediction", gaussian.PREDICTIONS)
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("clip", [True, False])
def test_bits_of_all_times_are_the_bound_of_what_is_sampled(prediction, variance, clip):
    process = gaussian.variance_preserving(gaussian.betas("linear", T))
    of = believing(prediction, lambda label: 1.2)  # 1 where clipped
    made = family(of, prediction=prediction, sampling={"clip": clip, "variance": variance})
    x0 = images(2, 0.5)["image"]
    term = jax.jit(likelihood.terms(process, variance))
    guess = jnp.full_like(x0, 1.0 if clip else 1.2)
    expected = sum(term(x0, guess, jnp.full(2, i)) for i in range(T))
    expected += likelihood.prior(process, x0)
    np.testing.assert_allclose(bits(made, {"image": x0}), expected, rtol=1e-4)


def test_the_bound_sees_every_time_once_each_with_noise_of_its_own():
    seen = []

    def of(x, t, label, train):
        jax.debug.callback(lambda x, t: seen.append((np.asarray(t), np.asarray(x))), x, t)
        return 0.0 * x

    bits(family(of), images(2, 0.0))
    jax.effects_barrier()
    seen.sort(key=lambda pair: pair[0][0])
    assert [t.tolist() for t, _ in seen] == [[i, i] for i in range(T)]
    sigma = gaussian.variance_preserving(gaussian.betas("linear", T)).sigma
    noise = np.stack([x / sigma[i] for i, (_, x) in enumerate(seen)])
    assert len(np.unique(noise)) == noise.size


def test_a_better_model_has_fewer_bits():
    batch = images(T, 0.5)
    found = [
        np.mean(bits(family(lambda x, *_, guess=guess: guess), batch))
        for guess in (0.0, 0.4, 0.45, 0.5)
    ]
    assert np.all(np.diff(found) < 0)


def test_bits_are_of_the_model_given_the_label_and_not_of_the_guided_one():
    def of(x, t, label, train):
        return column(LEVELS[label])

    batch = images(T, 0.2) | {"label": jnp.full(T, 1)}
    plain, guided = (bits(family(of, 2, sampling={"guidance": w}), batch) for w in (1.0, 3.0))
    np.testing.assert_array_equal(plain, guided)
    other = bits(family(of, 2), batch | {"label": jnp.zeros(T, jnp.int32)})
    assert np.mean(other) > np.mean(plain)


def test_metrics_and_restored_images_do_not_depend_on_the_number_of_devices():
    made = family(with_memory, 3)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.uniform(-1, 1, (16, *SHAPE)).astype(np.float32),
        "label": rng.integers(0, 3, 16).astype(np.int32),
    }
    for of in (metrics, restored):
        one, eight = (of(made, put(make_mesh(jax.devices()[:n]), batch)) for n in (1, 8))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, eight
        )


@pytest.mark.parametrize("prediction", gaussian.PREDICTIONS)
def test_a_network_that_knows_the_image_restores_it(prediction):
    of = believing(prediction, lambda label: column(LEVELS[label]))
    label = jnp.array([1, 0, 0, 1, 1])
    batch = {"image": column(LEVELS[label]) + jnp.zeros((5, *SHAPE)), "label": label}
    found = restored(family(of, 2, prediction=prediction), batch)
    assert found.keys() == {"t=2", "t=6", "t=10"}  # 0.1, 0.3 and 0.5 of T
    for given, image in found.values():
        assert given.shape == image.shape == (5, *SHAPE)
        np.testing.assert_allclose(image, batch["image"], atol=1e-4)
        assert np.abs(given - batch["image"]).max() > 0.01


def test_what_is_restored_is_seen_as_the_network_saw_it_and_within_range():
    seen = []

    def of(x, t, label, train):
        seen.append((x, t))
        return 7.0 * jnp.sign(x)

    made = family(of, sampling={"clip": False})  # the estimates may leave [-1, 1], the images not
    batch = {"image": jax.random.uniform(jax.random.key(1), (4, *SHAPE), minval=-1.0)}
    found = made.restore({"net": {}}, {}, batch, jax.random.key(0))
    ((x, t),) = seen
    process = gaussian.variance_preserving(gaussian.betas("linear", T))
    distances = []
    for time in (2, 6, 10):
        given, image = found[f"t={time}"]
        x_t = x[t == time]
        np.testing.assert_allclose(given, np.clip(x_t / process.alpha[time], -1, 1), rtol=1e-5)
        np.testing.assert_array_equal(image, np.sign(x_t))
        eps = (x_t - process.alpha[time] * batch["image"]) / process.sigma[time]
        assert np.abs(eps).max() < 4
        assert 0.4 < np.std(eps) < 1.6
        distances.append(eps)
    assert np.abs(distances[0] - distances[1]).min() > 1e-4  # each level has noise of its own
    assert np.abs(distances[1] - distances[2]).min() > 1e-4


def test_levels_of_damage_are_shares_of_the_times():
    for total, names in ((1000, {"t=100", "t=300", "t=500"}), (1, {"t=0"})):
        found = restored(
            family(lambda x, *_: 0.0, timesteps=total, sampling={"steps": 1}), images(2)
        )
        assert found.keys() == names


@pytest.mark.parametrize("prediction", gaussian.PREDICTIONS)
@pytest.mark.parametrize("guidance", [0.0, 1.0, 3.0])
def test_guidance_is_its_formula_for_every_prediction(prediction, guidance):
    of = believing(prediction, lambda label: column(LEVELS[label]))
    made = family(of, 2, prediction=prediction, sampling={"clip": False, "guidance": guidance})
    found = sample(made, 4, {"label": jnp.array([0, 1, 0, 1])})
    expected = 0.05 + guidance * (np.array([0.1, 0.2, 0.1, 0.2]) - 0.05)
    np.testing.assert_allclose(found, column(expected) + np.zeros_like(found), atol=2e-4)


def test_estimates_are_clipped_where_asked():
    for clip, expected in ((True, 1.0), (False, 7.0)):
        np.testing.assert_allclose(
            sample(family(lambda x, *_: 7.0, sampling={"clip": clip})), expected, rtol=1e-5
        )


def test_samples_of_a_gaussian_have_its_mean_and_the_solvers_std():
    process = gaussian.variance_preserving(gaussian.betas("linear", 1000))
    alpha_of, sigma_of = gaussian.per_time(process.alpha), gaussian.per_time(process.sigma)

    def optimal(x, t, label, train):
        alpha, sigma = column(alpha_of(t.astype(int))), column(sigma_of(t.astype(int)))
        return 0.2 + alpha * 0.25 / (alpha**2 * 0.25 + sigma**2) * (x - alpha * 0.2)

    made = family(optimal, timesteps=1000, sampling={"clip": False, "steps": 50})
    found = sample(made, 16_384)
    np.testing.assert_allclose(found.std(), 0.472439, atol=0.005)
    np.testing.assert_allclose(found.mean(), 0.2, atol=0.01)


def with_memory(x, t, label, train):
    """A network that every input matters to."""
    return jnp.tanh(x * 0.7 + 0.01 * column(t) + 0.3 * column(label))


def drawn(**changes):
    settings = {"seed": 0, "count": 11, "labels": [0, 1, 2], "batch_size": 16} | changes
    mesh = make_mesh(jax.devices()[: settings.pop("devices", 8)])
    made = settings.pop("made")
    return np.concatenate(list(draw(made.sample, {"net": {}}, {}, mesh, **settings)))


@pytest.mark.parametrize("sampler", ["ancestral", "ddim"])
def test_sample_i_depends_on_the_seed_and_i_only(sampler):
    made = family(with_memory, 3, sampling={"sampler": sampler})
    whole = drawn(made=made)
    assert whole.shape == (11, *SHAPE)
    for changes in ({"batch_size": 8}, {"devices": 1, "batch_size": 4}, {"devices": 2}):
        np.testing.assert_allclose(drawn(made=made, **changes), whole, atol=1e-6)
    np.testing.assert_allclose(drawn(made=made, count=3), whole[:3], atol=1e-6)
    assert np.abs(drawn(made=made, seed=1) - whole).max() > 0.01
    assert len(np.unique(whole.round(5), axis=0)) == 11


def test_a_trajectory_ends_with_the_sample():
    made = family(with_memory, 3, sampling={"sampler": "ancestral"})
    keys, cond = jax.vmap(jax.random.key)(jnp.arange(4)), {"label": jnp.arange(4) % 3}
    frames = made.trajectory({"net": {}}, {}, keys, cond, 3)
    assert frames.shape == (3, 4, *SHAPE)
    np.testing.assert_allclose(frames[-1], sample(made, 4, cond), atol=1e-6)
    assert not np.allclose(frames[0], frames[-1])


def test_settings_that_cannot_work_are_told_when_the_family_is_built():
    with pytest.raises(ValueError, match=r"guidance other than 1 needs diffusion.conditional"):
        family(with_memory, sampling={"guidance": 2.0})
    with pytest.raises(ValueError, match=r"sampling.steps must lie in 1..20"):
        family(with_memory, sampling={"steps": 21})
    with pytest.raises(ValueError, match=r"diffusion.prediction is one of eps, x0, v"):
        family(with_memory, prediction="epsilon")
    with pytest.raises(ValueError, match=r"diffusion.weighting is one of"):
        family(with_memory, weighting="minsnr")
    with pytest.raises(ValueError, match=r"diffusion.schedule is one of"):
        family(with_memory, schedule="cosin")


def test_a_config_that_does_not_fit_its_data_is_told():
    conditional = ddpm_digits.get_config("conditional")
    with pytest.raises(ValueError, match=r"diffusion.conditional needs data with labels"):
        families.build(conditional, DataSpec((8, 8, 1), 0, {}))
    config = ddpm_digits.get_config()
    config.network.name = "unett"
    with pytest.raises(ValueError, match=r"network.name is one of unet, not 'unett'"):
        families.build(config, DataSpec((8, 8, 1), 10, {}))
    config = ddpm_digits.get_config()
    made = families.build(config, DataSpec((9, 9, 1), 10, {}))
    with pytest.raises(ValueError, match=r"images are 9x9, .* the nearest sizes that do: 8 and 10"):
        jax.eval_shape(made.init, jax.random.key(0))
