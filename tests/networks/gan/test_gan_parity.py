"""The DCGAN and the residual GAN are the networks that their papers' code builds, by torch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_gan_networks import inputs, shapes, size_of, variables_of

from aigc_jax.networks.gan import dcgan, resnet


def torch_dcgan(torch, size, latent, width, channels):
    """The pair of PyTorch's examples, for any power of two."""
    n, nn = size.bit_length() - 3, torch.nn
    up, down = [], []
    for i in range(n + 1):
        inside = width << (n - i)
        layer = (latent, inside // 2, 4, 1, 0) if i == 0 else (inside, inside // 2, 4, 2, 1)
        layer = layer if i < n else (width, channels, 4, 2, 1)
        up += [nn.ConvTranspose2d(*layer, bias=False)]
        up += [nn.BatchNorm2d(inside // 2), nn.ReLU()] if i < n else [nn.Tanh()]
    for i in range(n):
        inside = channels if i == 0 else width << (i - 1)
        down += [nn.Conv2d(inside, width << i, 4, 2, 1, bias=False)]
        down += [nn.BatchNorm2d(width << i)] if i > 0 else []
        down += [nn.LeakyReLU(0.2)]
    down += [nn.Conv2d(width << (n - 1), 1, 4, 1, 0, bias=False), nn.Flatten(0)]
    return nn.Sequential(*up), nn.Sequential(*down)


def from_torch_dcgan(theirs, generator):
    """Our variables from one of that pair."""
    layers = [m for m in theirs if hasattr(m, "weight")]
    params, stats, norms, kernels = {}, {}, 1 - generator, 0
    last = sum(m.weight.ndim == 4 for m in layers) - 1
    for layer in layers:
        weight = layer.weight.detach().numpy()
        if weight.ndim == 1:
            params[f"norm_{norms}"] = {"scale": weight, "bias": layer.bias.detach().numpy()}
            moments = layer.running_mean.numpy().copy(), layer.running_var.numpy().copy()
            stats[f"norm_{norms}"] = dict(zip(("mean", "var"), moments, strict=True))
            norms += 1
            continue
        weight = weight.transpose(2, 3, 0, 1) if generator else weight.transpose(2, 3, 1, 0)
        name = "out" if kernels == last else f"down_{kernels}"
        if generator:
            name = "in" if kernels == 0 else "out" if kernels == last else f"up_{kernels - 1}"
        if name == "in":  # [latent, 4 x 4 x C]
            weight = weight.transpose(2, 0, 1, 3).reshape(weight.shape[2], -1)
        elif name == "out" and not generator:
            weight = weight.reshape(-1, 1)
        params[name] = {"kernel": weight}
        kernels += 1
    return {"params": params, "batch_stats": stats}


def test_dcgan_has_the_parameters_of_pytorchs_examples():
    torch = pytest.importorskip("torch")
    pair = torch_dcgan(torch, 64, 100, 64, 3)
    expected = [sum(p.numel() for p in net.parameters()) for net in pair]
    assert expected == [3_576_704, 2_765_568]
    assert [size_of(shapes(net)) for net in (dcgan.Generator(), dcgan.Discriminator())] == expected


@pytest.mark.parametrize("sides", [(16, 16), (15, 13)])  # the second inside 16x16
def test_dcgan_is_the_network_of_pytorchs_examples(sides):
    torch = pytest.importorskip("torch")
    rows, columns = ((16 - side) // 2 for side in sides)
    inside = np.s_[..., rows : rows + sides[0], columns : columns + sides[1]]
    torch.manual_seed(0)
    pair = torch_dcgan(torch, 16, 5, 4, 3)
    with torch.no_grad():
        for p in [p for net in pair for p in net.parameters()]:
            p.add_(0.3 * torch.randn_like(p))
    made = dcgan.Generator(shape=(*sides, 3), latent=5, width=4)
    judge = dcgan.Discriminator(shape=(*sides, 3), width=4)
    z = inputs(made, 6)
    tensor = torch.from_numpy(z)[:, :, None, None]
    images = np.random.default_rng(4).normal(size=(6, *sides, 3)).astype(np.float32)
    filled = torch.zeros(6, 3, 16, 16)
    filled[inside] = torch.from_numpy(images.transpose(0, 3, 1, 2))
    for net, theirs, ours_in, theirs_in in (
        (made, pair[0], z, tensor),
        (judge, pair[1], images, filled),
    ):
        variables = from_torch_dcgan(theirs, net is made)
        assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, shapes(net))
        with torch.no_grad():
            trained = theirs.train()(theirs_in).numpy()
            stored = theirs.eval()(theirs_in).numpy()

        out = jax.jit(functools.partial(net.apply, train=True))(variables, ours_in)
        # Torch's stored variances, which are not ours: see ConditionalBatchNorm.
        out2 = jax.jit(net.apply)(from_torch_dcgan(theirs, net is made), ours_in)
        for found, expected in ((out, trained), (out2, stored)):
            if net is made:
                found, expected = found.transpose(0, 3, 1, 2), expected[inside]
            else:
                found = found[0]
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_the_resnet_is_the_one_of_the_papers_written_with_torch():
    torch = pytest.importorskip("torch")
    functional, shape = torch.nn.functional, (32, 32, 3)
    made = resnet.Generator(shape=shape, latent=5, width=4)
    judge = resnet.Discriminator(shape=shape, width=4, norm="none")
    variables, judged = variables_of(made), variables_of(judge)
    rng = np.random.default_rng(5)
    stats = jax.tree.map(
        lambda a: a + rng.uniform(size=a.shape).astype(np.float32), variables["batch_stats"]
    )
    variables = variables | {"batch_stats": stats}

    def tensors(tree):
        return jax.tree.map(lambda a: torch.from_numpy(np.array(a)), tree)

    def conv(h, layer):
        kernel = layer["kernel"]
        kernel = kernel[None, None] if kernel.ndim == 2 else kernel
        kernel = kernel.permute(3, 2, 0, 1)
        return functional.conv2d(h, kernel, layer["bias"], padding=kernel.shape[-1] // 2)

    def norm(h, layer, state):
        moments = state["mean"], state["var"]
        h = functional.batch_norm(h, *moments, layer["scale"], layer["bias"], eps=1e-5)
        return functional.relu(h)

    def up(h, block, state):
        def doubled(h):
            return functional.interpolate(h, scale_factor=2)

        x = h
        h = conv(doubled(norm(h, block["norm1"], state["norm1"])), block["conv1"])
        h = conv(norm(h, block["norm2"], state["norm2"]), block["conv2"])
        return h + conv(doubled(x), block["shortcut"])

    def down(h, block, first):
        x, h = h, h if first else functional.relu(h)
        h = conv(functional.relu(conv(h, block["conv1"])), block["conv2"])
        if "shortcut" not in block:
            return x + h
        return functional.avg_pool2d(h + conv(x, block["shortcut"]), 2)

    z = inputs(made)
    p, state = tensors(variables["params"]), tensors(variables["batch_stats"])
    h = torch.from_numpy(z) @ p["in"]["kernel"] + p["in"]["bias"]
    h = h.reshape(4, 4, 4, 4).permute(0, 3, 1, 2)
    for i in range(3):
        h = up(h, p[f"up_{i}"], state[f"up_{i}"])
    expected = torch.tanh(conv(norm(h, p["norm_out"], state["norm_out"]), p["out"]))
    images = jax.jit(made.apply)(variables, z)
    np.testing.assert_allclose(images.transpose(0, 3, 1, 2), expected, rtol=1e-4, atol=1e-4)

    p = tensors(judged["params"])
    h = expected
    for name in ("down_0", "down_1", "block_0", "block_1"):
        h = down(h, p[name], first=name == "down_0")
    h = functional.relu(h)
    for pool, pooled in (("sum", h.sum((2, 3))), ("mean", h.mean((2, 3)))):
        expected = (pooled @ p["out"]["kernel"] + p["out"]["bias"])[:, 0]
        logits, _ = jax.jit(judge.clone(pool=pool).apply)(judged, images)
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
