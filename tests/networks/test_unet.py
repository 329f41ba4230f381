"""The UNet: the paper's size, its conditioning, its dtypes, and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_toys import apply, program, random_like, size_of, without_gradient

from aigc_jax.networks.layers import GroupNorm, ResBlock, SelfAttention, sinusoidal_embedding
from aigc_jax.networks.unet import UNet

DIGITS = {"out_channels": 1, "width": 32, "multipliers": (1, 2, 2), "attention": (4,)}
SMALL = {"out_channels": 3, "width": 16, "multipliers": (1, 2), "blocks": 1, "attention": (4,)}


def inputs(batch=2, size=8, channels=3):
    x = jax.random.normal(jax.random.key(1), (batch, size, size, channels))
    return x, jnp.linspace(0.0, 999.0, batch)


def shapes(net, size, channels):
    x, t = inputs(1, size, channels)
    return jax.eval_shape(net.init, jax.random.key(0), x, t)["params"]


@functools.cache
def small(num_classes=0):
    net = UNet(**SMALL, num_classes=num_classes)
    return net, random_like(shapes(net, 8, 3))


def test_the_cifar10_network_has_the_papers_35_7_million_parameters():
    params = shapes(UNet(out_channels=3), 32, 3)
    assert size_of(params) == 35_746_307
    attention = sorted(name for name in params if "attention" in name)
    assert attention == [
        "down_1_attention_0",
        "down_1_attention_1",
        "middle_attention_0",
        "up_1_attention_0",
        "up_1_attention_1",
        "up_1_attention_2",
    ]


def test_the_cifar10_network_of_improved_ddpm_has_its_52_55_million_parameters():
    """As openai/improved-diffusion's own; counted by hand from the architecture, layer by layer."""
    settings = {"blocks": 3, "attention": (16, 8), "heads": 4}
    net = UNet(out_channels=6, scale_shift=True, **settings)
    assert size_of(shapes(net, 32, 3)) == 52_546_438
    assert size_of(shapes(UNet(out_channels=6, **settings), 32, 3)) == 49_066_246


def test_attention_is_at_the_resolution_asked_for():
    net = UNet(**DIGITS)
    params = shapes(net, 8, 1)
    assert {n for n in params if "attention" in n and "middle" not in n} == {
        *(f"down_1_attention_{i}" for i in range(2)),
        *(f"up_1_attention_{i}" for i in range(3)),
    }


def test_digits_and_oblong_images_run():
    net = UNet(**DIGITS | {"width": 8}, blocks=1)
    x, t = inputs(3, 8, 1)
    params = random_like(shapes(net, 8, 1))
    assert apply(net, params, x, t).shape == (3, 8, 8, 1)
    assert apply(net, params, jnp.concatenate([x, x], axis=2), t).shape == (3, 8, 16, 1)


def test_a_new_network_predicts_zero_and_draws_the_rest_as_the_paper_did():
    net = UNet(**SMALL | {"multipliers": (1,)})
    params = jax.jit(net.init)(jax.random.key(0), *inputs())["params"]
    np.testing.assert_array_equal(apply(net, params, *inputs()), 0.0)
    last = [("down_0_block_0", "conv2"), ("middle_attention_0", "out"), ("up_0_block_1", "conv2")]
    for block, layer in last:
        np.testing.assert_array_equal(params[block][layer]["kernel"], 0.0)
    kernel = np.asarray(params["middle_block_0"]["conv1"]["kernel"])
    bound = np.sqrt(3 / (9 * 16))  # fan in = fan out = 9 * 16, variance 1/fan, uniform
    assert np.abs(kernel).max() <= bound
    np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.05)


def test_the_sinusoidal_embedding_is_that_of_float64():
    t = np.array([0.0, 1.0, 17.5, 500.0, 999.0])
    frequencies = 10_000.0 ** (-np.arange(64) / 63)
    expected = np.concatenate(
        [np.sin(t[:, None] * frequencies), np.cos(t[:, None] * frequencies)], axis=1
    )
    found = jax.jit(sinusoidal_embedding, static_argnums=1)(jnp.asarray(t, jnp.float32), 128)
    assert found.dtype == jnp.float32
    # float32 rounds an angle of 999 by at most 3e-5, and its frequency by as much again.
    np.testing.assert_allclose(found, expected, atol=7e-5)
    np.testing.assert_allclose(found[:3], expected[:3], atol=3e-6)
    with pytest.raises(ValueError, match="even width"):
        sinusoidal_embedding(jnp.zeros(1), 33)


