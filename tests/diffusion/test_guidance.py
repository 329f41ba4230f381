"""Classifier-free guidance as a function of a network's prediction, alone."""

import jax
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


def test_rescaling_brings_an_estimate_back_to_the_width_of_the_one_with_the_label():
    predict, _ = network()
    plain = predict(X, LEVEL, LABEL).x0.reshape(3, -1).std(axis=1)
    for share, exact in ((1.0, True), (0.5, False)):
        guided = guidance.classifier_free(wide(predict), 4.0, NONE, rescale=share)
        found = guided(X, LEVEL, LABEL).x0.reshape(3, -1).std(axis=1)
        own = wide(predict)(X, LEVEL, LABEL).x0.reshape(3, -1).std(axis=1)
        assert np.allclose(found, own, rtol=1e-5) == exact
    assert not np.allclose(plain, own)


def wide(predict):
    """A denoise whose estimates with a label vary more within an example."""

    def widened(x, level, label):
        estimate = predict(x, level, label).x0
        factor = jnp.where(label == NONE, 1.0, 2.0)[:, None, None]
        return Estimate(estimate * factor)

    return widened


def test_autoguidance_leads_away_from_the_weaker_model():
    predict, _ = network()

    def weak(x, level, label):
        return Estimate(0.5 * x)

    found = guidance.auto(predict, weak, 3.0)(X, LEVEL, LABEL).x0
    strong = predict(X, LEVEL, LABEL).x0
    np.testing.assert_allclose(found, 0.5 * X + 3 * (strong - 0.5 * X), rtol=1e-5)
    assert guidance.auto(predict, weak, 1.0) is predict


def test_guidance_within_an_interval_costs_one_call_outside_of_it():
    calls = []

    def predict(x, level, label):
        jax.debug.callback(lambda _: calls.append(len(x)), x[:1])
        return Estimate(x + jnp.where(label == NONE, 0.0, 1.0)[:, None, None])

    guided = guidance.classifier_free(predict, 3.0, NONE)
    limited = jax.jit(guidance.within(guided, predict, 0.5, 2.0))
    for sigma, added, size in ((0.4, 1, 3), (0.5, 3, 6), (2.0, 3, 6), (2.1, 1, 3)):
        calls.clear()
        level = Level(TIMES, jnp.ones(3), jnp.full(3, sigma))
        np.testing.assert_allclose(limited(X, level, LABEL).x0, X + added, rtol=1e-6)
        jax.effects_barrier()
        assert calls == [size]
