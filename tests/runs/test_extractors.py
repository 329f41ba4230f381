"""Feature networks on devices: opened once, the same values on any of them, features in files."""

import jax
import numpy as np
import pytest

from aigc_jax.data import datasets
from aigc_jax.evaluation import features
from aigc_jax.runs.examples import RealData
from aigc_jax.runs.extractors import FeatureExtractors, extractor, real_split
from aigc_jax.training import sharding

DIGITS = datasets.load("digits", splits=("test",))
DATA = RealData("digits", DIGITS, "test", "test", 64)


@pytest.fixture(scope="module")
def opened():
    return FeatureExtractors(sharding.make_mesh()).open("digits", None, (8, 8, 1))


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 64), (8, 64), (8, 20), (1, 7)])
def test_features_do_not_depend_on_devices_or_batches(opened, devices, batch_size):
    network = opened.network
    mesh = sharding.make_mesh(jax.devices()[:devices])
    extract = extractor(network, mesh, batch_size)
    images = DIGITS.sources["test"].fetch(np.arange(50))["x"]
    expected = network.apply(network.variables, images.astype(np.float32))
    whole = extract(images)
    parts = extract.of_batches([images[:33], images[33:]])  # neither a multiple of the batch
    for found in (whole, parts):
        np.testing.assert_allclose(found.features, expected[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.logits, expected[1], rtol=1e-4, atol=1e-5)


def test_one_program_serves_any_number_of_images(opened):
    extract = extractor(opened.network, sharding.make_mesh(), 16)
    for n in (3, 16, 40, 5):
        assert extract(np.zeros((n, 8, 8, 1), np.uint8)).features.shape == (n, 64)
    assert extract.run.func._cache_size() == 1


def test_without_images_there_are_no_features(opened):
    with pytest.raises(ValueError, match="no images"):
        opened.of_batches([])
    with pytest.raises(ValueError, match="no examples"):
        opened(np.zeros((0, 8, 8, 1), np.uint8))


def test_a_network_is_opened_once_and_checked_before_it_is_read(monkeypatch):
    loaded, load = [], features.load

    def counted(name, *given):
        loaded.append(name)
        return load(name, *given)

    monkeypatch.setattr(features, "load", counted)
    monkeypatch.delenv("AIGC_WEIGHTS", raising=False)
    extractors = FeatureExtractors(sharding.make_mesh())
    first = extractors.open("digits", None, (8, 8, 1))
    assert extractors.open("digits", None, (8, 8, 1)) is first
    assert loaded == ["digits"]
    with pytest.raises(ValueError, match="'digits' takes images of 8x8x1, not 28x28x1"):
        extractors.open("digits", None, (28, 28, 1))
    with pytest.raises(ValueError, match="'lenet' takes images of 28x28x1, not 8x8x1"):
        extractors.open("lenet", None, (8, 8, 1))  # its weights are missing too
    assert loaded == ["digits"]
    with pytest.raises(FileNotFoundError, match="no weights of feature network 'lenet'"):
        extractors.open("lenet", None, (28, 28, 1))


class Inverted:
    """A source whose images are the negatives of another's."""

    def __init__(self, source):
        self._source = source

    def __len__(self):
        return len(self._source)

    def fetch(self, indices):
        rows = self._source.fetch(indices)
        return {**rows, "x": 255 - rows["x"]}


def test_another_network_or_other_images_have_another_file(opened, tmp_path, monkeypatch):
    monkeypatch.setenv("AIGC_CACHE", str(tmp_path))
    split = real_split(DATA, "test", opened)
    assert (split.name, split.size) == ("digits test", 296)
    found = split.features
    (first,) = (tmp_path / "features").iterdir()
    for word in ("digits-test-296-8x8x1-digits", opened.digest):
        assert word in first.name
    again = real_split(DATA, "test", opened).features
    np.testing.assert_array_equal(again.features, found.features)
    assert len(list((tmp_path / "features").iterdir())) == 1
    with monkeypatch.context() as elsewhere:  # another process lacks the file: all compute
        elsewhere.setattr(sharding, "on_all", lambda found: not found)
        anew = found._replace(logits=np.zeros(3))
        elsewhere.setattr(type(opened), "of_batches", lambda self, batches: anew)
        assert real_split(DATA, "test", opened).features.logits.shape == (3,)
    other = opened._replace(network=opened.network._replace(preprocessing="2"))
    assert other.network.digest != opened.digest
    assert real_split(DATA, "test", other).features.features.shape == (296, 64)
    assert len(list((tmp_path / "features").iterdir())) == 2
    inverted = DIGITS._replace(sources={"test": Inverted(DIGITS.sources["test"])})
    assert real_split(DATA._replace(dataset=inverted), "test", opened).moments[0].shape == (64,)
    assert len(list((tmp_path / "features").iterdir())) == 3