def test_the_time_step_changes_the_output():
    net, params = small()
    x, _ = inputs()
    a, b = (apply(net, params, x, jnp.full((2,), t)) for t in (10.0, 11.0))
    assert np.abs(a - b).max() > 1e-3


def test_labels_condition_and_no_label_is_the_null_row():
    net, params = small(num_classes=10)
    assert params["label"]["embedding"].shape == (11, 64)
    x, t = inputs()
    zero, one, null = (apply(net, params, x, t, jnp.full((2,), i)) for i in (0, 1, 10))
    assert np.abs(zero - one).max() > 1e-2
    assert np.abs(zero - null).max() > 1e-2
    np.testing.assert_array_equal(apply(net, params, x, t), null)
    mixed = apply(net, params, x, t, jnp.array([1, 10]))
    np.testing.assert_allclose(mixed, jnp.stack([one[0], null[1]]), atol=1e-5)


def test_a_label_for_a_network_without_labels_is_an_error():
    net, params = small()
    with pytest.raises(ValueError, match="num_classes=0"):
        apply(net, params, *inputs(), jnp.zeros((2,), jnp.int32))


def test_an_augmentation_label_and_a_second_time_are_added_where_they_are_announced():
    net = UNet(**SMALL, augment_dim=9, second_time=True)
    params = random_like(shapes(net, 8, 3))
    x, t = inputs()
    zeros, ones = jnp.zeros((2, 9)), jnp.ones((2, 9))
    found = apply(net, params, x, t)
    np.testing.assert_array_equal(found, apply(net, params, x, t, augment=zeros, t2=t))
    assert np.abs(found - apply(net, params, x, t, augment=ones)).max() > 1e-2
    assert np.abs(found - apply(net, params, x, t, t2=t + 10)).max() > 1e-2
    for given, words in (
        ({"augment": ones}, r"\(2, 9\).*network\.augment_dim=0"),
        ({"t2": t}, r"network\.second_time=False"),
    ):
        with pytest.raises(ValueError, match=words):
            apply(UNet(**SMALL), params, x, t, **given)


def test_dropout_acts_in_training_only():
    net, params = small()
    args = inputs()
    rngs = [{"dropout": jax.random.key(i)} for i in (0, 0, 1)]
    a, b, c = (apply(net, params, *args, train=True, rngs=r) for r in rngs)
    still = apply(net, params, *args)
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 1e-3
    assert np.abs(a - still).max() > 1e-3
    np.testing.assert_array_equal(still, apply(net, params, *args, rngs=rngs[2]))
    without = UNet(**SMALL, dropout=0.0)
    np.testing.assert_allclose(apply(without, params, *args, train=True), still, atol=1e-5)


def test_dropout_is_between_the_second_norm_and_the_second_convolution():
    x, _ = inputs(2, 4, 8)
    block = ResBlock(features=8, dropout=1.0, groups=4)
    params = random_like(jax.eval_shape(block.init, jax.random.key(0), x))
    y = program(block)(params, x, rngs={"dropout": jax.random.key(0)})
    bias = params["params"]["conv2"]["bias"].reshape(1, 1, 1, 8)
    np.testing.assert_allclose(y, x + bias, atol=1e-6)


def test_bfloat16_activations_keep_float32_parameters_and_output():
    net, params = small()
    half = UNet(**SMALL, dtype="bfloat16")
    args = inputs()
    created = jax.eval_shape(half.init, jax.random.key(0), *args)["params"]
    assert {a.dtype for a in jax.tree.leaves(created)} == {jnp.dtype("float32")}
    exact, rounded = apply(net, params, *args), apply(half, params, *args)
    assert exact.dtype == rounded.dtype == jnp.float32
    error = np.abs(exact - rounded).max() / np.abs(exact).max()
    assert 1e-5 < error < 0.05  # below: it did not run in bfloat16 at all
    text = jax.jit(half.apply).lower({"params": params}, *args).as_text()
    assert any("convolution" in line and "bf16" in line for line in text.splitlines())


def test_gradients_reach_every_parameter():
    net, params = small(num_classes=10)
    x, t = inputs()

    dead = without_gradient(net, params, x, t, jnp.array([0, 10]))
    # A bias of the keys shifts all scores of a query alike, which a softmax does not see, so its
    # gradient is rounding noise: zero or not.
    assert [name for name in dead if "['k']['bias']" not in name] == []


