"""The autoencoders: sizes, labels, dtypes, what they refuse, and parity with diffusers."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.networks.vae.autoencoder import MLP, Conv, Residual

TINY = {"width": 8, "multipliers": (1, 2), "blocks": 1, "groups": 4, "latent": 3}
KINDS = {
    "mlp": functools.partial(MLP, hidden=(16,), latent=5),
    "conv": functools.partial(Conv, widths=(4, 8), latent=5),
    "residual": functools.partial(Residual, **TINY),
}


def shapes(net, label=None):
    x = jnp.zeros((2, *net.shape))
    return jax.eval_shape(net.init, jax.random.key(0), x, label)["params"]


def random_like(params, seed=2):
    """Noise in every tensor: zero-initialised ones hide what is before them."""
    rng = np.random.default_rng(seed)

    def draw(path, a):
        noise = rng.normal(size=a.shape).astype(np.float32)
        if a.ndim == 1:
            return 0.1 * noise + (path[-1].key == "scale")
        return noise / np.sqrt(a.size / a.shape[-1], dtype=np.float32)

    return jax.tree_util.tree_map_with_path(draw, params)


def run(net, params, x, label=None):
    """(mean, logvar, decoded mean)."""

    @jax.jit
    def both(params, x, label):
        mean, logvar = net.apply(params, x, label, method="encode")
        return mean, logvar, net.apply(params, mean, label, method="decode")

    return both({"params": params}, x, label)


def images(net, batch=2):
    return jax.random.uniform(jax.random.key(1), (batch, *net.shape), minval=-1.0)


def size_of(params):
    return sum(a.size for a in jax.tree.leaves(params))


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_for_oblong_images_and_more_outputs_than_inputs(kind):
    net = KINDS[kind](shape=(8, 4, 2), out_channels=6)
    params = random_like(shapes(net))
    mean, logvar, out = run(net, params, images(net))
    assert mean.shape == logvar.shape == (2, *net.latent_shape)
    assert net.latent_shape == {"residual": (4, 2, 3)}.get(kind, (5,))
    assert out.shape == (2, 8, 4, 6)
    assert mean.dtype == logvar.dtype == out.dtype == jnp.float32
    assert np.abs(mean - logvar).max() > 1e-2
    assert np.abs(out[0] - out[1]).max() > 1e-3
    called = jax.jit(net.apply)({"params": params}, images(net))
    np.testing.assert_allclose(called, out, atol=1e-5)


def test_an_mlp_takes_points_as_images_of_one_pixel():
    net, pixel = (
        MLP(shape=shape, latent=3, hidden=(8,), out_channels=2) for shape in ((2,), (1, 1, 2))
    )
    params = random_like(shapes(net))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes(pixel))
    x = images(net, 5)
    found, expected = run(net, params, x), run(pixel, params, x[:, None, None])
    assert found[2].shape == (5, 2)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b.reshape(a.shape))


@pytest.mark.parametrize("kind", KINDS)
def test_labels_condition_the_encoder_and_the_decoder(kind):
    net = KINDS[kind](shape=(8, 8, 1), out_channels=1, num_classes=3)
    zero, one = jnp.zeros(2, jnp.int32), jnp.ones(2, jnp.int32)
    params = {"params": random_like(shapes(net, zero))}
    assert jax.tree.map(jnp.shape, shapes(net)) == jax.tree.map(jnp.shape, params["params"])

    @jax.jit
    def both(label):
        mean, logvar = net.apply(params, images(net), label, method="encode")
        z = jnp.ones((2, *net.latent_shape))
        return mean, logvar, net.apply(params, z, label, method="decode")

    for a, b in zip(both(zero), both(one), strict=True):
        assert np.abs(a - b).max() > 1e-3


def test_labels_shift_every_residual_block():
    params = shapes(KINDS["residual"](shape=(8, 8, 1), out_channels=1, num_classes=3))
    blocks = [
        v
        for part in params.values()
        for k, v in (part | part["middle"]).items()
        if "_block_" in k or k.startswith("block_")
    ]
    assert len(blocks) == 2 + 2 + 4 + 2  # the encoder, its middle, the decoder, its middle
    assert all(v["embedding"]["kernel"].shape[0] == 3 for v in blocks)


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_no_label_is_a_label_that_none_of_the_classes_is(kind):
    net = KINDS[kind](shape=(8, 8, 1), out_channels=1, num_classes=3)
    params, x = random_like(shapes(net)), images(net)
    none, three, zero = (
        run(net, params, x, label) for label in (None, jnp.full(2, 3), jnp.zeros(2, jnp.int32))
    )
    for a, b, c in zip(none, three, zero, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
        assert np.abs(a - c).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_fit_is_an_error(kind):
    net = KINDS[kind](shape=(8, 8, 1), out_channels=1)
    params = {"params": shapes(net)}
    with pytest.raises(ValueError, match="num_classes=0"):
        jax.eval_shape(net.apply, params, images(net), jnp.zeros(2, jnp.int32))
    with pytest.raises(ValueError, match=r"shape \(8, 8, 1\), not \(8, 4, 1\)"):
        jax.eval_shape(net.apply, params, jnp.zeros((2, 8, 4, 1)))


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (Conv(shape=(28, 30, 1)), r"28x30, .*widths=\(32, 64\).* 2 times, which 30 "),
        (Conv(shape=(2, 2, 1)), r"2x2, .* sizes that do: 4(\n|$)"),
        (Residual(shape=(30, 32, 3)), r"30x32, .*network\.multipliers=.*: 24 and 32(\n|$)"),
    ],
)
def test_images_that_cannot_be_halved_are_told_the_nearest_sizes(net, words):
    with pytest.raises(ValueError, match=words):
        shapes(net)


def test_an_unknown_activation_names_the_known_ones():
    with pytest.raises(ValueError, match=r"network\.activation is one of relu, tanh, not 'gelu'"):
        shapes(MLP(activation="gelu"))


@pytest.mark.parametrize("widths", [(784, 500, 20), (784, 200, 100, 50)])
def test_mlp_parameters_by_closed_form(widths):
    net = MLP(hidden=widths[1:-1], latent=widths[-1])
    down = (*widths[:-1], 2 * widths[-1])
    pairs = [*itertools.pairwise(down), *itertools.pairwise(widths[::-1])]
    assert size_of(shapes(net)) == sum(a * b + b for a, b in pairs)
    if widths == (784, 500, 20):
        assert size_of(shapes(net)) == 815_824


def test_the_mlp_is_matrix_products_between_its_activations():
    net = MLP(shape=(4, 2, 1), latent=2, hidden=(5, 4), activation="tanh", out_channels=3)
    params, x = random_like(shapes(net)), np.asarray(images(net), np.float64)
    mean, logvar, out = run(net, params, images(net))

    def layers(h, part):
        for name in ("hidden_0", "hidden_1"):
            h = np.tanh(h @ part[name]["kernel"] + part[name]["bias"].reshape(1, -1))
        return h @ part["out"]["kernel"] + part["out"]["bias"].reshape(1, -1)

    moments = layers((x.reshape(2, 8) + 1) / 2, params["encoder"])
    np.testing.assert_allclose(np.concatenate([mean, logvar], axis=1), moments, atol=1e-5)
    expected = layers(moments[:, :2], params["decoder"]).reshape(2, 4, 2, 3)
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_the_convolutional_network_for_mnist_goes_through_7x7x64():
    net = Conv()
    params = jax.tree.map(jnp.shape, shapes(net), is_leaf=lambda a: hasattr(a, "shape"))
    kernels = {(p, n): v["kernel"] for p, part in params.items() for n, v in part.items()}
    assert kernels == {
        ("encoder", "conv_0"): (3, 3, 1, 32),
        ("encoder", "conv_1"): (3, 3, 32, 64),
        ("encoder", "out"): (7 * 7 * 64, 40),
        ("decoder", "in"): (20, 7 * 7 * 64),
        ("decoder", "conv_1"): (3, 3, 64, 64),
        ("decoder", "conv_0"): (3, 3, 64, 32),
        ("decoder", "out"): (3, 3, 32, 1),
    }


def test_the_convolutions_halve_and_double_the_sides():
    net = Conv(shape=(8, 4, 2), latent=3, widths=(3, 4), out_channels=2)
    params = random_like(shapes(net))
    layout = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}

    def add(h, layer):
        return h + layer["bias"].reshape(*(1,) * (h.ndim - 1), -1)

    @jax.jit
    def by_hand(x):
        down, up = params["encoder"], params["decoder"]
        for layer in (down["conv_0"], down["conv_1"]):
            h = jax.lax.conv_general_dilated(x, layer["kernel"], (2, 2), "SAME", **layout)
            x = jax.nn.relu(add(h, layer))
        mean, logvar = jnp.split(add(x.reshape(2, -1) @ down["out"]["kernel"], down["out"]), 2, 1)
        h = jax.nn.relu(add(mean @ up["in"]["kernel"], up["in"])).reshape(2, 2, 1, 4)
        for layer in (up["conv_1"], up["conv_0"]):
            kernel, sides = layer["kernel"][::-1, ::-1], ((1, 2), (1, 2))  # as PyTorch's
            h = jax.lax.conv_transpose(h, kernel, (2, 2), sides, **layout)
            h = jax.nn.relu(add(h, layer))
        h = jax.lax.conv_general_dilated(h, up["out"]["kernel"], (1, 1), "SAME", **layout)
        return mean, logvar, add(h, up["out"])

    for found, expected in zip(run(net, params, images(net)), by_hand(images(net)), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_parameter(kind):
    net = KINDS[kind](shape=(8, 8, 1), out_channels=1, num_classes=2)
    x, label = images(net, 4), jnp.array([0, 1, 0, 1])

    def loss(params):
        mean, logvar = net.apply({"params": params}, x, label, method="encode")
        out = net.apply({"params": params}, mean + jnp.exp(0.5 * logvar), label, method="decode")
        return jnp.square(out - x).mean()

    grads = jax.jit(jax.grad(loss))(random_like(shapes(net, label[:2])))
    # A bias of the keys shifts all scores of a query alike, which a softmax does not see.
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(g).all(), name
        assert np.abs(g).max() > 0 or "['k']['bias']" in name, name


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_activations_keep_float32_parameters_and_outputs(kind):
    shape = {"shape": (8, 8, 1), "out_channels": 1}
    net, half = KINDS[kind](**shape), KINDS[kind](**shape, dtype="bfloat16")
    assert {a.dtype for a in jax.tree.leaves(shapes(half))} == {jnp.dtype("float32")}
    params = random_like(shapes(net))
    exact, rounded = run(net, params, images(net)), run(half, params, images(net))
    for a, b in zip(exact, rounded, strict=True):
        assert b.dtype == jnp.float32
        assert 1e-5 < np.abs(a - b).max() / np.abs(a).max() < 0.1  # below: it ran in float32


def test_kl_f8_has_latent_diffusions_83_65_million_parameters():
    net = Residual()
    params = shapes(net)
    assert net.latent_shape == (32, 32, 4)
    assert size_of(params["encoder"]) == 34_163_664
    assert size_of(params["decoder"]) == 49_490_199
    assert size_of(params) == 83_653_863


def from_diffusers(state, levels, blocks):
    """Our parameters from the state dict of an AutoencoderKL."""

    def layer(name):
        kernel = state[f"{name}.weight"]
        bias = {"bias": state[f"{name}.bias"]}
        if kernel.ndim == 1:
            return {"scale": kernel} | bias
        kernel = kernel.transpose(2, 3, 1, 0) if kernel.ndim == 4 else kernel.T
        return {"kernel": kernel[0, 0] if kernel.shape[:2] == (1, 1) else kernel} | bias

    def block(name):
        parts = {p: layer(f"{name}.{p}") for p in ("norm1", "conv1", "norm2", "conv2")}
        if f"{name}.conv_shortcut.weight" in state:
            parts["shortcut"] = layer(f"{name}.conv_shortcut")
        return parts

    def middle(side):
        name = f"{side}.mid_block.attentions.0"
        parts = {f"block_{i}": block(f"{side}.mid_block.resnets.{i}") for i in (0, 1)}
        if f"{name}.to_q.weight" in state:
            parts["attention"] = {p: layer(f"{name}.to_{p}") for p in "qkv"} | {
                "norm": layer(f"{name}.group_norm"),
                "out": layer(f"{name}.to_out.0"),
            }
        return parts

    sides = {}
    for side in ("encoder", "decoder"):
        sides[side] = {
            "in": layer(f"{side}.conv_in"),
            "middle": middle(side),
            "norm_out": layer(f"{side}.conv_norm_out"),
            "out": layer(f"{side}.conv_out"),
        }
    sides["encoder"]["moments"] = layer("quant_conv")
    sides["decoder"]["latent"] = layer("post_quant_conv")
    for i in range(levels):
        up = levels - 1 - i  # theirs count from the smallest map
        for j in range(blocks):
            name = f"encoder.down_blocks.{i}.resnets.{j}"
            sides["encoder"][f"down_{i}_block_{j}"] = block(name)
        for j in range(blocks + 1):
            name = f"decoder.up_blocks.{up}.resnets.{j}"
            sides["decoder"][f"up_{i}_block_{j}"] = block(name)
        if i < levels - 1:
            name = f"encoder.down_blocks.{i}.downsamplers.0.conv"
            sides["encoder"][f"down_{i}_downsample"] = {"conv": layer(name)}
        if i > 0:
            name = f"decoder.up_blocks.{up}.upsamplers.0.conv"
            sides["decoder"][f"up_{i}_upsample"] = {"conv": layer(name)}
    return sides


@pytest.mark.parametrize(
    ("multipliers", "blocks", "attention"), [((1, 2), 1, True), ((1, 2, 2), 2, False)]
)
def test_parity_with_diffusers(multipliers, blocks, attention):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    torch.manual_seed(0)
    levels = len(multipliers)
    theirs = diffusers.AutoencoderKL(
        block_out_channels=[8 * m for m in multipliers],
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        layers_per_block=blocks,
        norm_num_groups=4,
        latent_channels=4,
        mid_block_add_attention=attention,
    ).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.1 * torch.randn_like(p))  # so that no bias is zero and no scale one
    ours = Residual(
        shape=(16, 8, 3),
        width=8,
        multipliers=multipliers,
        blocks=blocks,
        attention=attention,
        groups=4,
    )
    state = {k: v.numpy() for k, v in theirs.state_dict().items()}
    params = from_diffusers(state, levels, blocks)
    assert jax.tree.map(jnp.shape, shapes(ours)) == jax.tree.map(jnp.shape, params)
    x = images(ours)
    with torch.no_grad():
        moments = theirs.encode(torch.from_numpy(np.array(x.transpose(0, 3, 1, 2)))).latent_dist
        expected = theirs.decode(moments.mean).sample
    mean, logvar, out = run(ours, params, x)
    assert np.abs(moments.logvar.numpy()).max() < 20  # diffusers clips it, we do not
    for found, tensor in ((mean, moments.mean), (logvar, moments.logvar), (out, expected)):
        np.testing.assert_allclose(found.transpose(0, 3, 1, 2), tensor.numpy(), atol=1e-4)
