"""The ladder of latents: its spelling, its size, and what its blocks compute."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.networks.vae.ladder import (
    Block,
    Bottleneck,
    Ladder,
    TopDown,
    ladder_blocks,
    parse,
)

ENCODER, DECODER = "4x1,4d2,2d2,1x1", "1x1,4m1,4x1"
TINY = {"shape": (4, 4, 2), "out_channels": 5, "width": 8, "latent": 3}
KEYS = jax.random.split(jax.random.key(5), 3)
X = jax.random.uniform(jax.random.key(6), (3, 4, 4, 2), minval=-1.0)


def tiny(**kwargs):
    return Ladder(**TINY | {"encoder": ENCODER, "decoder": DECODER} | kwargs)


def shapes(net):
    x = jnp.zeros((1, *net.shape))
    return jax.eval_shape(net.init, jax.random.key(0), x, KEYS[:1])["params"]


def random_like(params, seed=2):
    """Noise in every tensor: zero-initialised ones hide what is before them."""
    rng = np.random.default_rng(seed)

    def draw(path, a):
        noise = rng.normal(size=a.shape).astype(np.float32)
        if a.ndim == 1:
            return 0.1 * noise + (path[-1].key == "gain")
        return noise / np.sqrt(a.size / a.shape[-1], dtype=np.float32)

    return jax.tree_util.tree_map_with_path(draw, params)


@functools.cache
def params_of_tiny():
    return {"params": random_like(shapes(tiny()))}


@functools.cache
def jitted(method="__call__", static=()):
    return jax.jit(functools.partial(tiny().apply, method=method), static_argnums=static)


def spell(blocks):
    """The string of some blocks, a word for each."""
    return ",".join(
        f"{b.resolution}m{b.unpool}"
        if b.unpool
        else f"{b.resolution}{'d' if b.pool > 1 else 'x'}{b.pool}"
        for b in blocks
    )


def test_parse_reads_the_published_strings():
    assert parse("1x1,4m1,4x2,8m4") == [
        Block(1),
        Block(4, unpool=1),
        Block(4),
        Block(4),
        Block(8, unpool=4),
    ]
    assert parse("32x2, 32d2") == [Block(32), Block(32), Block(32, pool=2)]
    net = Ladder()
    assert [len(parse(s)) for s in (net.encoder, net.decoder)] == [33, 43]
    for string in (net.encoder, net.decoder, ENCODER, DECODER):
        assert parse(spell(parse(string))) == parse(string)


@pytest.mark.parametrize(
    ("string", "words"),
    [
        ("", "'' in network.decoder='' is not like 16x6, 16d2 or 16m8"),
        ("4x1,", "'' in .*='4x1,'"),
        ("4x1,4y2", "'4y2' in .*='4x1,4y2'"),
        ("4", "'4' in .*='4'"),
        ("-4x1", "'-4x1'"),
        ("4x0", "'4x0' .* zero"),
        ("9d2", "'9d2' .*: 2 does not divide 9"),
        ("9m4", "'9m4' .*: 4 does not divide 9"),
        ("4m4", "'4m4' .* does not change"),
    ],
)
def test_parse_names_the_word_it_cannot_read(string, words):
    with pytest.raises(ValueError, match=words):
        parse(string)


@pytest.mark.parametrize(
    ("size", "encoder", "decoder", "words"),
    [
        (8, ENCODER, DECODER, f"encoder '{ENCODER}' .* resolution 4 .* is 8, for images of 8"),
        (4, "4x1,2x1", DECODER, "encoder '4x1,2x1' .* resolution 2 where its map is 4"),
        (4, "4x1,4m2", DECODER, "encoder .* goes up to 4"),
        (4, ENCODER, "2m1,4m2", "decoder '2m1,4m2' has no map of 1"),
        (4, ENCODER, "1x1,4m2", "decoder '1x1,4m2' expects a map of 2 where it is 1"),
        (4, ENCODER, "1x1,4x1", "decoder '1x1,4x1' expects a map of 4 where it is 1"),
        (4, ENCODER, "1x1,1d1,2m1,2d2", "decoder .* pools at 2"),
        (4, "4d4,1x1", "1x1,2m1,4m2", "decoder .* resolution 2, the encoder '4d4,1x1' has none"),
        (4, ENCODER, "1x1,2m1", "decoder '1x1,2m1' ends at 2, images are 4"),
        (4, ENCODER, "1x1,2m1,4m2,8m4", "decoder .* resolution 8, the encoder .* has none"),
    ],
)
def test_strings_that_do_not_fit_say_which_and_where(size, encoder, decoder, words):
    with pytest.raises(ValueError, match=words):
        ladder_blocks(size, encoder, decoder)
    net = tiny(shape=(size, size, 2), encoder=encoder, decoder=decoder)
    with pytest.raises(ValueError, match=words):
        shapes(net)


def test_other_errors():
    with pytest.raises(ValueError, match="square images, not 4x8x1"):
        shapes(tiny(shape=(4, 8, 1)))
    with pytest.raises(ValueError, match=r"network\.bottleneck=0\.1 of network\.width=8"):
        shapes(tiny(bottleneck=0.1))
    with pytest.raises(ValueError, match=r"shape \(4, 4, 2\), not \(4, 4, 1\)"):
        jax.eval_shape(tiny().apply, params_of_tiny(), X[..., :1], KEYS)
    with pytest.raises(ValueError, match="4 groups of a ladder that has 3"):
        jitted("reconstruct", (3,))(params_of_tiny(), X, KEYS, 4)


def test_the_cifar10_network_has_the_papers_39_million_parameters():
    params = shapes(Ladder())
    size = sum(a.size for a in jax.tree.leaves(params))
    assert size == 39_145_700
    assert round(size / 1e6) == 39  # README of openai/vdvae


def test_shapes_and_where_3x3_convolutions_are():
    params = params_of_tiny()["params"]
    outputs, kl = jitted()(params_of_tiny(), X, KEYS)
    assert outputs.shape == (3, 4, 4, 5)
    assert kl.shape == (3, 3)
    assert outputs.dtype == kl.dtype == jnp.float32
    assert (np.asarray(kl) > 0).all()
    spatial = {n for n in params if "conv2" in params[n] and params[n]["conv2"]["kernel"].ndim == 4}
    assert spatial == {"down_0", "down_1"}  # not those of 2x2 and 1x1
    spatial = {n for n in params if "up_" in n and params[n]["prior"]["conv3"]["kernel"].ndim == 4}
    assert spatial == {"up_1", "up_2"}
    assert {n: params[n].shape for n in params if n.startswith("start")} == {
        f"start_{n}": (1, n, n, 8) for n in (1, 4)
    }
    assert "start_4" not in shapes(tiny(bias=2))


def test_other_pools_and_resolutions_without_a_learned_map():
    net = Ladder(
        **TINY | {"shape": (6, 6, 1), "encoder": "6d3,2d2,1x1", "decoder": "2x1,6m2"}, bias=2
    )
    x = jnp.ones((1, 6, 6, 1))
    outputs, kl = jax.jit(net.apply)({"params": random_like(shapes(net))}, x, KEYS[:1])
    assert outputs.shape == (1, 6, 6, 5)
    assert kl.shape == (2, 1)


def test_a_new_network_starts_as_the_published_code_does():
    net = tiny(width=64, encoder="4x2", decoder="4x3")
    params = jax.jit(net.init)(jax.random.key(0), X, KEYS)["params"]
    np.testing.assert_array_equal(params["up_0"]["prior"]["conv4"]["kernel"], 0.0)
    bounds = {
        ("up_1", "posterior", "conv4"): math.sqrt(1 / 16),
        ("up_1", "residual", "conv1"): math.sqrt(1 / 64),
        ("up_1", "residual", "conv4"): math.sqrt(1 / 16 / 3),  # one of three blocks
        ("up_1", "latent"): math.sqrt(1 / 3 / 3),
        ("down_0", "conv4"): math.sqrt(1 / 16 / 2),
        ("down_0", "conv2"): math.sqrt(1 / (9 * 16)),
    }
    for path, bound in bounds.items():
        kernel = functools.reduce(lambda tree, key: tree[key], path, params)["kernel"]
        assert 0.95 * bound < np.abs(kernel).max() <= bound, path


def test_kl_is_zero_where_the_posterior_is_the_prior():
    params = {"params": dict(params_of_tiny()["params"])}
    for name in ("up_0", "up_1", "up_2"):
        group = {k: dict(v) for k, v in params["params"][name].items()}
        for part in ("prior", "posterior"):
            group[part]["conv4"] = jax.tree.map(np.zeros_like, group[part]["conv4"])
        params["params"][name] = group
    _, kl = jitted()(params, X, KEYS)
    np.testing.assert_array_equal(kl, 0.0)


def test_the_kl_of_posteriors_that_are_nearly_the_prior_keeps_its_digits():
    block = TopDown(width=4, middle=3, latent=2, share=1.0)
    x, maps, noise = (jnp.zeros((1, 1, 1, c)) for c in (4, 4, 2))
    shapes_of = jax.eval_shape(block.init, jax.random.key(0), x, noise, maps, 1.0)
    variables = jax.tree.map(lambda a: jnp.zeros(a.shape), shapes_of)
    off = jnp.array([1e-4, 3e-4, 2e-4, -1e-4])  # of the posterior: means, log deviations
    variables["params"]["posterior"]["conv4"]["bias"] = off
    _, kl = jax.jit(block.apply)(variables, x, noise, maps, 1.0)
    mean, logstd = np.split(np.asarray(off, np.float64), 2)
    expected = np.sum(0.5 * (np.exp(2 * logstd) + mean**2 - 1) - logstd)
    np.testing.assert_allclose(kl, expected, rtol=1e-3)


def test_a_block_is_the_papers_arithmetic():
    block = TopDown(width=4, middle=3, latent=2, share=1.0)
    rng = np.random.default_rng(3)
    x, maps, noise = (rng.normal(size=(2, 1, 1, c)).astype(np.float32) for c in (4, 4, 2))
    variables = random_like(jax.eval_shape(block.init, jax.random.key(0), x, noise, maps, 1.0))
    params = variables["params"]
    gelu = np.vectorize(lambda v: 0.5 * v * (1 + math.erf(v / math.sqrt(2))))

    def linear(h, layer):
        return h @ layer["kernel"] + layer["bias"].reshape(1, -1)

    def bottleneck(h, part):
        for i in (1, 2, 3, 4):
            h = linear(gelu(h), params[part][f"conv{i}"])
        return h

    x_, maps_, eps = (a.reshape(2, -1).astype(np.float64) for a in (x, maps, noise))
    q_mean, q_logstd = np.split(bottleneck(np.concatenate([x_, maps_], axis=1), "posterior"), 2, 1)
    p_mean, p_logstd, features = np.split(bottleneck(x_, "prior"), [2, 4], axis=1)
    var = np.exp(2 * q_logstd) + (q_mean - p_mean) ** 2
    kl = (p_logstd - q_logstd + 0.5 * var / np.exp(2 * p_logstd) - 0.5).sum(axis=1)

    def rest(z):
        h = x_ + features + linear(z, params["latent"])
        return h + bottleneck(h, "residual")

    apply = jax.jit(block.apply)
    h, found = apply(variables, x, noise, maps, 1.0)
    np.testing.assert_allclose(found, kl, rtol=1e-5)
    expected = rest(q_mean + np.exp(q_logstd) * eps)
    np.testing.assert_allclose(h.reshape(2, 4), expected, atol=1e-5)
    h, found = apply(variables, x, noise, None, 0.5)
    np.testing.assert_array_equal(found, 0.0)
    expected = rest(p_mean + 0.5 * np.exp(p_logstd) * eps)
    np.testing.assert_allclose(h.reshape(2, 4), expected, atol=1e-5)


def test_the_ladder_is_its_blocks_in_order():
    """The whole of __call__ from Bottleneck and TopDown, with the bookkeeping done by hand."""
    params = params_of_tiny()["params"]
    middle, n = 2, 3  # a quarter of the width; images

    def down(h, i):
        return h + Bottleneck(8, middle).apply({"params": params[f"down_{i}"]}, h)

    def up(h, maps, j):
        shape = (*h.shape[1:3], 3)
        draws = [jax.random.normal(jax.random.fold_in(KEYS[i], j), shape) for i in range(n)]
        block = TopDown(8, middle, 3, share=1.0)
        return block.apply({"params": params[f"up_{j}"]}, h, jnp.stack(draws), maps, 1.0)

    def pool(h):
        return h.reshape(n, h.shape[1] // 2, 2, h.shape[2] // 2, 2, 8).mean(axis=(2, 4))

    def start(size):
        return jnp.broadcast_to(params[f"start_{size}"], (n, size, size, 8))

    def enlarge(h):
        return h.repeat(4, axis=1).repeat(4, axis=2)

    @jax.jit
    def by_hand():
        stem, out = params["stem"], params["out"]
        h = jax.lax.conv_general_dilated(
            X, stem["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        h = down(h + stem["bias"].reshape(1, 1, 1, -1), 0)
        four = down(h, 1)  # after the block that pools, but before it is pooled
        one = down(pool(down(pool(four), 2)), 3)
        h, kl0 = up(start(1), one, 0)
        h, kl1 = up(start(4) + enlarge(h), four, 1)
        h, kl2 = up(h, four, 2)
        gain, shift = (params[name].reshape(1, 1, 1, -1) for name in ("gain", "shift"))
        outputs = (h * gain + shift) @ out["kernel"] + out["bias"].reshape(1, 1, 1, -1)
        return outputs, jnp.stack([kl0, kl1, kl2])

    expected, expected_kl = by_hand()
    outputs, kl = jitted()(params_of_tiny(), X, KEYS)
    np.testing.assert_allclose(outputs, expected, atol=1e-4)
    np.testing.assert_allclose(kl, expected_kl, rtol=1e-4)


def test_an_example_does_not_depend_on_its_batch():
    outputs, kl = jitted()(params_of_tiny(), X, KEYS)
    turned, kl_turned = jitted()(params_of_tiny(), X[::-1], KEYS[::-1])
    np.testing.assert_allclose(turned[::-1], outputs, atol=1e-5)
    np.testing.assert_allclose(kl_turned[:, ::-1], kl, rtol=1e-4)
    drawn = jitted("generate")(params_of_tiny(), KEYS, 1.0)
    alone = jitted("generate")(params_of_tiny(), KEYS[1:2], 1.0)
    np.testing.assert_allclose(drawn[1:2], alone, atol=1e-5)
    np.testing.assert_array_equal(drawn, jitted("generate")(params_of_tiny(), KEYS, 1.0))
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-2


def test_temperature_scales_the_deviations():
    generate = jitted("generate")
    means = generate(params_of_tiny(), KEYS, 0.0)
    np.testing.assert_allclose(means[0], means[1], atol=1e-6)
    near, far = (np.abs(generate(params_of_tiny(), KEYS, t) - means).max() for t in (0.01, 1.0))
    assert 0 < near < 0.1 * far


def test_reconstructions_take_the_upper_groups_from_the_posterior():
    reconstruct = jitted("reconstruct", (3,))
    params = params_of_tiny()["params"]
    found = reconstruct({"params": params}, X, KEYS, 2, 0.0)
    # At temperature 0 what is drawn from the prior is the same for all, so the images are seen.
    assert np.abs(found[0] - found[1]).max() > 1e-2
    for group, is_read in {"up_0": True, "up_1": True, "up_2": False}.items():
        posterior = jax.tree.map(lambda a: 2 * a, params[group]["posterior"])
        changed = params | {group: params[group] | {"posterior": posterior}}
        change = np.abs(reconstruct({"params": changed}, X, KEYS, 2, 0.0) - found).max()
        assert change > 1e-2 if is_read else change == 0


def test_gradients_are_finite_and_reach_every_parameter():
    def loss(params):
        outputs, kl = tiny().apply(params, X, KEYS)
        return jnp.square(outputs).mean() + kl.sum(axis=0).mean()

    grads = jax.jit(jax.grad(loss))(params_of_tiny())
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(g).all(), path
        assert np.abs(g).max() > 0, path


def test_bfloat16_activations_keep_float32_parameters_and_outputs():
    half = tiny(dtype="bfloat16")
    assert {a.dtype for a in jax.tree.leaves(shapes(half))} == {jnp.dtype("float32")}
    exact, _ = jitted()(params_of_tiny(), X, KEYS)
    lowered = jax.jit(half.apply).lower(params_of_tiny(), X, KEYS)
    lines = [line for line in lowered.as_text().splitlines() if "stablehlo.convolution" in line]
    assert lines
    assert all("f32" not in line for line in lines)
    rounded, kl = lowered.compile()(params_of_tiny(), X, KEYS)
    assert rounded.dtype == kl.dtype == jnp.float32
    assert 1e-5 < np.abs(exact - rounded).max() / np.abs(exact).max() < 0.1  # below: float32
