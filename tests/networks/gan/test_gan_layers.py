"""The layers of the GANs: against torch, numpy and closed forms, and which state they keep."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.networks.gan import layers
from aigc_jax.networks.gan.layers import (
    ConditionalBatchNorm,
    MinibatchStd,
    SelfAttention,
    check_conditioning,
    head,
    with_label,
)
from aigc_jax.networks.layers import check_shape, mean_pool, nearest

NORMAL = nn.initializers.normal(1.0)


class Layer(nn.Module):
    """One spectral layer: `settings` are those of layers.conv, or of dense without a size."""

    settings: dict

    @nn.compact
    def __call__(self, x, *, train=False):
        function = layers.conv if "size" in self.settings else layers.dense
        return function(
            x, 5, name="layer", init=NORMAL, spectral=True, train=train, **self.settings
        )


class Head(nn.Module):
    conditioning: str
    num_classes: int = 3

    @nn.compact
    def __call__(self, h, label=None):
        return head(
            h, label, num_classes=self.num_classes, conditioning=self.conditioning, init=NORMAL
        )


def randn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def channels_first(x):
    return np.array(x.transpose(0, 3, 1, 2)) if x.ndim == 4 else np.array(x)


def as_torch(kernel):
    """The matrix of a kernel as torch flattens it: [outputs, inputs x height x width]."""
    kernel = np.array(kernel)
    return np.moveaxis(kernel, (-1, -2), (0, 1)).reshape(kernel.shape[-1], -1)


SPECTRAL = {
    "conv": {"size": 3, "padding": 1},
    "strided": {"size": 4, "stride": 2, "padding": 1, "use_bias": False},
    "dense": {},
}


@pytest.mark.parametrize("kind", SPECTRAL)
def test_spectral_norm_is_torchs_in_training_and_in_evaluation(kind):
    torch = pytest.importorskip("torch")
    settings = SPECTRAL[kind]
    x = randn(2, 6, 4, 3) if "size" in settings else randn(2, 7)
    ours = Layer(settings)
    variables = ours.init(jax.random.key(0), x)
    weights = variables["params"]["layer"]
    if "bias" in weights:
        weights["bias"] = jnp.arange(5.0)

    bias = settings.get("use_bias", True)
    if "size" in settings:
        parts = (settings["size"], settings.get("stride", 1), settings["padding"])
        layer = torch.nn.Conv2d(3, 5, *parts, bias=bias)
    else:
        layer = torch.nn.Linear(7, 5, bias=bias)
    theirs = torch.nn.utils.spectral_norm(layer)
    kernel = torch.from_numpy(as_torch(weights["kernel"]).reshape(theirs.weight_orig.shape))
    with torch.no_grad():
        theirs.weight_orig.copy_(kernel)
        theirs.weight_u.copy_(torch.from_numpy(np.array(variables["batch_stats"]["layer"]["u"])))
        if bias:
            theirs.bias.copy_(torch.arange(5.0))

    @jax.jit
    def both(variables):
        def loss(params):
            stats = {"batch_stats": variables["batch_stats"]}
            out, new = ours.apply({"params": params} | stats, x, train=True, mutable="batch_stats")
            return jnp.square(out).mean(), (out, new)

        grads, (out, new) = jax.grad(loss, has_aux=True)(variables["params"])
        evaluated, same = ours.apply(variables | new, x, mutable="batch_stats")
        return out, new, evaluated, same, grads

    out, new, evaluated, same, grads = both(variables)
    expected = theirs(torch.from_numpy(channels_first(x)))
    np.testing.assert_allclose(channels_first(out), expected.detach(), rtol=1e-4, atol=1e-5)
    expected.square().mean().backward()
    gradient = theirs.weight_orig.grad.numpy().reshape(5, -1)
    np.testing.assert_allclose(as_torch(grads["layer"]["kernel"]), gradient, rtol=1e-4, atol=1e-5)
    u, v = (new["batch_stats"]["layer"][name] for name in "uv")
    np.testing.assert_allclose(u, theirs.weight_u.numpy(), atol=1e-6)
    # Two calls in evaluation: the second one sees what the first one left, which is nothing new.
    theirs.eval()
    theirs(torch.from_numpy(channels_first(x)))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(channels_first(x)))
    np.testing.assert_allclose(channels_first(evaluated), expected, rtol=1e-4, atol=1e-5)
    v_of_torch = theirs.weight_v.numpy()
    v = as_torch(np.asarray(v).reshape(*weights["kernel"].shape[:-1], 1))[0]
    np.testing.assert_allclose(v, v_of_torch, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, same["batch_stats"], new["batch_stats"])
    assert np.abs(u - variables["batch_stats"]["layer"]["u"]).max() > 1e-3


def test_spectral_norm_finds_the_first_singular_vectors():
    ours, x = Layer(SPECTRAL["conv"]), randn(1, 3, 3, 3)
    variables = ours.init(jax.random.key(3), x)
    step = jax.jit(lambda v: v | ours.apply(v, x, train=True, mutable="batch_stats")[1])
    first = variables["batch_stats"]["layer"]
    for _ in range(200):
        variables = step(variables)
    kernel = np.asarray(variables["params"]["layer"]["kernel"], np.float64)
    left, sizes, right = np.linalg.svd(kernel.reshape(-1, 5))
    u, v = (np.asarray(variables["batch_stats"]["layer"][name]) for name in "uv")
    np.testing.assert_allclose(abs(u @ right[0]), 1.0, atol=1e-6)
    np.testing.assert_allclose(abs(v @ left[:, 0]), 1.0, atol=1e-6)
    assert abs(first["u"] @ right[0]) < 0.99
    kernel = kernel.astype(np.float32) / np.float32(sizes[0])
    sides = ((1, 1), (1, 1))
    expected = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), sides, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(ours.apply(variables, x), expected, rtol=1e-4, atol=1e-5)


def test_a_spectral_layer_that_never_trained_is_not_out_of_scale():
    ours, x = Layer(SPECTRAL["dense"]), np.eye(7, dtype=np.float32)
    for seed in range(5):
        out = ours.apply(ours.init(jax.random.key(seed), x), x)
        assert 1.0 <= np.linalg.norm(out, 2) < 4.0


@pytest.mark.parametrize("layer", [Layer(SPECTRAL["dense"]), ConditionalBatchNorm()])
def test_without_a_mutable_collection_training_uses_the_batch_and_stores_nothing(layer):
    x = 3.0 + randn(8, 7)
    variables = layer.init(jax.random.key(0), x, train=True)  # creating is no update
    jax.tree.map(np.testing.assert_array_equal, variables, layer.init(jax.random.key(0), x))
    stored, new = layer.apply(variables, x, train=True, mutable="batch_stats")
    np.testing.assert_array_equal(layer.apply(variables, x, train=True), stored)
    assert np.abs(layer.apply(variables, x) - stored).max() > 1e-3
    changed = jax.tree.map(
        lambda a, b: np.abs(a - b).max(), new["batch_stats"], variables["batch_stats"]
    )
    assert max(jax.tree.leaves(changed)) > 1e-3


@pytest.mark.parametrize("shape", [(6, 4, 2, 3), (6, 3)])
def test_batch_norm_is_torchs_but_for_the_variance_that_it_stores(shape):
    torch = pytest.importorskip("torch")
    ours = ConditionalBatchNorm()
    theirs = (torch.nn.BatchNorm2d if len(shape) == 4 else torch.nn.BatchNorm1d)(3, momentum=0.1)
    variables = ours.init(jax.random.key(0), jnp.zeros(shape))
    scale, bias = jnp.array([1.0, 2.0, -0.5]), jnp.arange(3.0)
    variables = variables | {"params": {"scale": scale, "bias": bias}}
    with torch.no_grad():
        theirs.weight.copy_(torch.from_numpy(np.array(scale)))
        theirs.bias.copy_(torch.from_numpy(np.array(bias)))
    n = np.prod(shape[:-1])
    mean, biased = np.zeros(3), np.ones(3)
    for i in range(2):
        x = 5.0 + (i + 1) * randn(*shape, seed=i)
        out, new = ours.apply(variables, x, train=True, mutable="batch_stats")
        variables = variables | new
        expected = theirs(torch.from_numpy(channels_first(x))).detach()
        np.testing.assert_allclose(channels_first(out), expected, rtol=1e-4, atol=1e-5)
        axes = tuple(range(len(shape) - 1))
        mean = 0.9 * mean + 0.1 * x.mean(axes)
        biased = 0.9 * biased + 0.1 * x.var(axes)
    stats = variables["batch_stats"]
    np.testing.assert_allclose(stats["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(stats["mean"], theirs.running_mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], biased, rtol=1e-5)
    unbiased = 0.81 + (stats["var"] - 0.81) * n / (n - 1)  # 0.81 is left of the first variance
    np.testing.assert_allclose(unbiased, theirs.running_var, rtol=1e-5)
    theirs.eval().running_var.copy_(torch.from_numpy(np.array(stats["var"])))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(channels_first(x)))
    np.testing.assert_allclose(
        channels_first(ours.apply(variables, x)), expected, rtol=1e-4, atol=1e-5
    )


def test_conditional_batch_norm_takes_gain_and_bias_of_the_class():
    x, label = randn(4, 2, 2, 3), jnp.array([2, 0, 2, 1])
    ours = ConditionalBatchNorm(3)
    params = ours.init(jax.random.key(0), x, label)["params"]
    np.testing.assert_array_equal(params["scale"], np.ones((3, 3)))
    params = {"scale": randn(3, 3, seed=1), "bias": randn(3, 3, seed=2)}
    out = ours.apply(
        {"params": params, "batch_stats": {"mean": jnp.zeros(3), "var": jnp.ones(3)}},
        x,
        label,
        train=True,
    )
    plain = (x - x.mean((0, 1, 2))[None, None, None]) / np.sqrt(x.var((0, 1, 2)) + 1e-5)[
        None, None, None
    ]
    for i, k in enumerate(label):
        expected = plain[i] * params["scale"][k][None, None] + params["bias"][k][None, None]
        np.testing.assert_allclose(out[i], expected, rtol=1e-4, atol=1e-5)


def test_the_variance_of_a_far_away_batch_does_not_cancel():
    x = 1e4 + randn(64, 3)
    ours = ConditionalBatchNorm()
    out = ours.apply(ours.init(jax.random.key(0), x), x, train=True)
    np.testing.assert_allclose(np.std(out, axis=0), 1.0, atol=2e-3)


@pytest.mark.parametrize(("batch", "group", "features"), [(6, 3, 1), (6, 2, 2), (3, 4, 1)])
def test_minibatch_std_by_loops(batch, group, features):
    x = randn(batch, 2, 3, 4)
    out = MinibatchStd(group, features).apply({}, x)
    assert out.shape == (batch, 2, 3, 4 + features)
    np.testing.assert_array_equal(out[..., :4], x)
    apart = batch // min(group, batch)
    for i in range(batch):
        members = x[i % apart :: apart]
        assert len(members) == min(group, batch)
        for f, channels in enumerate(np.split(members, features, axis=-1)):
            std = np.sqrt(channels.var(axis=0) + 1e-8).mean()
            np.testing.assert_allclose(out[i, ..., 4 + f], np.full((2, 3), std), rtol=1e-5)


def test_minibatch_std_of_equal_examples_is_nearly_zero_with_a_finite_gradient():
    x = jnp.ones((4, 2, 2, 1))
    out, gradient = jax.value_and_grad(lambda x: MinibatchStd(4).apply({}, x)[..., 1].sum())(x)
    assert 0 < out < 0.01
    assert np.isfinite(gradient).all()


def test_batch_statistics_and_groups_do_not_depend_on_the_number_of_devices():
    class Both(nn.Module):
        @nn.compact
        def __call__(self, x):
            return MinibatchStd(4)(ConditionalBatchNorm()(x, train=True))

    x = randn(16, 2, 2, 3)
    variables = Both().init(jax.random.key(0), x)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
    run = jax.jit(Both().apply, static_argnames="mutable")
    one = run(variables, x, mutable="batch_stats")
    eight = run(variables, sharded, mutable="batch_stats")
    assert len(eight[0].sharding.device_set) == 8
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, eight)


def test_attention_is_the_papers_formula_and_the_identity_at_first():
    x = randn(2, 4, 2, 8)
    ours = SelfAttention()
    params = ours.init(jax.random.key(0), x)["params"]
    np.testing.assert_array_equal(ours.apply({"params": params}, x), x)
    kernels = {
        name: randn(*params[name]["kernel"].shape, seed=i)
        for i, name in enumerate(("query", "key", "value", "out"))
    }
    assert [k.shape for k in kernels.values()] == [(8, 1), (8, 1), (8, 4), (4, 8)]
    params = {name: {"kernel": kernel} for name, kernel in kernels.items()}
    out = ours.apply({"params": params | {"gamma": jnp.float32(0.7)}}, x)

    def pooled(h):
        return h.reshape(2, 2, 1, 2, -1).max(axis=(1, 3)).reshape(2, -1)

    for image, found in zip(x, out, strict=True):
        key = pooled(image @ kernels["key"])
        value = pooled(image @ kernels["value"])
        weights = np.exp((image.reshape(8, 8) @ kernels["query"]) @ key.T)
        weights /= weights.sum(axis=1, keepdims=True)
        expected = image.reshape(8, 8) + 0.7 * weights @ value @ kernels["out"]
        np.testing.assert_allclose(found.reshape(8, 8), expected, rtol=1e-4, atol=1e-5)


def test_every_matrix_of_a_spectral_attention_has_its_norm():
    state = SelfAttention(spectral=True).init(jax.random.key(0), randn(1, 2, 2, 8))["batch_stats"]
    assert set(state) == {"query", "key", "value", "out"}


def test_pooling_and_nearest_neighbours():
    x = randn(1, 4, 6, 2)
    small = mean_pool(x)
    np.testing.assert_allclose(small[0, 1, 2], x[0, 2:4, 4:6].mean((0, 1)), rtol=1e-5)
    assert small.shape == (1, 2, 3, 2)
    large = nearest(x, 2)
    np.testing.assert_array_equal(large, x.repeat(2, axis=1).repeat(2, axis=2))


def test_the_heads_of_a_discriminator():
    h, label = randn(4, 6), jnp.array([0, 2, 1, 2])
    outs = {}
    for kind in ("none", "projection", "classifier"):
        variables = Head(kind).init(jax.random.key(0), h, label)
        outs[kind] = (*Head(kind).apply(variables, h, label), variables["params"])
    plain, classes, params = outs["none"]
    assert classes is None
    assert set(params) == {"out"}
    np.testing.assert_allclose(plain, (h @ params["out"]["kernel"])[:, 0], rtol=1e-4, atol=1e-5)
    projected, classes, params = outs["projection"]
    assert classes is None
    added = (np.asarray(params["embedding"]["kernel"])[label] * h).sum(axis=1)
    expected = (h @ params["out"]["kernel"])[:, 0] + added
    np.testing.assert_allclose(projected, expected, rtol=1e-4, atol=1e-5)
    _, classes, params = outs["classifier"]
    np.testing.assert_allclose(classes, h @ params["classes"]["kernel"], rtol=1e-4, atol=1e-5)
    half = Head("classifier").apply({"params": params}, jnp.asarray(h, jnp.bfloat16))
    assert [a.dtype for a in half] == [jnp.float32, jnp.float32]


def test_a_label_is_appended_to_every_position():
    x, label = randn(2, 3, 2, 1), jnp.array([1, 0])
    out = with_label(x, label, 2)
    assert out.shape == (2, 3, 2, 3)
    np.testing.assert_array_equal(out[..., :1], x)
    np.testing.assert_array_equal(out[0, ..., 1:], np.tile([0, 1], (3, 2, 1)))
    np.testing.assert_array_equal(out[1, ..., 1:], np.tile([1, 0], (3, 2, 1)))
    np.testing.assert_array_equal(with_label(x, None, 0), x)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: check_conditioning("projektion", 3), "is one of none, projection, .*'projektion'"),
        (
            lambda: check_shape(randn(5, 2, 2, 1), (2, 3, 1)),
            r"examples of shape \(2, 3, 1\), not \(2, 2, 1\)",
        ),
        (
            lambda: check_conditioning("projection", 0),
            r"network\.discriminator\.conditioning='projection' needs data with labels; this data "
            "set has none",
        ),
        (lambda: with_label(randn(2, 3), None, 4), "num_classes=4 was given no label"),
        (lambda: with_label(randn(2, 3), jnp.zeros(2, int), 0), "num_classes=0"),
        (
            lambda: MinibatchStd(4).apply({}, jnp.zeros((6, 1, 1, 2))),
            "4 do not divide a batch of 6",
        ),
        (lambda: MinibatchStd(2, 2).apply({}, jnp.zeros((2, 1, 1, 3))), "2 features .* 3 channels"),
        (lambda: SelfAttention().apply({}, jnp.zeros((1, 3, 4, 8))), r"\(1, 3, 4, 8\)"),
        (lambda: SelfAttention().apply({}, jnp.zeros((1, 4, 4, 4))), r"\(1, 4, 4, 4\)"),
    ],
)
def test_what_does_not_fit_is_an_error(call, words):
    with pytest.raises(ValueError, match=words):
        call()
