"""R3GAN: published sizes, resampling and grouped convolutions, and parity with plain PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from aigc_jax.networks.gan import r3gan
from aigc_jax.networks.gan.r3gan import Block, Discriminator, Generator, downsample, upsample

TINY = {
    "shape": (16, 8, 2),
    "widths": (8, 8, 4),
    "blocks": (1, 2, 1),
    "cardinality": (2, 4, 1),
    "dtype": "float32",
}
GENERATOR = {**TINY, "latent": 3, "embed": 5}
LABEL = jnp.array([0, 2])
# Its random numbers compile several times faster on a CPU than the usual key's.
KEY = jax.random.key(0, impl="rbg")


def draw(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def inputs(net, batch=2):
    shape = (net.latent,) if isinstance(net, Generator) else net.shape
    return draw(batch, *shape)


def shapes(net, label=None):
    return jax.eval_shape(net.init, KEY, inputs(net), label)["params"]


def size_of(params):
    return sum(a.size for a in jax.tree.leaves(params))


def random_like(params, seed=2):
    """Noise in every tensor: zero-initialised ones hide what is before them."""
    rng = np.random.default_rng(seed)

    def noise_like(a):
        noise = rng.normal(size=a.shape).astype(np.float32)
        return noise / np.sqrt(max(a.size // a.shape[-1], 1), dtype=np.float32)

    return jax.tree.map(noise_like, params)


def test_the_presets_for_cifar_have_the_published_sizes():
    generator, judge = Generator(num_classes=10), Discriminator(num_classes=10)
    label = jnp.zeros(2, jnp.int32)
    params = shapes(generator, label)
    # 1x1, 16 channels a group, 1x1 and two biases.
    block = 2 * 768 * 1536 + 9 * 16 * 1536 + 2 * 1536
    assert size_of(params) == 8 * block + (64 + 64 + 16 + 3) * 768 + 10 * 64 == 20_781_952
    assert size_of(shapes(generator.clone(num_classes=0))) == 20_781_952 - 64 * (768 + 10)
    assert size_of(shapes(judge)) == 8 * block + (3 + 16 + 1) * 768 == 20_683_776
    judge = judge.clone(conditioning="projection")
    size = 8 * block + (3 + 16 + 768 + 10) * 768
    assert size_of(shapes(judge, label)) == size == 21_280_512
    one = jax.ShapeDtypeStruct((1, 64), jnp.float32)
    lowered = jax.jit(generator.apply).lower({"params": params}, one, label[:1])
    assert lowered.cost_analysis()["flops"] == pytest.approx(14.05e9, rel=5e-3)


def filtered(x):
    """The filter [1, 2, 1] / 4 along both axes of a map that zeros surround."""
    line = np.array([1.0, 2.0, 1.0]) / 4
    kernel = np.outer(line, line)[None, :, :, None]
    return ndimage.convolve(np.asarray(x, np.float64), kernel, mode="constant")


def test_resampling_is_a_filter_beside_nearest_neighbours_and_means():
    x = draw(2, 6, 4, 3)
    larger = filtered(x.repeat(2, axis=1).repeat(2, axis=2))
    np.testing.assert_allclose(upsample(x), larger, atol=1e-6)
    smaller = filtered(x).reshape(2, 3, 2, 2, 2, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(downsample(x), smaller, atol=1e-6)


def test_resampling_in_closed_form():
    one = jnp.ones((1, 6, 6, 1))
    edge = np.array([0.75, *[1.0] * 10, 0.75])
    np.testing.assert_allclose(upsample(one)[0, :, :, 0], np.outer(edge, edge))
    edge = np.array([0.875, 1.0, 0.875])
    np.testing.assert_allclose(downsample(one)[0, :, :, 0], np.outer(edge, edge))
    pixel = jnp.zeros((1, 5, 5, 1)).at[0, 2, 2, 0].set(1.0)
    line = np.array([0.0, 3.0, 10.0, 3.0, 0.0]) / 16
    there_and_back = downsample(upsample(pixel))
    np.testing.assert_allclose(there_and_back[0, :, :, 0], np.outer(line, line), atol=1e-7)


def test_upsampling_is_four_times_the_transpose_of_downsampling():
    x, y = draw(2, 4, 6, 3), draw(2, 8, 12, 3)
    back = jax.jit(lambda y: jax.vjp(upsample, x)[1](y)[0])(y)
    np.testing.assert_allclose(back, 4 * downsample(y), atol=1e-5)
    for resample in (upsample, downsample):
        half = jax.eval_shape(resample, jnp.asarray(x, jnp.bfloat16))
        assert half.dtype == jnp.bfloat16


@pytest.mark.parametrize("form", [r3gan._by_matrices, r3gan._by_convolution, r3gan.grouped_conv])
def test_the_grouped_convolution_is_that_of_torch(form):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 4, 6)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 2, 12)).astype(np.float32)  # 3 groups of 2, to 3 of 4
    theirs = [
        torch.from_numpy(x.transpose(0, 3, 1, 2)),
        torch.from_numpy(kernel.transpose(3, 2, 0, 1)),
    ]
    for tensor in theirs:
        tensor.requires_grad_()
    expected = torch.nn.functional.conv2d(*theirs, padding=1, groups=3)
    expected.sin().sum().backward()
    value, back = jax.vjp(form, x, kernel)
    np.testing.assert_allclose(value.transpose(0, 3, 1, 2), expected.detach(), atol=1e-5)
    for found, tensor, axes in zip(
        back(jnp.cos(value)), theirs, ((0, 3, 1, 2), (3, 2, 0, 1)), strict=True
    ):
        np.testing.assert_allclose(found.transpose(axes), tensor.grad, atol=1e-4)


def test_an_accelerator_gets_the_convolution_and_a_cpu_the_products():
    args = jnp.zeros((1, 4, 4, 6)), jnp.zeros((3, 3, 2, 6))
    traced = jax.jit(r3gan.grouped_conv).trace(*args)
    for platform, has, lacks in (
        ("cpu", "dot_general", "convolution"),
        ("cuda", "convolution", "dot_general"),
        ("tpu", "convolution", "dot_general"),
    ):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert f"stablehlo.{has}" in text
        assert f"stablehlo.{lacks}" not in text


@pytest.mark.parametrize("kind", [Generator, Discriminator])
def test_at_first_the_output_does_not_depend_on_the_number_of_blocks(kind):
    net = kind(**(GENERATOR if kind is Generator else TINY))
    none, some = net.clone(blocks=(0, 0, 0)), net.clone(blocks=(1, 0, 2))
    x = inputs(net)

    @jax.jit
    def outputs(key):
        params = some.init(key, x)["params"]
        without = {k: v for k, v in params.items() if not k.startswith("block_")}
        assert len(params) == len(without) + 3
        changed = jax.tree.map(lambda a: a + 0.1, params)
        pairs = ((none, without), (some, params), (some, changed))
        return [jax.tree.leaves(n.apply({"params": p}, x))[0] for n, p in pairs]

    expected, out, changed = outputs(KEY)
    np.testing.assert_allclose(out, expected, atol=1e-6)
    assert np.abs(changed - out).max() > 0.1


def test_a_branch_starts_with_the_variance_that_many_of_them_add_up_to_one():
    block = Block(expanded=128, groups=4, depth=9)
    x = draw(8, 8, 8, 64)
    params = jax.jit(block.init)(KEY, x)["params"]
    assert np.abs(params["conv3"]["kernel"]).max() == 0
    gain = np.sqrt(2 / 1.04) * 9**-0.25
    for kernel, fan_in in ((params["conv1"]["kernel"], 64), (params["kernel"], 9 * 32)):
        assert kernel.std() == pytest.approx(gain / np.sqrt(fan_in), rel=0.03)
    unit = draw(128, 64) / np.sqrt(128)
    h = jax.jit(block.apply)({"params": params | {"conv3": {"kernel": unit}}}, x) - x
    # The borders see zeros.
    assert jnp.square(h[:, 1:-1, 1:-1]).mean() == pytest.approx(1 / 9, rel=0.2)


def torch_network(torch, params, *, net):
    """(generate, judge): the same networks in torch.nn.functional, channels first."""
    functional = torch.nn.functional
    p = jax.tree.map(lambda a: torch.from_numpy(np.array(a)), params)
    line = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    square = torch.outer(line, line)[None, None]

    def linear(h, name):
        kernel = p[name]["kernel"].T
        return functional.conv2d(h, kernel[:, :, None, None]) if h.ndim == 4 else h @ kernel.T

    def blocks(h, i):
        for j in range(net.blocks[i]):
            q = p[f"block_{i}_{j}"]
            r = functional.conv2d(h, q["conv1"]["kernel"].T[:, :, None, None], q["conv1"]["bias"])
            r = functional.conv2d(
                functional.leaky_relu(r, 0.2),
                q["kernel"].permute(3, 2, 0, 1),
                q["bias"],
                padding=1,
                groups=net.cardinality[i],
            )
            r = functional.leaky_relu(r, 0.2)
            h = h + functional.conv2d(r, q["conv3"]["kernel"].T[:, :, None, None])
        return h

    def resample(h, convolution, scale):
        b, c = h.shape[:2]
        y = convolution(h.reshape(b * c, 1, *h.shape[2:]), scale * square, stride=2, padding=1)
        return y.reshape(b, c, *y.shape[2:])

    def generate(z, label):
        h = linear(torch.cat([z, p["embedding"]["kernel"][label]], dim=1), "in")
        h = p["basis"].permute(2, 0, 1)[None] * h[:, :, None, None]
        for i in range(len(net.widths)):
            if i > 0:
                h = linear(h, f"to_{i}") if f"to_{i}" in p else h
                h = resample(h, functional.conv_transpose2d, 4)
            h = blocks(h, i)
        return linear(h, "out").permute(0, 2, 3, 1)

    def judge(x, label):
        h = linear(x.permute(0, 3, 1, 2), "in")
        for i in reversed(range(len(net.widths))):
            if i < len(net.widths) - 1:
                h = resample(h, functional.conv2d, 1)
                h = linear(h, f"to_{i}") if f"to_{i}" in p else h
            h = blocks(h, i)
        basis = p["basis"].permute(2, 0, 1)[:, None]
        h = linear(functional.conv2d(h, basis, groups=h.shape[1])[:, :, 0, 0], "out")
        return h[:, 0] if label is None else (h * p["embedding"]["kernel"][label]).sum(dim=1)

    return generate, judge


@pytest.mark.parametrize("kind", ["generator", "unconditional", "projection"])
def test_parity_with_plain_pytorch(kind):
    torch = pytest.importorskip("torch")
    label = None if kind == "unconditional" else LABEL
    if kind == "generator":
        net = Generator(**GENERATOR, num_classes=3)
    else:
        conditioning = "projection" if kind == "projection" else "none"
        net = Discriminator(**TINY, num_classes=3, conditioning=conditioning)
    params = random_like(shapes(net, label))
    assert {"to_2", "to_1"} & set(params) == ({"to_2"} if kind == "generator" else {"to_1"})
    out = jax.tree.leaves(jax.jit(net.apply)({"params": params}, inputs(net), label))
    theirs = torch_network(torch, params, net=net)[kind != "generator"]
    expected = theirs(
        torch.from_numpy(np.array(inputs(net))), None if label is None else np.array(label)
    )
    assert len(out) == 1
    assert out[0].shape == ((2, 16, 8, 2) if kind == "generator" else (2,))
    np.testing.assert_allclose(out[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["generator", "projection"])
def test_gradients_reach_every_parameter_and_bfloat16_rounds_only_activations(kind):
    if kind == "generator":
        net = Generator(**GENERATOR, num_classes=3)
    else:
        net = Discriminator(**TINY, num_classes=3, conditioning="projection")
    half = net.clone(dtype="bfloat16")
    assert {a.dtype for a in jax.tree.leaves(shapes(half, LABEL))} == {jnp.dtype("float32")}
    params, x = random_like(shapes(net, LABEL)), inputs(net)

    def total(params, x, net):
        return jnp.square(jax.tree.leaves(net.apply({"params": params}, x, LABEL))[0]).sum()

    @jax.jit
    def both(params):
        out = [jax.tree.leaves(n.apply({"params": params}, x, LABEL))[0] for n in (net, half)]
        # As of a penalty on the gradient by the images.
        slope = jax.grad(functools.partial(total, net=net), argnums=1)
        return out, jax.grad(lambda p: jnp.square(slope(p, x)).sum())(params)

    (exact, rounded), grads = both(params)
    assert exact.dtype == rounded.dtype == jnp.float32
    assert 1e-5 < np.abs(exact - rounded).max() / np.abs(exact).max() < 0.1
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(g).all(), jax.tree_util.keystr(path)
        assert np.abs(g).max() > 0, jax.tree_util.keystr(path)


@pytest.mark.parametrize(
    ("net", "label", "words"),
    [
        (Discriminator(**TINY, conditioning="projection"), LABEL, "'projection' needs data with"),
        (
            Discriminator(**TINY, conditioning="concat"),
            LABEL,
            "is one of none, projection, not 'concat'",
        ),
        (Discriminator(**TINY, num_classes=3, conditioning="projection"), None, "given no label"),
        (Generator(**GENERATOR), LABEL, "num_classes=0"),
        (Generator(**GENERATOR, num_classes=3), None, "num_classes=3"),
        (Generator(**{**GENERATOR, "blocks": (1, 1)}), None, r"blocks=\(1, 1\) .* of one length"),
        (Generator(**{**GENERATOR, "cardinality": (1, 5, 1)}), None, "5 groups do not divide 16"),
        (
            Generator(**{**GENERATOR, "shape": (8, 6, 1)}),
            None,
            "8x6, .*widths=.* 2 times, which 6 does",
        ),
        (
            Discriminator(**{**TINY, "shape": (8, 6, 1)}),
            None,
            "8x6, .*widths=.* 2 times, which 6 does",
        ),
    ],
)
def test_what_does_not_fit_is_an_error(net, label, words):
    with pytest.raises(ValueError, match=words):
        shapes(net, label)


def test_images_of_another_shape_are_an_error():
    with pytest.raises(ValueError, match=r"shape \(16, 8, 2\), not \(8, 8, 2\)"):
        jax.eval_shape(Discriminator(**TINY).init, KEY, jnp.zeros((1, 8, 8, 2)))
