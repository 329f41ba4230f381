"""Classifier-free guidance as a function of a network's prediction, alone."""

import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.diffusion import guidance
from aigc_jax.diffusion.process import Level
from aigc_jax.diffusion.solvers.base import Estimate

X = jnp.arange(12.0).reshape(3, 2, 2)
TIMES = jnp.array([3.0, 5.0, 7.0])
LEVEL = Level(TIMES, jnp.ones(3), jnp.ones(3))
LABEL = jnp.array([0, 1, 0])
NONE = 2


def network():
    """Estimates by x, time and label, and keeps the sizes of the batches that it was given."""
    sizes = []

    def predict(x, level, label):
        sizes.append(len(x))
        by_label = 1.0 if label is None else jnp.array([10.0, 20.0, 5.0])[label][:, None, None]
        return Estimate(x + level.t[:, None, None] + by_label)

    return predict, sizes


@pytest.mark.parametrize("weight", [0.0, 0.5, 3.0])
def test_a_guided_prediction_is_its_formula_by_one_call(weight):
    predict, sizes = network()
    found = guidance.classifier_free(predict, weight, NONE)(X, LEVEL, LABEL).x0
    assert sizes == [6]
    label = np.array([10.0, 20.0, 10.0])[:, None, None]
    expected = X + TIMES[:, None, None] + 5 + weight * (label - 5)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_weight_one_and_samples_without_a_label_are_not_guided():
    predict, sizes = network()
    assert guidance.classifier_free(predict, 1.0, NONE) is predict
    found = guidance.classifier_free(predict, 3.0, NONE)(X, LEVEL, None).x0
    np.testing.assert_array_equal(found, predict(X, LEVEL, None).x0)
    assert sizes == [3, 3]
