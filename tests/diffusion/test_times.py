"""Which times a loss sees, its weights against published numbers, and the objective itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusion.helpers import to_eps

from aigc_jax.diffusion import objectives, precondition, times
from aigc_jax.diffusion import process as gaussian
from aigc_jax.diffusion.precondition import PREDICTIONS

CLOSE = {"rtol": 1e-6}


def test_training_draws_every_time_equally_often():
    index = times.uniform(jax.random.key(0), 40_000, 20)
    assert jnp.issubdtype(index.dtype, jnp.integer)
    np.testing.assert_allclose(np.bincount(index, minlength=20) / 2000, 1.0, atol=0.1)


@pytest.mark.parametrize(("count", "total"), [(1, 7), (7, 7), (5, 20), (20, 5), (64, 1000)])
def test_evaluation_draws_one_time_of_each_part_of_the_process(count, total):
    for seed in range(3):
        index = np.asarray(times.stratified(jax.random.key(seed), count, total))
        share = total / count
        assert np.all(index >= np.floor(np.arange(count) * share))
        assert np.all(index < np.ceil((np.arange(count) + 1) * share))


def test_snr_and_its_weights_are_the_published_ones():
    process = gaussian.variance_preserving(gaussian.betas("linear", 1000))
    snr = (process.alpha / process.sigma) ** 2
    np.testing.assert_allclose(snr[[0, 99, 499]], [9999, 8.71044856935, 0.0852899444626], **CLOSE)
    expected = {
        "eps": (0.574023250374, 1.0),
        "v": (0.514909271625, 0.0785872428818),
        "x0": (5.0, 0.0852899444626),
    }
    for prediction, values in expected.items():
        weight = times.weight("min_snr", prediction, process.alpha, process.sigma, 5.0)
        np.testing.assert_allclose(weight[[99, 499]], values, **CLOSE)
        simple = times.weight("simple", prediction, process.alpha, process.sigma)
        np.testing.assert_array_equal(simple, np.ones(1000))
    np.testing.assert_allclose(
        times.weight("snr", "eps", process.alpha, process.sigma), 1.0, rtol=1e-12
    )


@pytest.mark.parametrize("weighting", ["snr", "min_snr"])
def test_the_same_error_in_x0_costs_the_same_whatever_is_predicted(weighting):
    process = gaussian.variance_preserving(gaussian.betas("cosine", 50))
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        x0, eps, error = rng.normal(size=(3, 50, 8))
        x_t = gaussian.diffuse(x0, eps, process.alpha, process.sigma)
        guess = x0 + error
        guessed_eps = to_eps(guess, x_t, process.alpha, process.sigma)
        losses = []
        for prediction in PREDICTIONS:
            output = precondition.target(
                prediction, guess, guessed_eps, process.alpha, process.sigma
            )
            weight = times.weight(weighting, prediction, process.alpha, process.sigma)
            losses.append(
                objectives.denoising(
                    prediction, output, x0, eps, process.alpha, process.sigma, weight
                )
            )
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-8)
    np.testing.assert_allclose(losses[2], losses[0], rtol=1e-8)
    snr = (process.alpha / process.sigma) ** 2
    factor = np.minimum(snr, 5) if weighting == "min_snr" else snr
    np.testing.assert_allclose(losses[0], factor * np.mean(error**2, axis=1), rtol=1e-8)


@pytest.mark.parametrize("shape", [(2,), (3, 3, 2)])
def test_the_objective_is_of_each_example_alone_at_any_rank(shape):
    rng = np.random.default_rng(0)
    output, x0, eps = rng.normal(size=(3, 4, *shape)).astype(np.float32)
    alpha, sigma, weight = rng.uniform(0.1, 1, (3, 4)).astype(np.float32)
    found = objectives.denoising("eps", output, x0, eps, alpha, sigma, weight)
    expected = weight * np.mean((output - eps).reshape(4, -1) ** 2, axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_what_is_not_known_is_named_with_what_is():
    one = np.ones(1)
    for weighting in times.WEIGHTINGS:
        with pytest.raises(ValueError, match=r"diffusion.prediction is one of eps, x0, v, not"):
            times.weight(weighting, "epsilon", one, one)
    with pytest.raises(ValueError, match=r"diffusion.weighting is one of simple, snr, min_snr"):
        times.weight("minsnr", "eps", one, one)
