"""Feature networks by name, what they refuse, and features kept from one time to the next."""

import jax
import numpy as np
import pytest
from conftest import SHARED

from aigc_jax import judging
from aigc_jax.data import datasets, digits
from aigc_jax.evaluation import features
from aigc_jax.training import sharding


def train():
    return digits.arrays("train")


def load(name, weights=None):
    return features.load(name, weights, train, judging.cache_folder())


@pytest.fixture(scope="module")
def network():
    return load("digits")


def test_the_digits_network_reads_held_out_digits_and_is_the_same_each_time(network):
    images, labels = digits.arrays("test")
    found, logits = network.apply(network.variables, images.astype(np.float32))
    assert found.shape == (296, 64)
    assert (np.asarray(logits).argmax(1) == labels).mean() > 0.97
    assert load("digits").digest == network.digest


def test_the_digits_network_is_fitted_anew_to_the_same_bits_and_then_kept(tmp_path, network):
    fitted = []

    def counted():
        fitted.append(1)
        return train()

    for _ in range(2):
        assert features.load("digits", None, counted, tmp_path).digest == network.digest
    assert len(fitted) == 1


def test_three_digits_in_one_image_are_one_of_a_thousand_modes():
    path = SHARED / "weights" / "mnist_lenet.npz"
    if not path.is_file():
        pytest.skip(f"no {path} (set AIGC_SHARED)")
    lenet, stacked = (load(n, str(path)) for n in ("lenet", "stacked_lenet"))
    images = np.random.default_rng(0).uniform(0, 255, (2, 28, 28, 3)).astype(np.float32)
    channels = [lenet.apply(lenet.variables, images[..., c : c + 1]) for c in range(3)]
    found, logits = stacked.apply(stacked.variables, images)
    np.testing.assert_allclose(found, np.concatenate([f for f, _ in channels], 1), rtol=1e-5)
    a, b, c = (np.asarray(jax.nn.softmax(logit)) for _, logit in channels)
    joint = np.einsum("na,nb,nc->nabc", a, b, c).reshape(2, 1000)
    np.testing.assert_allclose(np.asarray(jax.nn.softmax(logits)), joint, atol=1e-6)
    assert stacked.digest != lenet.digest


@pytest.mark.parametrize("shape", [(28, 28, 1), (8, 8, 3)])
def test_images_of_another_size_or_channel_count_are_refused(network, shape):
    with pytest.raises(ValueError, match=r"'digits' takes images of 8x8x1, not .*set evaluation"):
        network.check(shape)
    network.check((8, 8, 1))


def test_inception_takes_any_size_in_colour_or_grey(network):
    any_size = network._replace(name="inception", shape=(0, 0, 3))
    for shape in ((32, 32, 3), (8, 8, 1), (109, 89, 3)):
        any_size.check(shape)
    with pytest.raises(ValueError, match="anyxanyx3, not 8x8x2"):
        any_size.check((8, 8, 2))


def test_an_unknown_network_and_missing_weights_say_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="is one of inception, resnet56"):
        load("vgg")
    monkeypatch.delenv("AIGC_WEIGHTS", raising=False)
    with pytest.raises(FileNotFoundError, match=r"evaluation.weights, or .*\$AIGC_WEIGHTS"):
        load("inception")
    monkeypatch.setenv("AIGC_WEIGHTS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"at {tmp_path}/cifar10_resnet56.npz: give"):
        load("resnet56")


def test_weights_of_another_network_are_refused(tmp_path):
    np.savez(tmp_path / "other.npz", conv=np.zeros((3, 3)))
    for name in ("inception", "resnet56", "lenet"):
        with pytest.raises(ValueError, match=r"other|another|absent|lack|miss"):
            load(name, str(tmp_path / "other.npz"))


def test_arrays_are_computed_once_and_a_damaged_file_is_redone(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return np.ones((3, 2), np.float32), np.zeros((3, 4), np.float32)

    for _ in range(2):
        first, _ = features.cached(tmp_path, "key", ("a", "b"), compute)
        assert first.shape == (3, 2)
    assert len(calls) == 1
    (tmp_path / "key.npz").write_bytes(b"PK half a file")
    with pytest.warns(UserWarning, match="damaged: computed again"):
        _, second = features.cached(tmp_path, "key", ("a", "b"), compute)
    assert second.shape == (3, 4)
    features.cached(tmp_path, "key", ("a", "b"), compute)
    assert len(calls) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["key.npz"]


def test_some_indices_are_the_same_each_time_and_all_where_fewer():
    chosen = features.some(1000, 500)
    assert chosen.tolist() == features.some(1000, 500).tolist() == sorted(set(chosen))
    assert np.bincount(chosen % 4).min() > 100  # whatever order the data lie in
    assert features.some(3, 8).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="no images"):
        features.extract(lambda x: x, [])


def config(**changes):
    setting = {"network": "digits", "weights": None} | changes
    return {"evaluations": ("fid",), "evaluation": setting, "data": {"name": "digits"}}


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 64), (8, 64), (8, 20), (1, 7)])
def test_features_do_not_depend_on_devices_or_batches(network, devices, batch_size):
    dataset = datasets.load("digits", splits=("test",))
    mesh = sharding.make_mesh(jax.devices()[:devices])
    eye = judging.open_eye(config(), dataset, mesh, batch_size)
    images = dataset.sources["test"].fetch(np.arange(50))["image"]
    found = eye.extract([images[:33], images[33:]])  # neither a multiple of the batch
    expected = network.apply(network.variables, images.astype(np.float32))
    np.testing.assert_allclose(found.features, expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.logits, expected[1], rtol=1e-4, atol=1e-5)


def test_another_network_or_other_images_have_another_file(tmp_path, monkeypatch):
    monkeypatch.setenv("AIGC_CACHE", str(tmp_path))
    dataset = datasets.load("digits", splits=("test",))
    mesh = sharding.make_mesh()
    eye = judging.open_eye(config(), dataset, mesh)
    judging.split_of(config(), dataset, eye, "test").features()
    (first,) = (tmp_path / "features").iterdir()
    for word in ("digits-test-296-8x8x1-digits", eye.network.digest):
        assert word in first.name
    judging.split_of(config(), dataset, eye, "test").features()
    assert len(list((tmp_path / "features").iterdir())) == 1
    other = eye._replace(network=eye.network._replace(preprocessing="2"))
    judging.split_of(config(), dataset, other, "test").features()
    assert len(list((tmp_path / "features").iterdir())) == 2
    source = dataset.sources["test"]

    class Inverted:
        def __len__(self):
            return len(source)

        def fetch(self, indices):
            rows = source.fetch(indices)
            return {**rows, "image": 255 - rows["image"]}

    inverted = dataset._replace(sources={"test": Inverted()})
    judging.split_of(config(), inverted, eye, "test").features()
    assert len(list((tmp_path / "features").iterdir())) == 3
