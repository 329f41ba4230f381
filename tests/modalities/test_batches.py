"""Batches by the kinds of their fields: into the model's range, and each augmented by its key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import specs

from aigc_jax import modalities, streams
from aigc_jax.data import loader, mixtures
from aigc_jax.data.pairs import Pairs
from aigc_jax.data.sources import ArraySource

TWO = specs.images((16, 16, 3), domains=2)


def keys(step=0):
    run_key = jax.random.key(step)
    names = ("x", "other")
    return {name: streams.augmentation(run_key, 0, i) for i, name in enumerate(names)}


def ramps(count=64):
    ramp = np.arange(16, dtype=np.uint8).reshape(1, 1, 16, 1) * 10
    return np.broadcast_to(ramp, (count, 16, 16, 3))


def test_kinds_are_known_by_name():
    assert {kind: modality.kind for kind, modality in modalities.MODALITIES.items()} == {
        "image": "image",
        "points": "points",
    }
    assert modalities.of("points").bounded is False
    with pytest.raises(ValueError, match=r"image, points, not 'imge'; did you mean 'image'\?"):
        modalities.of("imge")


def numbered(first):
    number = np.arange(first, first + 10, dtype=np.uint8)
    return ArraySource(np.broadcast_to(number[:, None, None, None], (10, 2, 2, 3)).copy(), number)


def test_examples_are_floats_in_both_domains():
    source = Pairs(numbered(0), numbered(100))
    batch = next(loader.epoch(source, batch_size=8))
    found = modalities.to_model_batch(specs.images((2, 2, 3), domains=2), batch)
    assert found.keys() == {"x", "other", "mask"}
    for name, first in (("x", 0), ("other", 100)):
        assert found[name].dtype == np.float32
        expected = (first + np.arange(8)) / 127.5 - 1
        np.testing.assert_allclose(found[name][:, 1, 1, 2], expected, rtol=1e-6)
    np.testing.assert_array_equal(found["mask"], np.ones(8))


def test_labels_stay_as_they_are():
    label = np.arange(4, dtype=np.uint8)
    batch = {"x": np.zeros((4, 2, 2, 1), np.uint8), "label": label}
    found = modalities.to_model_batch(specs.images((2, 2, 1), classes=4), batch)
    assert found["label"] is label
    np.testing.assert_array_equal(found["x"], -np.ones((4, 2, 2, 1), np.float32))


def test_both_domains_are_augmented_each_by_its_own_chance():
    images, settings = ramps(), {"flip": True, "shift": 0, "rotation": 0.0, "scale": 0.0}
    augmented = jax.jit(lambda b, k: modalities.augment_batch(TWO, b, k, settings))
    batch = augmented({"x": images, "other": images}, keys())
    flipped = [np.asarray(batch[k])[:, 0, 0, 0] > 0 for k in ("x", "other")]
    assert all(20 < f.sum() < 44 for f in flipped)
    assert 16 < (flipped[0] != flipped[1]).sum() < 48  # not one coin for both
    plain = modalities.of("image").to_model(images[:1])
    for name, of in zip(("x", "other"), flipped, strict=True):
        np.testing.assert_allclose(batch[name][~of], np.repeat(plain, (~of).sum(), 0), atol=1e-6)
        back = batch[name][of][:, :, ::-1]
        np.testing.assert_allclose(back, np.repeat(plain, of.sum(), 0), atol=1e-6)


def test_a_domain_that_a_batch_lacks_needs_no_key():
    images, settings = ramps(8), {"flip": True}
    alone = modalities.augment_batch(TWO, {"x": images}, {"x": keys()["x"]}, settings)
    both = modalities.augment_batch(TWO, {"x": images, "other": images}, keys(), settings)
    assert alone.keys() == {"x"}
    np.testing.assert_array_equal(alone["x"], both["x"])


def test_points_pass_and_cannot_be_augmented():
    points = mixtures.arrays("grid", "test")[:16]
    batch = {"x": jnp.asarray(points)}
    off = {"flip": False, "shift": 0, "rotation": 0.0, "scale": 0.0}
    found = modalities.augment_batch(specs.points(), batch, keys(), off)
    np.testing.assert_array_equal(found["x"], points)
    with pytest.raises(ValueError, match="points of the plane cannot be augmented"):
        modalities.augment_batch(specs.points(), batch, keys(), off | {"flip": True})
