"""Points of the plane as data: the mixture itself, opened by name, on the way to a model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import specs

from aigc_jax import modalities
from aigc_jax.data import datasets, loader, mixtures
from aigc_jax.data.images import DataError
from aigc_jax.evaluation.metrics import classes


@pytest.mark.parametrize(("name", "k"), [("ring", 8), ("grid", 25)])
def test_points_are_the_mixture_itself(name, k):
    centres, std = mixtures.MIXTURES[name]()
    train, test = (mixtures.arrays(name, split) for split in ("train", "test"))
    assert (train.shape, test.shape) == ((100_000, 2), (10_000, 2))
    assert train.dtype == np.float32
    np.testing.assert_array_equal(train, mixtures.arrays(name, "train"))
    assert not np.isin(test[:, 0], train[:, 0]).all()
    mode, _ = classes.mixture_modes(train, centres, std)
    coverage = classes.mode_coverage(mode, np.ones(k))
    assert coverage.covered == k
    assert coverage.kl == pytest.approx((k - 1) / 2 / len(train), rel=0.9)  # of equal chances
    offset = train - centres[mode]
    np.testing.assert_allclose(offset.mean(0), 0, atol=0.02 * std)
    np.testing.assert_allclose(np.cov(offset.T), std**2 * np.eye(2), atol=0.02 * std**2)


def test_a_data_set_of_points_is_loaded_by_name():
    dataset = datasets.load("grid", splits=("train[:300]", "train[300:]", "test"))
    assert dataset.spec == specs.points({"train[:300]": 300, "train[300:]": 99_700, "test": 10_000})
    batch = dataset.sources["train[:300]"].fetch(np.array([0, 299]))
    assert list(batch) == ["x"]
    np.testing.assert_array_equal(batch["x"], mixtures.arrays("grid", "train")[[0, 299]])
    rest = dataset.sources["train[300:]"].fetch(np.arange(1))
    np.testing.assert_array_equal(rest["x"], mixtures.arrays("grid", "train")[[300]])
    assert batch["x"].dtype == np.float32
    assert np.abs(mixtures.arrays("grid", "test")).max() > 4  # not squeezed into [-1, 1]


@pytest.mark.parametrize("options", [{"image_size": 8}, {"crop": 1}])
def test_points_have_no_size(options):
    with pytest.raises(DataError, match=r"'ring' has points: leave data\.image_size and"):
        datasets.load("ring", **options)


def test_points_reach_the_model_as_they_are():
    source = datasets.load("grid").sources["test"]
    batches = loader.batches(source, batch_size=16, seed=0)
    batch = next(batches)["x"][0]
    batches.close()
    every = {tuple(point) for point in source.x.tolist()}
    prepared = modalities.augment_batch(
        specs.points(), {"x": jnp.asarray(batch)}, {"x": jax.random.key(0)}, {"flip": False}
    )["x"]
    np.testing.assert_array_equal(prepared, batch)
    assert {tuple(point) for point in np.asarray(prepared).tolist()} <= every
    last = list(loader.epoch(source, batch_size=4096))[-1]
    np.testing.assert_array_equal(last["x"][: 10_000 - 8192], source.x[8192:])
