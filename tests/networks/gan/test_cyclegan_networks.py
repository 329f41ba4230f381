"""The networks of CycleGAN: parity with PyTorch, published sizes, and what a logit sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.networks.gan.cyclegan import NORMS, Discriminator, Generator, instance_norm

SMALL = Generator(image_shape=(16, 16, 2), out_channels=3, width=4, blocks=2)
JUDGE = Discriminator(image_shape=(32, 40, 2), width=3)
# Its random numbers compile several times faster on a CPU than the usual key's.
KEY = jax.random.key(0, impl="rbg")


def images(net, batch=2, *, sizes=None):
    shape = (*(sizes or net.image_shape[:2]), net.image_shape[-1])
    return np.random.default_rng(1).uniform(-1, 1, (batch, *shape)).astype(np.float32)


def variables_of(net):
    return jax.eval_shape(net.init, KEY, images(net))


def torch_generator(torch, *, channels=(3, 3), width=64, blocks=9):
    """The published generator, from its description."""
    nn = torch.nn

    def with_norm(*layers, features):
        return [*layers, nn.InstanceNorm2d(features), nn.ReLU()]

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            layers = [nn.ReflectionPad2d(1), nn.Conv2d(4 * width, 4 * width, 3)]
            layers = with_norm(*layers, features=4 * width)
            layers += [nn.ReflectionPad2d(1), nn.Conv2d(4 * width, 4 * width, 3)]
            self.branch = nn.Sequential(*layers, nn.InstanceNorm2d(4 * width))

        def forward(self, x):
            return x + self.branch(x)

    first = [nn.ReflectionPad2d(3), nn.Conv2d(channels[0], width, 7)]
    layers = with_norm(*first, features=width)
    for c in (width, 2 * width):
        layers += with_norm(nn.Conv2d(c, 2 * c, 3, stride=2, padding=1), features=2 * c)
    layers += [Residual() for _ in range(blocks)]
    for c in (4 * width, 2 * width):
        up = nn.ConvTranspose2d(c, c // 2, 3, stride=2, padding=1, output_padding=1)
        layers += with_norm(up, features=c // 2)
    last = [nn.ReflectionPad2d(3), nn.Conv2d(width, channels[1], 7), nn.Tanh()]
    return nn.Sequential(*layers, *last)


def torch_judge(torch, *, channels=3, width=64, norm="instance"):
    """The published discriminator, from its description."""
    nn = torch.nn
    layers = [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
    for c, stride in ((width, 2), (2 * width, 2), (4 * width, 1)):
        layers.append(nn.Conv2d(c, 2 * c, 4, stride=stride, padding=1))
        layers += [nn.InstanceNorm2d(2 * c)] if norm == "instance" else []
        layers.append(nn.LeakyReLU(0.2))
    return nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 4, padding=1))


def torch_size(make, **kwargs):
    """Parameters of a network that is never allocated."""
    torch = pytest.importorskip("torch")
    with torch.device("meta"):
        return sum(p.numel() for p in make(torch, **kwargs).parameters())


def from_torch(torch, theirs):
    """The convolutions of a torch network, in order: our leaves with noise in them."""
    convolutions = []
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_(std=0.3)
        for module in theirs.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
                axes = (2, 3, 1, 0) if isinstance(module, torch.nn.Conv2d) else (2, 3, 0, 1)
                kernel = module.weight.permute(*axes).numpy()
                convolutions.append({"kernel": kernel, "bias": module.bias.numpy()})
    return convolutions


def channels_first(x, torch):
    return torch.from_numpy(np.array(x.transpose(0, 3, 1, 2)))


def test_the_generator_is_the_published_one():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    theirs = torch_generator(torch, channels=(2, 3), width=4, blocks=2)
    convolutions = from_torch(torch, theirs)
    blocks = [f"block_{i}_conv{j}" for i in (0, 1) for j in (1, 2)]
    names = ["in", "down_0", "down_1", *blocks, "up_0", "up_1", "out"]
    params = dict(zip(names, convolutions, strict=True))
    expected_shapes = jax.tree.map(jnp.shape, variables_of(SMALL)["params"])
    assert jax.tree.map(jnp.shape, params) == expected_shapes
    x = images(SMALL, sizes=(16, 12))  # not the size of image_shape
    out = jax.jit(SMALL.apply)({"params": params}, x)
    with torch.no_grad():
        expected = theirs(channels_first(x, torch)).permute(0, 2, 3, 1)
    assert out.shape == (2, 16, 12, 3)
    assert out.dtype == jnp.float32
    assert 0.1 < np.abs(out).mean() < 0.9
    np.testing.assert_allclose(out, expected, atol=2e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_the_discriminator_is_the_published_one(norm):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    net = JUDGE.clone(norm=norm)
    theirs = torch_judge(torch, channels=2, width=3, norm=norm)
    names = ["conv_0", "conv_1", "conv_2", "conv_3", "out"]
    variables = {"params": dict(zip(names, from_torch(torch, theirs), strict=True))}
    expected_shapes = jax.tree.map(jnp.shape, variables_of(net))
    assert jax.tree.map(jnp.shape, variables) == expected_shapes
    x = images(net, 3)
    out, classes = jax.jit(net.apply)(variables, x)
    with torch.no_grad():
        expected = theirs(channels_first(x, torch))[:, 0]
    assert out.shape == (3, 2, 3)
    assert out.dtype == jnp.float32
    assert classes is None
    np.testing.assert_allclose(out, expected, rtol=1e-3, atol=1e-3)


def size_of(net):
    return sum(a.size for a in jax.tree.leaves(variables_of(net)["params"]))


@pytest.mark.parametrize(
    ("ours", "theirs", "published"),
    [
        (Generator(), {}, 11_378_179),
        (Generator(blocks=6, image_shape=(128, 128, 3)), {"blocks": 6}, 7_837_699),
        (Discriminator(), {}, 2_764_737),
    ],
)
def test_published_sizes(ours, theirs, published):
    size = torch_size(torch_generator if isinstance(ours, Generator) else torch_judge, **theirs)
    assert size_of(ours) == size == published


def test_more_layers_see_more_and_are_at_most_eight_times_as_wide():
    net = Discriminator(image_shape=(96, 96, 3), width=2, layers=5)
    params = variables_of(net)["params"]
    channels = [params[f"conv_{i}"]["bias"].shape[0] for i in range(6)]
    assert channels == [2, 4, 8, 16, 16, 16]
    out = jax.eval_shape(net.init_with_output, KEY, images(net))[0][0]
    assert out.shape == (2, 1, 1)


def test_instance_norm_leaves_each_channel_of_each_example_with_no_mean_and_variance_one():
    x = np.random.default_rng(0).normal(1000, 3, (2, 8, 6, 4)).astype(np.float32)
    h = np.asarray(instance_norm(x), np.float64)
    np.testing.assert_allclose(h.mean(axis=(1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(h.var(axis=(1, 2)), 1, atol=1e-3)


def test_instance_norm_computes_in_float32():
    x = np.random.default_rng(0).normal(100, 3, (2, 8, 6, 4))
    x = jnp.asarray(x, jnp.bfloat16)  # in steps of 1/2
    h = instance_norm(x)
    assert h.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        h.astype(jnp.float32), instance_norm(x.astype(jnp.float32)), rtol=4e-3, atol=1e-5
    )


def test_each_of_30x30_logits_sees_70x70_pixels_every_eighth():
    net = Discriminator(width=2, norm="none")  # a norm shows every pixel to every logit
    x = images(net, 1)

    @jax.jit
    def seen(key, row, column):
        variables = net.init(key, x)
        gradient = jax.grad(lambda x: net.apply(variables, x)[0][0, row, column])(x)
        return jnp.abs(gradient).sum(axis=(0, 3)) > 0

    assert jax.eval_shape(net.init_with_output, KEY, x)[0][0].shape == (1, 30, 30)
    for row, column in ((10, 15), (11, 14), (29, 0)):
        mask = np.zeros((256, 256), bool)
        top, left = 8 * row - 23, 8 * column - 23
        mask[max(top, 0) : top + 70, max(left, 0) : left + 70] = True
        np.testing.assert_array_equal(seen(KEY, row, column), mask)


def test_weights_start_as_published():
    nets = (
        Generator(image_shape=(8, 8, 3), width=8, blocks=0),
        Discriminator(image_shape=(8, 8, 3), width=16, layers=1),
    )
    params = {}
    for net in nets:
        params |= jax.jit(net.init)(KEY, images(net))["params"]
    for name, layer in params.items():
        assert layer["kernel"].std() == pytest.approx(0.02, rel=0.2), name
        assert np.abs(layer["bias"]).max() == 0, name


def test_no_norm_keeps_statistics():
    for net in (SMALL, *(JUDGE.clone(norm=norm) for norm in NORMS)):
        assert set(variables_of(net)) == {"params"}


@pytest.mark.parametrize("net", [SMALL, JUDGE])
def test_bfloat16_rounds_only_activations_and_gradients_reach_every_kernel(net):
    half, x = net.clone(dtype="bfloat16"), images(net)
    assert {a.dtype for a in jax.tree.leaves(variables_of(half))} == {jnp.dtype("float32")}

    @jax.jit
    def both(key):
        variables = net.init(key, x)
        # Larger weights than the first ones: the last map would hardly show the rounding.
        params = jax.tree.map(lambda a: 10 * a if a.ndim == 4 else a, variables["params"])

        def output(params, net):
            return jax.tree.leaves(net.apply({**variables, "params": params}, x))[0]

        grads = jax.grad(lambda p: jnp.square(output(p, net)).sum())(params)
        return output(params, net), output(params, half), grads

    exact, rounded, grads = both(KEY)
    assert rounded.dtype == jnp.float32
    assert 1e-4 < np.abs(exact - rounded).mean() / np.abs(exact).mean() < 0.1
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(g).all(), jax.tree_util.keystr(path)
        # A bias before an instance norm moves nothing.
        assert np.abs(g).max() > 0 or path[-1].key == "bias", jax.tree_util.keystr(path)


@pytest.mark.parametrize(
    ("net", "shape", "words"),
    [
        (SMALL, (1, 16, 16, 3), "have 3 channels, not 2"),
        (SMALL, (1, 16, 18, 2), "16x18: each side .* of 4"),
        (SMALL, (1, 4, 16, 2), "4x16: each side .* 8, 12"),
        (JUDGE, (1, 40, 32, 2), r"shape \(32, 40, 2\), not \(40, 32, 2\)"),
        (JUDGE.clone(norm="layer"), (1, 32, 40, 2), "norm is one of instance, none, not 'layer'"),
        (JUDGE.clone(norm="batch"), (1, 32, 40, 2), "norm is one of instance, none, not 'batch'"),
        (JUDGE.clone(layers=4), (1, 32, 40, 2), "32x40, .*layers=4 a side has at least 48 pixels"),
    ],
)
def test_what_does_not_fit_is_an_error(net, shape, words):
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(net.init, KEY, jnp.zeros(shape))
