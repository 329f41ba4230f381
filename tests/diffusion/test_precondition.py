"""Conversions among what a network may predict, against each other."""

import numpy as np
import pytest
from diffusion.helpers import to_eps

from aigc_jax.diffusion import precondition
from aigc_jax.diffusion.precondition import PREDICTIONS
from aigc_jax.diffusion.process import diffuse


def draws(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_predictions_convert_back_to_x0_and_eps_for_any_alpha_and_sigma(prediction):
    rng = np.random.default_rng(0)
    x0, eps = draws(rng, 16, 4, 3), draws(rng, 16, 4, 3)
    alpha, sigma = rng.uniform(0.1, 2, (2, 16)).astype(np.float32)
    x_t = diffuse(x0, eps, alpha, sigma)
    output = precondition.target(prediction, x0, eps, alpha, sigma)
    found = precondition.to_x0(prediction, output, x_t, alpha, sigma)
    np.testing.assert_allclose(found, x0, atol=2e-4)
    np.testing.assert_allclose(to_eps(found, x_t, alpha, sigma), eps, atol=2e-3)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_an_error_in_x0_makes_the_error_in_the_output_that_the_table_says(prediction):
    rng = np.random.default_rng(2)
    alpha = rng.uniform(0.1, 0.9, 16)
    sigma = np.sqrt(1 - alpha**2)
    x0, eps = draws(rng, 16, 5), draws(rng, 16, 5)
    x_t = np.asarray(diffuse(x0, eps, alpha, sigma))
    off = x0 + 1.0
    true, wrong = (
        precondition.target(prediction, x, to_eps(x, x_t, alpha, sigma), alpha, sigma)
        for x in (x0, off)
    )
    expected = precondition.error_of_x0(prediction, alpha, sigma)
    np.testing.assert_allclose(np.mean((wrong - true) ** 2, axis=1), expected, rtol=1e-3)


def test_a_prediction_that_is_not_known_is_named():
    one = np.ones(1)
    for convert in (precondition.target, precondition.to_x0):
        with pytest.raises(ValueError, match=r"diffusion.prediction is one of eps, x0, v, not"):
            convert("epsilon", one, one, one, one)
    with pytest.raises(ValueError, match=r"diffusion.prediction is one of"):
        precondition.error_of_x0("epsilon", one, one)
