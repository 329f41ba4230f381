"""DiT: the paper's sizes, diffusers' function, its options, its contexts, and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_toys import apply, random_like, size_of, without_gradient

from aigc_jax.networks import transformer
from aigc_jax.networks.transformer import DiT

SMALL = {"out_channels": 3, "size": "", "depth": 2, "width": 16, "heads": 2}
JOINT, CROSS = ({"context": kind, "context_dim": 6} for kind in ("joint", "cross"))


def inputs(size=8, channels=3):
    x = jax.random.normal(jax.random.key(1), (2, size, size, channels))
    return x, jnp.array([3.0, 800.0])


def shapes(net, size=8, channels=3):
    key = jax.random.key(0)
    return jax.eval_shape(net.init, key, *inputs(size, channels), None)["params"]


@functools.cache
def small(**settings):
    net = DiT(**SMALL | settings)
    return net, random_like(shapes(net))


@pytest.mark.parametrize(
    ("size", "patch", "count", "published"),
    [("XL", 2, 674_834_720, 675), ("B", 4, 130_426_496, 130), ("S", 2, 32_865_056, 33)],
)
def test_the_papers_sizes_have_its_parameters(size, patch, count, published):
    """The paper rounds to millions: table 4 of arXiv:2212.09748."""
    net = DiT(8, size=size, patch=patch, num_classes=1000)
    found = size_of(shapes(net, 32, 4))
    assert found == count
    assert round(found / 1e6) == published


def of_diffusers(theirs, depth):
    """Our parameters from the tensors of a DiTTransformer2DModel whose embedders are all alike."""
    tensors = {key: value.numpy() for key, value in theirs.state_dict().items()}

    def layer(name):
        return {"kernel": tensors[f"{name}.weight"].T, "bias": tensors[f"{name}.bias"]}

    first = "transformer_blocks.0.norm1.emb."
    kernel = tensors["pos_embed.proj.weight"].transpose(2, 3, 1, 0)
    params = {
        "patches_in": {
            "kernel": kernel.reshape(-1, kernel.shape[-1]),
            "bias": tensors["pos_embed.proj.bias"],
        },
        "time_0": layer(f"{first}timestep_embedder.linear_1"),
        "time_1": layer(f"{first}timestep_embedder.linear_2"),
        "label": {"embedding": tensors[f"{first}class_embedder.embedding_table.weight"]},
        "modulation_out": layer("proj_out_1"),
        "patches_out": layer("proj_out_2"),
    }
    for i in range(depth):
        block = f"transformer_blocks.{i}"
        qkv = [layer(f"{block}.attn1.to_{n}") for n in "qkv"]
        params[f"block_{i}"] = {
            "modulation": layer(f"{block}.norm1.linear"),
            "qkv": jax.tree.map(lambda *a: np.concatenate(a, axis=-1), *qkv),
            "out": layer(f"{block}.attn1.to_out.0"),
            "mlp_0": layer(f"{block}.ff.net.0.proj"),
            "mlp_1": layer(f"{block}.ff.net.2"),
        }
    return params


def test_it_computes_what_diffusers_dit_does():
    torch, diffusers = (pytest.importorskip(name) for name in ("torch", "diffusers"))
    torch.manual_seed(0)
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=10,
        norm_eps=1e-6,
    ).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_(0, 0.2)
    # Every block of theirs has an embedder of its own, which trained weights repeat.
    embedder = theirs.transformer_blocks[0].norm1.emb
    theirs.transformer_blocks[1].norm1.emb.load_state_dict(embedder.state_dict())

    net = DiT(8, size="", depth=2, width=16, heads=2, num_classes=10, freq_shift=1)
    params = of_diffusers(theirs, 2)
    x, t = inputs(8, 4)
    label = jnp.array([3, 10])
    chw, steps, classes = (torch.tensor(np.array(a)) for a in (x.transpose(0, 3, 1, 2), t, label))
    with torch.no_grad():
        expected = theirs(chw, steps, class_labels=classes.long()).sample
    expected = expected.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(apply(net, params, x, t, label), expected, rtol=1e-4, atol=1e-4)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(
        apply(net, params, x, t)[1], expected[1], rtol=1e-4, atol=1e-4
    )  # no label is the null row


def test_a_new_network_predicts_zero():
    net = DiT(**SMALL, **CROSS, num_classes=3)
    params = jax.jit(net.init)(jax.random.key(0), *inputs())["params"]
    np.testing.assert_array_equal(apply(net, params, *inputs()), 0.0)
    for layer in ("modulation", "cross_out"):
        np.testing.assert_array_equal(params["block_0"][layer]["kernel"], 0.0)
    np.testing.assert_allclose(params["label"]["embedding"].std(), 0.02, rtol=0.3)


@pytest.mark.parametrize(
    "settings",
    [{"position": "rope"}, {"qk_norm": True}, {"swiglu": True}, {"patch": 4}],
    ids=str,
)
def test_an_option_runs_on_oblong_arrays_and_reaches_every_parameter(settings):
    net, params = small(**settings, num_classes=3, augment_dim=9, second_time=True)
    x, t = inputs()
    oblong = jnp.concatenate([x, x], axis=2)
    told = {"augment": jnp.ones((2, 9)), "t2": t + 1}
    found = apply(net, params, oblong, t, None, **told)
    assert found.shape == oblong.shape
    for given in ({}, {"augment": told["augment"]}, {"t2": told["t2"]}):
        assert np.abs(found - apply(net, params, oblong, t, None, **given)).max() > 1e-3
    assert without_gradient(net, params, x, t, jnp.arange(2), **told) == []


def test_rope_sees_where_patches_lie_to_each_other_and_not_where_they_are():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 16))
    down, right = transformer.grid_angles(6, 5, 4)
    angles = jnp.asarray(np.concatenate([down, right], axis=1), jnp.float32).reshape(6, 5, 8)

    def score(a, b):
        return jnp.vdot(*(transformer.turned(h, angles[at][None]) for h, at in ((q, a), (k, b))))

    near = score((0, 0), (2, 1))
    np.testing.assert_allclose(score((3, 2), (5, 3)), near, rtol=1e-4)
    assert abs(score((0, 0), (1, 2)) - near) > 1e-2


def test_queries_and_keys_are_normalised_where_asked():
    """Then their length does not matter: an attention cannot grow without bound."""
    x, t = inputs()
    for settings, changed in (({}, True), ({"qk_norm": True}, False)):
        net, params = small(**settings)
        longer = jax.tree.map(np.array, params)
        for layer in (longer["block_0"]["qkv"], longer["block_1"]["qkv"]):
            layer["kernel"][:, :32] *= 10
            layer["bias"][:32] *= 10
        difference = np.abs(apply(net, params, x, t) - apply(net, longer, x, t)).max()
        assert (difference > 1e-2) == changed


def oracle(p, x, condition, angles, tokens, visible, context):
    """A block with normalised queries and keys and SwiGLU, of one example, in numpy."""
    (n, width), count = x.shape, 2

    def linear(name, a):
        return a @ p[name]["kernel"] + p[name]["bias"]

    def norm(a):
        a = a - a.mean(-1, keepdims=True)
        return a / np.sqrt((a**2).mean(-1, keepdims=True) + 1e-6)

    def heads(a, name):
        a = a.reshape(len(a), count, -1)
        return a / np.sqrt((a**2).mean(-1, keepdims=True) + 1e-6) * p[f"{name}_norm"]["scale"]

    def turn(a):
        pairs = a[..., : a.shape[-1] // 2] + 1j * a[..., a.shape[-1] // 2 :]
        pairs = pairs * np.exp(1j * angles)[:, None]
        return np.concatenate([pairs.real, pairs.imag], axis=-1)

    def attend(q, k, v, shown):
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(q.shape[-1])
        weights = np.exp(scores) * shown
        weights = weights / weights.sum(-1, keepdims=True)
        return np.einsum("hqk,khd->qhd", weights, v.reshape(len(v), count, -1)).reshape(-1, width)

    def stream(name, a):
        parts = linear(f"{name}modulation", condition).reshape(-1, width)
        q, k, v = np.split(linear(f"{name}qkv", norm(a) * (1 + parts[1]) + parts[0]), 3, axis=-1)
        return parts, heads(q, f"{name}q"), heads(k, f"{name}k"), v

    parts, q, k, v = stream("", x)
    q, k, shown = turn(q), turn(k), np.ones(n)
    if context == "joint":
        _, *others = stream("context_", tokens)
        q, k, v = (np.concatenate(pair) for pair in zip((q, k, v), others, strict=True))
        shown = np.concatenate([shown, visible])
    x = x + parts[2] * linear("out", attend(q, k, v, shown)[:n])
    if context == "cross":
        k, v = np.split(linear("cross_kv", tokens), 2, axis=-1)
        q = heads(linear("cross_q", norm(x)), "cross_q")
        x = x + linear("cross_out", attend(q, heads(k, "cross_k"), v, visible))
    h, gate = np.split(linear("mlp_0", norm(x) * (1 + parts[4]) + parts[3]), 2, axis=-1)
    return x + parts[5] * linear("mlp_1", h * gate / (1 + np.exp(-gate)))


@pytest.mark.parametrize("context", ["", "cross", "joint"])
def test_a_block_with_all_options_is_its_formula(context):
    block = transformer.Block(2, context, qk_norm=True, swiglu=True, last=True)
    rng = np.random.default_rng(4)
    x, condition, tokens = (rng.normal(size=s) for s in ((6, 16), (16,), (3, 16)))
    angles, visible = rng.normal(size=(6, 4)), np.array([True, False, True])
    args = [jnp.asarray(a, jnp.float32)[None] for a in (x, condition, tokens)]
    args = [args[0], args[1], jnp.asarray(angles, jnp.float32), args[2], jnp.asarray(visible)[None]]
    params = random_like(jax.eval_shape(block.init, jax.random.key(0), *args)["params"])
    found, _ = apply(block, params, *args)
    wide = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    expected = oracle(wide, x, condition, angles, tokens, visible, context)
    np.testing.assert_allclose(found[0], expected, atol=1e-4)
    # Nothing reads the tokens of the last block, so they are not computed.
    ends = [name for name in params if name.startswith("context_") and "norm" not in name]
    assert sorted(ends) == (["context_modulation", "context_qkv"] if context == "joint" else [])
    if ends:
        assert params["context_modulation"]["kernel"].shape == (16, 2 * 16)


@pytest.mark.parametrize("settings", [JOINT, CROSS], ids=lambda s: s["context"])
def test_a_context_conditions_by_the_tokens_that_its_mask_shows(settings):
    net, params = small(**settings)
    x, t = inputs()
    context = jax.random.normal(jax.random.key(3), (2, 5, 6))
    mask = jnp.array([[True, True, True, False, False], [False] * 5])
    found = apply(net, params, x, t, context=context, context_mask=mask)
    hidden = jnp.where(mask[..., None], context, 100.0)
    np.testing.assert_array_equal(
        found, apply(net, params, x, t, context=hidden, context_mask=mask)
    )
    short = apply(net, params, x, t, context=context[:, :3])
    np.testing.assert_allclose(found[0], short[0], atol=1e-5)  # no mask shows them all
    assert np.abs(found[0] - apply(net, params, x, t, context=context)[0]).max() > 1e-3
    without = apply(net, params, x, t)
    np.testing.assert_allclose(found[1], without[1], atol=1e-5)  # no tokens, no context
    assert np.abs(found[0] - without[0]).max() > 1e-3
    # The empty context is learned, and a set of tokens has no order.
    assert without_gradient(net, params, x, t, context=context, context_mask=mask) == []
    backwards = apply(net, params, x, t, context=context[:, 2::-1])
    np.testing.assert_allclose(backwards, short, atol=1e-5)


def test_bfloat16_activations_keep_float32_parameters_and_output():
    net, params = small(**JOINT, position="rope", qk_norm=True)
    half = DiT(**SMALL, **JOINT, position="rope", qk_norm=True, dtype="bfloat16")
    assert {a.dtype for a in jax.tree.leaves(shapes(half))} == {jnp.dtype("float32")}
    exact, rounded = (apply(n, params, *inputs()) for n in (net, half))
    assert rounded.dtype == jnp.float32
    error = np.abs(exact - rounded).max() / np.abs(exact).max()
    assert 1e-5 < error < 0.05  # below: it did not run in bfloat16 at all
    text = jax.jit(half.apply).lower({"params": params}, *inputs()).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert sum("bf16" in line for line in products) > len(products) / 2


@pytest.mark.parametrize(
    ("settings", "given", "words"),
    [
        ({"depth": 0}, {}, r"network\.size, or all of .*\(0, 16, 2\)"),
        ({"heads": 3}, {}, r"network\.width=16 .*network\.heads=3"),
        ({"heads": 8, "position": "rope"}, {}, r"network\.heads=8.*network\.position='rope'"),
        ({"patch": 3}, {}, r"8x8, which network\.patch=3"),
        ({"context": "cross"}, {}, r"network\.context='cross' and network\.context_dim=0"),
        ({"context_dim": 6}, {}, r"network\.context='' and network\.context_dim=6"),
        ({}, {"context": jnp.zeros((2, 5, 6))}, r"\(2, 5, 6\).*network\.context=''"),
        (JOINT, {"context": jnp.zeros((2, 5, 7))}, r"\(2, 5, 7\).*network\.context_dim=6"),
        (JOINT, {"context_mask": jnp.ones((2, 5), bool)}, r"mask of shape \(2, 5\).*no context"),
        ({}, {"label": jnp.zeros(2, jnp.int32)}, "num_classes=0"),
        ({}, {"augment": jnp.zeros((2, 9))}, r"network\.augment_dim=0"),
        ({}, {"t2": jnp.zeros(2)}, r"network\.second_time=False"),
    ],
)
def test_what_does_not_fit_is_named(settings, given, words):
    net = DiT(**SMALL | settings)
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(functools.partial(net.init, **given), jax.random.key(0), *inputs())
