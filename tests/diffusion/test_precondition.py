"""Conversions among what a network may predict, against each other and published numbers."""

import numpy as np
import pytest
from diffusion.helpers import to_eps

from aigc_jax.diffusion.precondition import PREDICTIONS, named
from aigc_jax.diffusion.process import Level, diffuse


def draws(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_predictions_convert_back_to_x0_and_eps_for_any_alpha_and_sigma(prediction):
    rng = np.random.default_rng(0)
    x0, eps = draws(rng, 16, 4, 3), draws(rng, 16, 4, 3)
    level = Level(None, *rng.uniform(0.1, 2, (2, 16)).astype(np.float32))
    x_t = diffuse(x0, eps, level)
    output = named(prediction).target_of(x0, eps, level)
    found = named(prediction).x0_of(output, x_t, level)
    np.testing.assert_allclose(found, x0, atol=2e-4)
    np.testing.assert_allclose(to_eps(found, x_t, level), eps, atol=2e-3)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_an_error_in_x0_makes_the_error_in_the_output_that_the_table_says(prediction):
    rng = np.random.default_rng(2)
    level = Level(None, *rng.uniform(0.1, 2, (2, 16)))
    x0, eps = draws(rng, 16, 5), draws(rng, 16, 5)
    x_t = np.asarray(diffuse(x0, eps, level))
    true, wrong = (
        named(prediction).target_of(x, to_eps(x, x_t, level), level) for x in (x0, x0 + 1.0)
    )
    expected = named(prediction).error(level.alpha, level.sigma)
    np.testing.assert_allclose(np.mean((wrong - true) ** 2, axis=1), expected, rtol=1e-3)


@pytest.mark.parametrize(
    ("sigma", "c_skip", "c_out", "c_in", "weight"),
    [
        (0.002, 0.999984000256, 0.00199998400019, 1.99998400019, 250004),
        (0.5, 0.5, 0.353553390593, 1.41421356237, 8),
        (1.0, 0.2, 0.4472135955, 0.894427191, 5),
        (80.0, 3.90609741807e-5, 0.499990234661, 0.0124997558665, 4.00015625),
    ],
)
def test_the_preconditioning_of_edm_is_the_published_one(sigma, c_skip, c_out, c_in, weight):
    edm, level = named("edm", 0.5), (1.0, sigma)
    np.testing.assert_allclose(edm.to_x0(0.0, 1.0, *level), c_skip, rtol=1e-9)
    np.testing.assert_allclose(edm.to_x0(1.0, 0.0, *level), c_out, rtol=1e-9)
    np.testing.assert_allclose(edm.scale(*level), c_in, rtol=1e-9)
    np.testing.assert_allclose(edm.error(*level), weight, rtol=1e-8)


def test_what_edm_sees_and_shall_put_out_has_unit_variance():
    rng, edm = np.random.default_rng(0), named("edm", 0.5)
    x0, eps = 0.5 * draws(rng, 6, 40_000), draws(rng, 6, 40_000)
    level = Level(None, np.array([1, 1, 1, 0.9, 0.5, 0.1]), np.array([0.01, 0.5, 10, 0.1, 0.5, 1]))
    for x in (edm.given(diffuse(x0, eps, level), level), edm.target_of(x0, eps, level)):
        np.testing.assert_allclose(np.std(x, axis=1), 1.0, atol=0.02)


def test_a_prediction_that_is_not_known_is_named():
    with pytest.raises(
        ValueError, match=r"diffusion.prediction is one of eps, x0, v, velocity, ed"
    ):
        named("epsilon")