@pytest.mark.parametrize(
    ("size", "words"),
    [(30, "which 30 does not allow.*: 24 and 32\\b"), (4, "which 4 .*: 8(\\n|$)")],
)
def test_an_image_that_cannot_be_halved_is_told_the_nearest_sizes(size, words):
    expected = rf"{size}x{size}.*network\.multipliers=\(1, 2, 2, 2\).* 3 times, {words}"
    with pytest.raises(ValueError, match=expected):
        shapes(UNet(out_channels=3, width=32), size, 3)


def test_groups_and_heads_that_do_not_divide_are_named():
    with pytest.raises(ValueError, match=r"network\.groups=32 .* network\.width=48"):
        shapes(UNet(out_channels=3, width=48), 32, 3)
    with pytest.raises(ValueError, match=r"5 heads .*network\.heads"):
        shapes(UNet(out_channels=3, width=32, heads=5), 32, 3)


def test_a_group_norm_is_float32_inside_and_has_no_favourite_offset():
    x = 5.0 + jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
    norm = GroupNorm(groups=2)
    params = norm.init(jax.random.key(1), x)
    y = norm.apply(params, x).reshape(2, 16, 2, 4)
    np.testing.assert_allclose(y.mean((1, 3)), 0.0, atol=1e-6)
    np.testing.assert_allclose(y.std((1, 3)), 1.0, atol=1e-5)
    far = norm.apply(params, x + 1000.0).reshape(2, 16, 2, 4)
    np.testing.assert_allclose(far, y, atol=1e-3)
    rounded = (x + 100.0).astype(jnp.bfloat16)
    half, full = (norm.apply(params, rounded.astype(d)) for d in ("bfloat16", "float32"))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half, full.astype(jnp.bfloat16))
    with pytest.raises(ValueError, match="3 groups do not divide 8"):
        GroupNorm(groups=3).init(jax.random.key(0), x)


def test_the_one_pass_of_a_group_norm_keeps_its_digits_however_far_its_origin_is():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 32, 32, 8)).astype(np.float32)
    x[0, 0, 0] = 1e4  # the origin: 32 standard deviations of the group, as far as one can be
    x[1] += 1e4
    x[2] = 3.0  # no variance at all
    x[3, 5:9] *= 1e4
    exact = x.astype(np.float64).reshape(4, -1, 2, 4)
    mean, variance = exact.mean((1, 3), keepdims=True), exact.var((1, 3), keepdims=True)
    exact = ((exact - mean) / np.sqrt(variance + 1e-6)).reshape(x.shape)
    norm = GroupNorm(groups=2)
    params = norm.init(jax.random.key(1), x)
    found = np.asarray(norm.apply(params, x))
    np.testing.assert_allclose(found[[0, 2, 3]], exact[[0, 2, 3]], atol=1e-4, rtol=3e-5)
    np.testing.assert_allclose(found[1], exact[1], atol=2e-3)  # x has no more


def test_a_block_without_an_embedding_serves_an_autoencoder():
    x, _ = inputs(2, 4, 8)
    block = ResBlock(features=16, groups=4)
    params = random_like(jax.eval_shape(block.init, jax.random.key(0), x))
    found = program(block)(params, x)
    assert found.shape == (2, 4, 4, 16)
    assert np.all(np.isfinite(found))
    assert "embedding" not in params["params"]


def test_attention_is_the_formula_for_any_number_of_heads():
    x, _ = inputs(2, 3, 8)
    for heads in (1, 2):
        layer = SelfAttention(heads=heads, groups=4)
        p = random_like(jax.eval_shape(layer.init, jax.random.key(0), x)["params"])
        h = np.asarray(GroupNorm(4).apply({"params": p["norm"]}, x), np.float64).reshape(2, 9, 8)
        q, k, v = (
            (h @ p[n]["kernel"] + p[n]["bias"]).reshape(2, 9, heads, 8 // heads) for n in "qkv"
        )
        scores = np.exp(np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(8 // heads))
        weights = scores / scores.sum(-1, keepdims=True)
        h = np.einsum("bhqk,bkhd->bqhd", weights, v).reshape(2, 9, 8)
        expected = x + (h @ p["out"]["kernel"] + p["out"]["bias"]).reshape(x.shape)
        np.testing.assert_allclose(layer.apply({"params": p}, x), expected, atol=1e-5)
