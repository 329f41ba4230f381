"""Evaluators and the reading of samples by a classifier of real images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.data import digits
from aigc_jax.evaluation.evaluators import per_example
from aigc_jax.evaluation.recognition import recognise


def batches():
    yield {"x": jnp.array([1.0, 2.0]), "mask": jnp.array([1.0, 1.0])}
    yield {"x": jnp.array([6.0, jnp.nan]), "mask": jnp.array([1.0, 0.0])}


def test_means_are_over_examples_and_padding_does_not_count():
    found = per_example(
        lambda batch, key: {"x": batch["x"], "twice": 2 * batch["x"]}, batches(), jax.random.key(0)
    )
    assert found == {"x": 3.0, "twice": 6.0}


def test_a_real_value_that_is_not_a_number_is_not_hidden():
    rows = [{"x": jnp.array([1.0, jnp.nan]), "mask": jnp.ones(2)}]
    found = per_example(lambda batch, key: {"x": batch["x"]}, rows, jax.random.key(0))
    assert np.isnan(found["x"])


def test_each_batch_has_a_key_of_its_own_and_each_evaluation_the_same():
    seen = []

    def evaluate(batch, key):
        seen.append(jax.random.key_data(key).tolist())
        return {"x": batch["x"]}

    for _ in range(2):
        per_example(evaluate, batches(), jax.random.key(3))
    assert seen[:2] == seen[2:]
    assert seen[0] != seen[1]


@pytest.fixture(scope="module")
def real():
    def split(name, step):
        images, labels = digits.arrays(name)
        return images[::step] / np.float32(127.5) - 1, labels[::step]

    return split("train", 3), split("test", 1)


def test_real_digits_are_recognised_as_what_they_are(real):
    train, test = real
    images, labels = test
    result = recognise(images, train, test, labels=labels)
    assert result.agreement == result.accuracy > 0.94
    assert result.confident == result.real_confident > 0.85
    np.testing.assert_allclose(result.shares, np.bincount(labels) / len(labels), atol=0.02)
    assert "the label asked for" in str(result)


def test_wrong_labels_one_class_and_noise_are_seen_for_what_they_are(real):
    train, test = real
    images, labels = test
    shifted = recognise(images, train, test, labels=(labels + 1) % 10)
    assert shifted.agreement < 0.05
    threes = recognise(images[labels == 3], train, test)
    assert threes.shares[3] > 0.8
    assert threes.agreement is None
    assert "label asked for" not in str(threes)
    noise = np.random.default_rng(0).uniform(-1, 1, (300, 8, 8, 1))
    result = recognise(noise, train, test)
    assert result.confident < 0.5
    assert np.abs(result.shares - 0.1).max() > 0.05
    grey = recognise(np.zeros((20, 8, 8, 1)), train, test)  # all the same: one class has them all
    assert grey.shares.max() == 1
    np.testing.assert_allclose(grey.shares.sum(), 1)
