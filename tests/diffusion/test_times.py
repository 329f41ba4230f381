"""Which times a loss sees, its weights against published numbers, and the objective itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusion.helpers import to_eps
from scipy import optimize, stats

from aigc_jax.diffusion import objectives, times
from aigc_jax.diffusion import process as gaussian
from aigc_jax.diffusion.precondition import PREDICTIONS, named

CLOSE = {"rtol": 1e-6}
KEYS = jax.random.split(jax.random.key(0), 2)
CONTINUOUS = ["vp", "sub_vp", "ve", "edm", "flow", "cosine", "log_snr"]


def made(name="flow", process=None, **settings):
    process = process or gaussian.build({"name": "flow"})
    return times.build({"name": name, **settings}, process)


def discrete(total, schedule="linear"):
    return gaussian.variance_preserving(gaussian.betas(schedule, total))


def weight(name, prediction, process, **settings):
    """Factors at every time of a discrete process."""
    of = times.weighting({"name": name, **settings}, named(prediction), process)
    return np.asarray(of(process.level(np.arange(process.total))))


def test_training_draws_every_time_equally_often():
    t = made("uniform", discrete(20)).train(KEYS[0], 40_000)
    np.testing.assert_array_equal(t, np.round(t))
    np.testing.assert_allclose(np.bincount(t.astype(int), minlength=20) / 2000, 1.0, atol=0.1)


@pytest.mark.parametrize(("count", "total"), [(1, 7), (7, 7), (5, 20), (20, 5), (64, 1000)])
def test_evaluation_draws_one_time_of_each_part_of_the_process(count, total):
    for seed in range(3):
        keys = jax.random.split(jax.random.key(seed))
        t = np.sort(np.asarray(made("uniform", discrete(total)).test(*keys, count)))
        share = total / count
        assert np.all(t >= np.floor(np.arange(count) * share))
        assert np.all(t < np.ceil((np.arange(count) + 1) * share))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"name": "uniform"}, stats.uniform()),
        ({"name": "logit_normal", "mean": -0.5, "std": 0.8}, None),
        ({"name": "log_normal", "mean": -1.0, "std": 1.5}, None),
    ],
)
def test_times_of_a_flow_have_their_distribution(settings, expected):
    t = np.asarray(made(**settings).train(KEYS[0], 20_000), np.float64)
    if expected is None:  # of a flow sigma / alpha is t / (1 - t): both are a normal logit
        t = np.log(t / (1 - t))
        expected = stats.norm(settings["mean"], settings["std"])
    assert stats.kstest(t, expected.cdf).pvalue > 0.01


def test_times_of_edm_are_those_of_its_table():
    process = gaussian.build({"name": "edm"})
    t = np.asarray(made("log_normal", process).train(KEYS[0], 20_000), np.float64)
    assert stats.kstest(np.log(t), stats.norm(-1.2, 1.2).cdf).pvalue > 0.01
    assert process.low <= t.min() < t.max() <= process.high


def test_shifted_times_are_the_published_map():
    u = jnp.array([0.1, 0.5, 0.9])
    np.testing.assert_allclose(made("uniform", shift=3.0).quantile(u), 3 * u / (1 + 2 * u), **CLOSE)


@pytest.mark.parametrize("name", times.TIMES)
@pytest.mark.parametrize("process", [*CONTINUOUS, "discrete"])
def test_times_and_weights_are_finite_within_every_process(name, process):
    process = gaussian.build({"name": process})
    of = times.build({"name": name}, process)
    t = of.quantile(jnp.array([times.TAIL, 0.5, 1 - times.TAIL]))
    assert process.low <= t.min() <= t.max() <= process.high
    level = process.level(t)
    for weighting in times.WEIGHTINGS:
        for prediction in PREDICTIONS:
            no_signal = process.ends.alpha[-1] == 0
            if not (no_signal and (named(prediction).divides or weighting == "likelihood")):
                factor = times.weighting({"name": weighting}, named(prediction), process)(level)
                assert np.all(np.isfinite(factor)), (weighting, prediction)


def test_a_stratified_batch_has_a_time_in_each_part_in_training_too():
    t = np.sort(np.asarray(made("uniform", stratified=True).train(KEYS[0], 50)))
    np.testing.assert_array_equal(np.floor(t * 50), np.arange(50))


def test_snr_and_its_weights_are_the_published_ones():
    process = discrete(1000)
    snr = (process.alphas / process.sigmas) ** 2
    np.testing.assert_allclose(snr[[0, 99, 499]], [9999, 8.71044856935, 0.0852899444626], **CLOSE)
    expected = {
        "eps": (0.574023250374, 1.0),
        "v": (0.514909271625, 0.0785872428818),
        "x0": (5.0, 0.0852899444626),
    }
    with jax.enable_x64(True):
        for prediction, values in expected.items():
            found = weight("min_snr", prediction, process, gamma=5.0)
            np.testing.assert_allclose(found[[99, 499]], values, **CLOSE)
            np.testing.assert_array_equal(weight("simple", prediction, process), np.ones(1000))
        np.testing.assert_allclose(weight("snr", "eps", process), 1.0, rtol=1e-12)


@pytest.mark.parametrize("weighting", [name for name in times.WEIGHTINGS if name != "simple"])
def test_the_same_error_in_x0_costs_the_same_whatever_is_predicted(weighting):
    process, rng = discrete(50, "cosine"), np.random.default_rng(1)
    snr = (process.alphas / process.sigmas) ** 2
    with jax.enable_x64(True):
        level = process.level(np.arange(50))
        x0, eps, error = rng.normal(size=(3, 50, 8))
        x_t = gaussian.diffuse(x0, eps, level)
        guess = x0 + error
        guessed_eps = to_eps(guess, x_t, level)
        losses = []
        for prediction in PREDICTIONS:
            output = named(prediction).target_of(guess, guessed_eps, level)
            factor = weight(weighting, prediction, process)
            losses.append(objectives.denoising(named(prediction), output, x0, eps, level, factor))
    for other in losses[1:]:
        np.testing.assert_allclose(other, losses[0], rtol=1e-8)
    published = {
        "snr": snr,
        "min_snr": np.minimum(snr, 5),
        "soft_min_snr": 4 * snr / (snr + 4),
        "edm": snr + 4,
    }
    if weighting in published:
        expected = published[weighting] * np.mean(error**2, axis=1)
        np.testing.assert_allclose(losses[0], expected, rtol=1e-8)


def test_edm_counts_its_own_errors_alike():
    process = gaussian.build({"name": "edm"})
    for sigma_data in (0.5, 1.3):
        factor = times.weighting({"name": "edm"}, named("edm", sigma_data), process, sigma_data)
        np.testing.assert_allclose(factor(process.ends), 1.0, rtol=1e-6)


def test_the_weight_of_likelihood_is_half_the_fall_of_the_snr():
    process = gaussian.build({"name": "vp"})
    level = process.level(jnp.array([0.2, 0.7]))
    found = times.weighting({"name": "likelihood"}, named("x0"), process)(level)
    ends = (process.level(np.asarray(level.t, np.float64) + d) for d in (-1e-5, 1e-5))
    before, after = ((end.alpha / end.sigma) ** 2 for end in ends)
    np.testing.assert_allclose(found, (before - after) / 4e-5, rtol=1e-3)


@pytest.mark.parametrize("shape", [(2,), (3, 3, 2)])
def test_the_objective_is_of_each_example_alone_at_any_rank(shape):
    rng = np.random.default_rng(0)
    output, x0, eps = rng.normal(size=(3, 4, *shape)).astype(np.float32)
    level = gaussian.Level(None, *rng.uniform(0.1, 1, (2, 4)).astype(np.float32))
    factor = rng.uniform(0.1, 1, 4).astype(np.float32)
    found = objectives.denoising(named("eps"), output, x0, eps, level, factor)
    expected = factor * np.mean((output - eps).reshape(4, -1) ** 2, axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_optimal_transport_pairs_a_batch_as_scipy_does():
    x0, eps = np.random.default_rng(0).normal(size=(2, 12, 2, 3)).astype(np.float32)
    found = jax.jit(objectives.optimal_transport)(x0, eps)
    cost = ((x0[:, None] - eps[None]) ** 2).sum(axis=(2, 3))
    rows, columns = optimize.linear_sum_assignment(cost)
    np.testing.assert_array_equal(found, eps[columns[np.argsort(rows)]])
    np.testing.assert_array_equal(objectives.independent(x0, eps), eps)


def test_what_is_not_known_is_named_with_what_is():
    with pytest.raises(
        ValueError, match=r"diffusion.weighting.name is one of simple, snr, min_snr"
    ):
        weight("minsnr", "eps", discrete(10))
    with pytest.raises(ValueError, match=r"diffusion.times.name is one of uniform, logit_normal, "):
        made("unifrom")
    with pytest.raises(ValueError, match=r"config.diffusion.times.std is a number above 0, not -1"):
        made("log_normal", std=-1.0)
