"""EDM's UNet: the paper's size, the same function as a torch network, its inputs and its start."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_toys import apply, random_like, size_of, without_gradient

from aigc_jax.networks.edm_unet import EDMUNet

SMALL = {"out_channels": 3, "width": 8, "multipliers": (1, 2), "blocks": 2, "attention": (4,)}
TOLD = {"num_classes": 5, "augment_dim": 9, "second_time": True}


def inputs(size=8):
    x = jax.random.normal(jax.random.key(1), (2, size, size, 3))
    return x, jnp.array([-1.5, 1.0])  # ln(sigma)/4


def shapes(net, size=8):
    return jax.eval_shape(net.init, jax.random.key(0), *inputs(size), None)["params"]


@functools.cache
def small(**settings):
    net = EDMUNet(**SMALL, **settings)
    return net, random_like(shapes(net))


def test_the_cifar10_network_has_the_papers_parameters():
    assert size_of(shapes(EDMUNet(3), 32)) == 55_732_739
    assert size_of(shapes(EDMUNet(3, augment_dim=9), 32)) == 55_733_891  # 55.7 million there
    assert size_of(shapes(EDMUNet(3, augment_dim=9, num_classes=10), 32)) == 55_735_299


def test_attention_is_after_every_block_down_and_the_last_up():
    params = shapes(EDMUNet(3, width=8), 32)
    attended = {name for name, block in params.items() if "attention" in block}
    expected = {f"down_1_block_{i}" for i in range(4)} | {"middle_block_0", "up_1_block_4"}
    assert attended == expected


def oracle(torch, p, x, t, label, augment, t2):
    """DDPM++ as in EDM of SMALL and TOLD, in torch, [B, C, H, W] float64."""
    f = torch.nn.functional

    def linear(q, a):
        y = a @ q["kernel"]
        return y + q["bias"] if "bias" in q else y

    def conv(q, a):
        kernel = q["kernel"]
        kernel = kernel.permute(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T[:, :, None, None]
        return f.conv2d(a, kernel, q["bias"], padding=kernel.shape[-1] // 2)

    def norm(q, a):
        return f.group_norm(a, min(32, a.shape[1] // 4), q["scale"], q["bias"], 1e-6)

    def waves(t):
        half = 4
        angles = t[:, None] * 10_000.0 ** (-torch.arange(half) / (half - 1))
        return torch.cat([angles.sin(), angles.cos()], 1)

    emb = waves(t) + waves(t2) @ p["second_time"]["kernel"] + augment @ p["augment"]["kernel"]
    one_hot = f.one_hot(label, 6)[:, :5].to(emb.dtype)  # class 5 is none
    emb = emb + linear(p["label"], one_hot * math.sqrt(5))
    emb = f.silu(linear(p["time_1"], f.silu(linear(p["time_0"], emb))))

    def block(name, a, resample=lambda a: a):
        q = p[name]
        h = conv(q["conv1"], resample(f.silu(norm(q["norm1"], a))))
        h = norm(q["norm2"], h + linear(q["embedding"], emb)[:, :, None, None])
        h = conv(q["conv2"], f.silu(h))
        a = resample(a)
        a = (h + (conv(q["shortcut"], a) if "shortcut" in q else a)) / math.sqrt(2)
        if "attention" in q:
            q = q["attention"]
            h = norm(q["norm"], a)
            query, key, value = (conv(q[n], h).flatten(2) for n in "qkv")  # [B, C, N]
            weights = (query.transpose(1, 2) @ key / math.sqrt(query.shape[1])).softmax(-1)
            h = (value @ weights.transpose(1, 2)).reshape(a.shape)
            a = (a + conv(q["out"], h)) / math.sqrt(2)
        return a

    def halved(a):
        return f.avg_pool2d(a, 2)

    def doubled(a):
        return f.interpolate(a, scale_factor=2, mode="nearest")

    h = conv(p["conv_in"], x)
    skips = [h]
    for name in ("down_0_block_0", "down_0_block_1"):
        skips.append(block(name, skips[-1]))
    skips.append(block("down_1_downsample", skips[-1], halved))
    for name in ("down_1_block_0", "down_1_block_1"):
        skips.append(block(name, skips[-1]))
    h = block("middle_block_1", block("middle_block_0", skips[-1]))
    for i in range(3):
        h = block(f"up_1_block_{i}", torch.cat([h, skips.pop()], 1))
    h = block("up_0_upsample", h, doubled)
    for i in range(3):
        h = block(f"up_0_block_{i}", torch.cat([h, skips.pop()], 1))
    return conv(p["conv_out"], f.silu(norm(p["norm_out"], h)))


def test_it_computes_what_a_torch_network_of_its_architecture_does():
    torch = pytest.importorskip("torch")
    net, params = small(**TOLD)
    x, t = inputs()
    label, t2 = jnp.array([2, 5]), jnp.array([0.3, -0.7])
    augment = jax.random.normal(jax.random.key(2), (2, 9))
    found = apply(net, params, x, t, label, augment=augment, t2=t2)

    def tensor(a):
        a = np.array(a)
        return torch.tensor(a.astype(np.int64 if a.dtype.kind == "i" else np.float64))

    expected = oracle(
        torch,
        jax.tree.map(tensor, params),
        tensor(x).permute(0, 3, 1, 2),
        *map(tensor, (t, label, augment, t2)),
    )
    np.testing.assert_allclose(found, expected.permute(0, 2, 3, 1).numpy(), atol=1e-4)
    assert np.abs(found).max() > 0.5


def test_what_is_not_given_is_none_of_it():
    net, params = small(**TOLD)
    x, t = inputs()
    given = {"augment": jnp.zeros((2, 9)), "t2": t}
    null = jnp.full((2,), 5)
    found = apply(net, params, x, t)
    np.testing.assert_allclose(found, apply(net, params, x, t, null, **given), atol=1e-5)
    for told in ({"augment": jnp.ones((2, 9))}, {"t2": t + 1}):
        assert np.abs(found - apply(net, params, x, t, **told)).max() > 1e-2
    plain, params = small()
    for args, extra, words in (
        ((jnp.zeros(2, jnp.int32),), {}, "num_classes=0"),
        ((), {"augment": jnp.zeros((2, 9))}, r"network\.augment_dim=0"),
        ((), {"t2": t}, r"network\.second_time=False"),
    ):
        with pytest.raises(ValueError, match=words):
            apply(plain, params, x, t, *args, **extra)
    with pytest.raises(ValueError, match=r"network\.multipliers=\(1, 2\).*nearest"):
        shapes(plain, 7)


def test_it_starts_as_glorots_weights_with_small_ends_of_branches():
    net = EDMUNet(**SMALL | {"blocks": 1})
    params = jax.jit(net.init)(jax.random.key(0), *inputs())["params"]
    bound = math.sqrt(6 / (9 * 8 + 9 * 8))

    def largest(*path):
        return np.abs(functools.reduce(dict.__getitem__, path, params)["kernel"]).max()

    np.testing.assert_allclose(largest("down_0_block_0", "conv1"), bound, rtol=0.05)
    np.testing.assert_allclose(largest("down_0_block_0", "conv2"), 1e-5 * bound, rtol=0.05)
    # Of one layer that gives queries, keys and values: 16 channels to 48.
    bound = math.sqrt(0.2) * math.sqrt(6 / (16 + 48))
    np.testing.assert_allclose(largest("middle_block_0", "attention", "q"), bound, rtol=0.05)
    bound = 1e-5 * math.sqrt(6 / (16 + 16))
    np.testing.assert_allclose(largest("middle_block_0", "attention", "out"), bound, rtol=0.05)
    assert largest("conv_out") < 1e-5


def test_dropout_acts_in_training_only_and_gradients_reach_every_parameter():
    net, params = small(**TOLD)
    args = inputs()
    rngs = [{"dropout": jax.random.key(i)} for i in (0, 1)]
    a, b = (apply(net, params, *args, train=True, rngs=r) for r in rngs)
    still = apply(net, params, *args)
    assert min(np.abs(a - b).max(), np.abs(a - still).max()) > 1e-3
    told = {"augment": jnp.ones((2, 9)), "t2": args[1] + 1}
    dead = without_gradient(net, params, *args, jnp.array([0, 5]), **told)
    # A bias of the keys shifts all scores of a query alike, which a softmax does not see.
    assert [name for name in dead if "['k']['bias']" not in name] == []


def test_bfloat16_activations_keep_float32_parameters_and_output():
    net, params = small()
    half = EDMUNet(**SMALL, dtype="bfloat16")
    assert {a.dtype for a in jax.tree.leaves(shapes(half))} == {jnp.dtype("float32")}
    exact, rounded = (apply(n, params, *inputs()) for n in (net, half))
    assert rounded.dtype == jnp.float32
    error = np.abs(exact - rounded).max() / np.abs(exact).max()
    assert 1e-5 < error < 0.05  # below: it did not run in bfloat16 at all
