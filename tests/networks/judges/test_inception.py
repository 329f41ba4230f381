"""Inception against torch-fidelity's, on random weights that both read from one legacy file."""

from typing import NamedTuple

import jax
import numpy as np
import oracles
import pytest

from aigc_jax.formats import torch_file
from aigc_jax.networks.judges import inception


class Pair(NamedTuple):
    """Their network, our apply and variables, the file's tensors."""

    theirs: object
    ours: object
    variables: dict
    tensors: dict


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Pair:
    theirs = oracles.torch_fidelity("feature_extractor_inceptionv3")
    import torch

    with pytest.MonkeyPatch.context() as patch:
        # No weights are published for tests, so the file is made of their own names and shapes.
        network = theirs.FeatureExtractorInceptionV3
        patch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(network, "load_state_dict", lambda *_, **__: None)
        empty = network("inception", ["2048"]).state_dict()
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    rng = np.random.default_rng(0)
    state = {name: torch.as_tensor(random(rng, name, value)) for name, value in empty.items()}
    torch.save(state, path, _use_new_zipfile_serialization=False)
    tensors = torch_file.read(path)
    return Pair(
        theirs.FeatureExtractorInceptionV3(
            "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
        ),
        jax.jit(inception.Inception().apply),
        inception.from_torch(tensors),
        tensors,
    )


def random(rng, name, value):
    """Every number random, at a scale that keeps the maps alive through 48 layers."""
    if name.endswith("num_batches_tracked"):
        return value
    if name.endswith((".bn.weight", "running_var")):
        array = rng.uniform(0.7, 1.3, value.shape)
    elif value.ndim == 1:
        array = rng.normal(0, 0.1, value.shape)
    else:
        array = rng.normal(0, np.sqrt(2 / np.prod(value.shape[1:])), value.shape)
    return array.astype(np.float32)


def images(size):
    """A dark ramp with little noise, and noise alone: their features must differ by much."""
    rng = np.random.default_rng(size)
    ramp = np.linspace(0, 60, size)[None, :, None] + rng.uniform(0, 9, (size, size, 3))
    return np.stack([ramp, rng.uniform(0, 256, (size, size, 3))]).astype(np.uint8)


def relative(ours, theirs):
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


@pytest.mark.parametrize("size", [32, 299])
def test_features_and_logits_are_those_of_torch_fidelity(pair, size):
    import torch

    x = images(size)
    theirs = [y.numpy() for y in pair.theirs(torch.as_tensor(x).permute(0, 3, 1, 2))]
    ours = [np.asarray(y) for y in pair.ours(pair.variables, x.astype(np.float32))]
    for y, expected, width in zip(ours, theirs, (2048, 1008), strict=True):
        assert y.shape == expected.shape == (2, width)
        assert y.dtype == np.float32
        # The comparison means something: alive, not saturated, and of these two images.
        assert 0.1 < np.abs(expected).max() < 1e3
        assert relative(expected[:1], expected[1:]) > 0.05
        assert relative(y, expected) < 1e-5


@pytest.mark.parametrize(
    ("height", "width", "size"), [(32, 32, 299), (28, 40, 64), (331, 512, 299)]
)
def test_resize_is_that_of_tensorflow_1(height, width, size):
    theirs = oracles.torch_fidelity("interpolate_compat_tensorflow")
    import torch

    x = np.random.default_rng(0).integers(0, 256, (2, height, width, 3)).astype(np.float32)
    expected = theirs.interpolate_bilinear_2d_like_tensorflow1x(
        torch.as_tensor(x).permute(0, 3, 1, 2), size=(size, size), align_corners=False
    )
    y = inception.resize_tf1(x, size)
    assert y.shape == (2, size, size, 3)
    np.testing.assert_allclose(y, expected.permute(0, 2, 3, 1).numpy(), rtol=0, atol=1e-4)


def test_resize_by_hand():
    """Output i lies at input i * 2 / 4; behind the last pixel there is only that pixel."""
    x = np.array([[0.0, 8.0], [4.0, 12.0]], np.float32).reshape(1, 2, 2, 1)
    y = np.asarray(inception.resize_tf1(x, 4))[0, :, :, 0]
    np.testing.assert_array_equal(y[0], [0, 4, 8, 8])
    np.testing.assert_array_equal(y[:, 0], [0, 2, 4, 4])
    np.testing.assert_array_equal(inception.resize_tf1(x, 1)[0, :, :, 0], [[0]])
    assert inception.resize_tf1(x, 2) is x


def test_other_weights_are_named(pair):
    tensors = dict(pair.tensors)
    extras = {"AuxLogits.fc.weight": np.zeros(3), "fc.bias": np.zeros(1008)}
    inception.from_torch({**tensors, **extras})
    kernel = tensors.pop("Mixed_6b.branch7x7_2.conv.weight")
    assert kernel.shape == (128, 128, 1, 7)
    with pytest.raises(ValueError, match=r"1 missing: Mixed_6b.branch7x7_2.conv.weight$"):
        inception.from_torch(tensors)
    torchvision = {**pair.tensors, "fc.weight": np.zeros((1000, 2048), np.float32)}
    with pytest.raises(ValueError, match=r"fc.weight \(1000, 2048\), not \(1008, 2048\)"):
        inception.from_torch(torchvision)
    with pytest.raises(
        ValueError, match="not the weights of the FID Inception network: 471 missing"
    ):
        inception.from_torch({"conv1.weight": np.zeros((16, 3, 3, 3), np.float32)})
