"""The networks of the GANs: sizes, labels, state, dtypes, refusals, parity with torch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.networks.gan import dcgan, mlp, resnet

SHAPE = (24, 16, 2)  # 6x4 doubled twice
# Its random numbers compile several times faster on a CPU than the usual key's.
KEY = jax.random.key(0, impl="rbg")
GENERATORS = {
    "mlp": functools.partial(mlp.Generator, hidden=(8, 6)),
    "dcgan": functools.partial(dcgan.Generator, width=4),
    "resnet": functools.partial(resnet.Generator, width=8, attention=True),
}
DISCRIMINATORS = {
    "mlp": functools.partial(mlp.Discriminator, hidden=(8, 6)),
    "dcgan": functools.partial(dcgan.Discriminator, width=4),
    "dcgan-spectral": functools.partial(dcgan.Discriminator, width=4, norm="spectral"),
    "resnet": functools.partial(resnet.Discriminator, width=8, attention=True),
}


def inputs(net, batch=4, seed=1):
    shape = (net.latent,) if hasattr(net, "latent") else net.shape
    return np.random.default_rng(seed).normal(size=(batch, *shape)).astype(np.float32)


def shapes(net, label=None):
    label = None if label is None else label[:2]
    return jax.eval_shape(net.init, KEY, inputs(net, 2), label)


def variables_of(net, label=None):
    """Variables of a network with noise in all that is zero or one at first; nothing is compiled.

    The statistics are about those of a new network.
    """
    variables = shapes(net, label)
    rng = np.random.default_rng(3)

    def unit(a):
        return a / np.linalg.norm(a)

    def noisy(path, leaf):
        noise = rng.normal(size=leaf.shape).astype(np.float32)
        if path[-1].key == "kernel":
            return noise / np.sqrt(np.float32(noise[..., 0].size))
        return (path[-1].key == "scale") + np.float32(0.3) * noise

    def new(path, leaf):
        name, layer = path[-1].key, params
        if name in ("mean", "var"):
            return np.full(leaf.shape, name == "var", np.float32)
        for part in path[:-1]:
            layer = layer[part.key]
        matrix = layer["kernel"].reshape(-1, layer["kernel"].shape[-1])
        u = unit(np.ones(matrix.shape[1:], np.float32))
        noise = unit(rng.normal(size=leaf.shape).astype(np.float32))
        return u if name == "u" else unit(unit(matrix @ u) + 0.5 * noise)

    params = jax.tree_util.tree_map_with_path(noisy, variables["params"])
    stats = jax.tree_util.tree_map_with_path(new, variables.get("batch_stats", {}))
    return {"params": params} | ({"batch_stats": stats} if stats else {})


def size_of(variables):
    return sum(a.size for a in jax.tree.leaves(variables["params"]))


def differ(a, b):
    return np.abs(np.asarray(a) - np.asarray(b)).max() > 1e-4


def check_all_gradients(grads):
    for path, gradient in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(gradient).all(), jax.tree_util.keystr(path)
        assert np.abs(gradient).max() > 0, jax.tree_util.keystr(path)


def check_state(net, variables, new, label):
    """Every statistic changes in training; bfloat16 changes no shape and no dtype of a variable."""
    assert set(variables) <= {"params", "batch_stats"}
    half = shapes(net.clone(dtype="bfloat16"), label)
    assert half == shapes(net, label)
    assert {a.dtype for a in jax.tree.leaves(half)} == {jnp.dtype("float32")}
    old = variables.get("batch_stats", {})
    changed = jax.tree.map(
        lambda a, b: differ(a, b) or a.size == 1, old, new.get("batch_stats", {})
    )
    assert all(jax.tree.leaves(changed)), changed  # a unit vector of one number stays what it is


@pytest.mark.parametrize("kind", GENERATORS)
def test_a_generator_in_training_in_evaluation_and_in_bfloat16(kind):
    net = GENERATORS[kind](shape=SHAPE, latent=5, num_classes=3)
    half = net.clone(dtype="bfloat16")
    z, label = inputs(net), jnp.array([0, 1, 2, 0])
    variables = variables_of(net, label)

    @jax.jit
    def run(variables, z, label):
        def loss(params):
            new = variables | {"params": params}
            out, new = net.apply(new, z, label, train=True, mutable="batch_stats")
            return jnp.square(out - 0.5).mean(), (out, new)

        grads, (trained, new) = jax.grad(loss, has_aux=True)(variables["params"])
        outs = trained, net.apply(variables, z, label), half.apply(variables, z, label)
        return outs, new, grads

    _, new, grads = run(variables, z, label)
    check_all_gradients(grads)
    check_state(net, variables, new, label)
    state = variables | new
    outs, _, _ = run(state, z, label)
    for out in outs:
        assert out.shape == (4, *SHAPE)
        assert out.dtype == jnp.float32
        assert np.abs(out).max() <= 1
        assert all(differ(out[0], other) for other in out[1:])
    trained, stored, rounded = outs
    assert 1e-6 < np.abs(stored - rounded).mean() < 0.02  # below: it ran in float32

    z2 = z + np.array([0, 0, 0, 1], np.float32)[:, None]
    (trained2, stored2, _), _, _ = run(state, z2, label)
    np.testing.assert_allclose(stored2[:3], stored[:3], atol=1e-6)
    assert differ(trained2[:3], trained[:3]) == (kind != "mlp")  # which has no batch norm
    (_, stored2, _), _, _ = run(state, z, label.at[3].set(1))
    np.testing.assert_allclose(stored2[:3], stored[:3], atol=1e-6)
    assert differ(stored2[3], stored[3])


@pytest.mark.parametrize("kind", DISCRIMINATORS)
def test_a_discriminator_in_training_in_evaluation_and_in_bfloat16(kind):
    net = DISCRIMINATORS[kind](shape=SHAPE, num_classes=3, conditioning="projection")
    half = net.clone(dtype="bfloat16")
    x, label = inputs(net), jnp.array([0, 1, 2, 0])
    variables = variables_of(net, label)

    @jax.jit
    def run(variables, x, label):
        def loss(params):
            new = variables | {"params": params}
            (out, _), new = net.apply(new, x, label, train=True, mutable="batch_stats")

            def logits(x):  # a second call stores nothing, and needs no other collection
                return net.apply(variables | {"params": params}, x, label, train=True)[0].sum()

            return jnp.square(out - 9).mean() + jnp.square(jax.grad(logits)(x)).sum(), (out, new)

        grads, (trained, new) = jax.grad(loss, has_aux=True)(variables["params"])
        stored, classes = net.apply(variables, x, label)
        assert classes is None
        return (trained, stored, half.apply(variables, x, label)[0]), new, grads

    _, new, grads = run(variables, x, label)
    check_all_gradients(grads)
    check_state(net, variables, new, label)
    state = variables | new
    outs, _, _ = run(state, x, label)
    for out in outs:
        assert out.shape == (4,)
        assert out.dtype == jnp.float32
        assert all(differ(out[0], other) for other in out[1:])
    trained, stored, rounded = outs
    assert 1e-6 < np.abs(stored - rounded).max() / np.abs(stored).max() < 0.1

    x2 = x + np.array([0, 0, 0, 1], np.float32)[:, None, None, None]
    (trained2, stored2, _), _, _ = run(state, x2, label)
    np.testing.assert_allclose(stored2[:3], stored[:3], rtol=1e-5, atol=1e-5)
    assert differ(trained2[:3], trained[:3]) == (kind == "dcgan")
    (_, stored2, _), _, _ = run(state, x, label.at[3].set(1))
    np.testing.assert_allclose(stored2[:3], stored[:3], rtol=1e-5, atol=1e-5)
    assert differ(stored2[3], stored[3])


@pytest.mark.parametrize("kind", ["mlp", "dcgan", "resnet"])
def test_what_each_conditioning_does_with_a_label(kind):
    label = jnp.array([0, 1, 2, 0])
    new = functools.partial(DISCRIMINATORS[kind], shape=(8, 8, 1), num_classes=3)
    net = new(conditioning="concat")
    x, variables = inputs(net), variables_of(net, label)
    run = jax.jit(net.apply)
    logits, classes = run(variables, x, label)
    changed, _ = run(variables, x, label.at[0].set(1))
    assert classes is None
    assert differ(logits[0], changed[0])
    np.testing.assert_allclose(logits[1:], changed[1:], rtol=1e-5, atol=1e-5)

    net = new(conditioning="classifier")
    variables = variables_of(net)
    run = jax.jit(net.apply)
    (logits, classes), (again, _) = (run(variables, x, y) for y in (label, label.at[0].set(1)))
    assert classes.shape == (4, 3)
    assert classes.dtype == jnp.float32
    assert differ(classes[0], classes[1])
    np.testing.assert_array_equal(logits, again)

    # With "none" it is the same network without the class logits, whatever the label.
    del variables["params"]["classes"]
    variables.get("batch_stats", {}).pop("classes", None)
    plain, classes = jax.jit(new().apply)(variables, x, label)
    assert classes is None
    np.testing.assert_allclose(plain, logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", GENERATORS)
def test_generators_refuse_labels_that_do_not_go_with_them(kind):
    label = jnp.zeros(2, int)
    for num_classes, given, words in ((0, label, "num_classes=0"), (3, None, "=3 was given no")):
        net = GENERATORS[kind](shape=(8, 8, 1), num_classes=num_classes)
        with pytest.raises(ValueError, match=words):
            shapes(net, given)


@pytest.mark.parametrize("kind", DISCRIMINATORS)
def test_discriminators_refuse_what_does_not_fit(kind):
    new = functools.partial(DISCRIMINATORS[kind], shape=(8, 8, 1))
    for conditioning in ("projection", "concat", "classifier"):
        words = rf"conditioning='{conditioning}' needs data with labels; this data set has none"
        with pytest.raises(ValueError, match=rf"network\.discriminator\.{words}"):
            shapes(new(conditioning=conditioning))
    for conditioning in ("projection", "concat"):
        with pytest.raises(ValueError, match="num_classes=3 was given no label"):
            shapes(new(conditioning=conditioning, num_classes=3))
    with pytest.raises(ValueError, match=r"examples of shape \(8, 8, 1\), not \(8, 4, 1\)"):
        jax.eval_shape(new().init, jax.random.key(0), jnp.zeros((2, 8, 4, 1)))


@pytest.mark.parametrize(
    ("module", "side", "words"), [(dcgan, 6, "6x36, .* 7 pixels"), (resnet, 32, "32x36")]
)
def test_an_image_that_no_map_doubles_to_is_an_error(module, side, words):
    for net in (module.Generator, module.Discriminator):
        with pytest.raises(ValueError, match=f"images are {words}"):
            shapes(net(shape=(side, 36, 3)))


@pytest.mark.parametrize(
    ("sides", "number", "map_"),
    [
        ((64, 64), 4, (4, 4)),
        ((28, 28), 3, (4, 4)),
        ((48, 40), 3, (6, 5)),
        ((7, 30), 1, (4, 15)),
    ],
)
def test_a_dcgan_doubles_the_smallest_map_until_the_image_fits_in(sides, number, map_):
    assert dcgan.canvas((*sides, 3)) == (number, map_)
    for side, own, (before, after) in zip(sides, map_, dcgan.margins((*sides, 3)), strict=True):
        assert 0 <= after - before <= 1
        assert before + side + after == own << number


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (mlp.Generator(output="sigmoid"), "generator.output is one of tanh, linear, not 'sigmoid'"),
        (mlp.Generator(activation="elu"), "activation is one of relu, leaky_relu, not 'elu'"),
        (dcgan.Discriminator(norm="layer"), "norm is one of batch, spectral, none, not 'layer'"),
        (resnet.Discriminator(norm="batch"), "norm is one of spectral, none, not 'batch'"),
        (resnet.Discriminator(pool="max"), "pool is one of sum, mean, not 'max'"),
    ],
)
def test_an_unknown_choice_names_the_known_ones(net, words):
    with pytest.raises(ValueError, match=words):
        shapes(net)


def test_the_mlp_is_matrix_products_between_its_rectifiers():
    kwargs = {"shape": (2,), "hidden": (4, 5)}  # points of the plane
    linear = mlp.Generator(latent=3, output="linear", **kwargs)
    judge = mlp.Discriminator(**kwargs)
    z = inputs(linear)
    made, judged = variables_of(linear), variables_of(judge)

    def layers(h, params, slope, first):
        for name in (first, "hidden_1"):
            h = h @ params[name]["kernel"] + params[name]["bias"][None]
            h = np.maximum(h, slope * h)
        return h @ params["out"]["kernel"] + params["out"]["bias"][None]

    points = linear.apply(made, z)
    expected = layers(z, made["params"], 0.0, "in")
    np.testing.assert_allclose(points, expected, rtol=1e-4, atol=1e-5)
    bounded = linear.clone(output="tanh").apply(made, z)
    np.testing.assert_allclose(bounded, np.tanh(expected), rtol=1e-4, atol=1e-5)
    leaky = linear.clone(activation="leaky_relu").apply(made, z)
    np.testing.assert_allclose(leaky, layers(z, made["params"], 0.2, "in"), rtol=1e-4, atol=1e-5)
    logits, _ = judge.apply(judged, points)
    expected = layers(expected, judged["params"], 0.2, "hidden_0")[:, 0]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_dcgan_starts_with_the_papers_weights():
    net = dcgan.Generator(shape=(16, 16, 3), width=16)
    params = jax.jit(net.init)(KEY, inputs(net, 2))["params"]
    for name in ("in", "up_0", "out"):
        assert 0.018 < params[name]["kernel"].std() < 0.022, name
    gains = np.concatenate([params[f"norm_{i}"]["scale"] for i in range(2)])
    assert 0.99 < gains.mean() < 1.01
    assert 0.013 < gains.std() < 0.027


def test_sngan_for_cifar_has_the_parameters_of_its_tables():
    def layer(inside, out, size=1):
        return size * size * inside * out + out

    up = 2 * (2 * 256) + 2 * layer(256, 256, 3) + layer(256, 256)
    generator = layer(128, 4 * 4 * 256) + 3 * up + 2 * 256 + layer(256, 3, 3)
    first = layer(3, 128, 3) + layer(128, 128, 3) + layer(3, 128)
    half, block = 2 * layer(128, 128, 3) + layer(128, 128), 2 * layer(128, 128, 3)
    discriminator = first + half + 2 * block + layer(128, 1)
    assert (generator, discriminator) == (4_276_739, 1_053_825)
    assert size_of(shapes(resnet.Generator())) == generator
    net = resnet.Discriminator()
    variables = shapes(net)
    assert size_of(variables) == discriminator
    spectral = jax.tree.leaves(variables["batch_stats"], is_leaf=lambda a: "u" in a)
    assert len(spectral) == 2 * 4 + 2 + 1  # convolutions, shortcuts, the linear layer
    # With 10 classes: one gain and bias each in two norms of three blocks, one embedding.
    label = jnp.zeros(2, int)
    made = shapes(resnet.Generator(num_classes=10), label)
    assert size_of(made) == generator + 3 * 2 * 9 * 2 * 256
    net = resnet.Discriminator(num_classes=10, conditioning="projection")
    variables = shapes(net, label)
    assert size_of(variables) == discriminator + 10 * 128
    assert variables["batch_stats"]["embedding"]["u"].shape == (128,)


@pytest.mark.parametrize(
    ("shape", "number"),
    [((64, 64, 3), 4), ((32, 32, 3), 3), ((28, 28, 1), 2), ((8, 8, 1), 1), ((12, 40, 1), 1)],
)
def test_a_resnets_doublings_from_a_map_of_4_to_7(shape, number):
    assert resnet.doublings(shape) == number
    assert 4 <= min(shape[:2]) / 2**number < 8


@pytest.mark.parametrize("shape", [(30, 30, 1), (32, 36, 1), (7, 7, 1), (1, 1, 2)])
def test_a_resnet_says_which_sides_it_can_have(shape):
    with pytest.raises(ValueError, match=f"{shape[0]}x{shape[1]}, .* as 8, 28, 32"):
        resnet.doublings(shape)


@pytest.mark.parametrize(
    ("shape", "start", "halvings"),
    [((32, 32, 3), 4, 2), ((64, 64, 3), 4, 3), ((28, 28, 1), 7, 1), ((8, 8, 1), 4, 1)],
)
def test_how_often_the_resnet_doubles_and_halves(shape, start, halvings):
    made = shapes(resnet.Generator(shape=shape, latent=2, width=8))["params"]
    assert made["in"]["kernel"].shape == (2, start * start * 8)
    net = resnet.Discriminator(shape=shape, width=8)
    blocks = [name for name in shapes(net)["params"] if name != "out"]
    down = [f"down_{i}" for i in range(halvings)]
    assert sorted(blocks) == ["block_0", "block_1", *down]


def test_spectral_dcgan_normalises_every_layer():
    net = dcgan.Discriminator(norm="spectral", num_classes=3, conditioning="projection")
    variables = shapes(net, jnp.zeros(2, int))
    names = {"down_0", "down_1", "down_2", "down_3", "out", "embedding"}
    assert set(variables["batch_stats"]) == set(variables["params"]) == names
    assert variables["params"]["embedding"]["kernel"].shape == (3, 4 * 4 * 512)
