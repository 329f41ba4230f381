"""A VAE's labels, samples and training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from vae_toys import (
    DIGITS,
    PIXELS,
    SHAPE,
    Formula,
    bound,
    config,
    constant,
    digit_like,
    driver,
    floats,
    identity,
    images,
    keys_of,
    loss,
    metrics,
    mlp,
    started,
    vae,
    viewed,
)

from aigc_jax import build
from aigc_jax.family import Variables
from aigc_jax.runs import pictures
from aigc_jax.sampling.driver import Driver
from aigc_jax.training import sharding
from aigc_jax.vae import likelihood as likelihoods
from aigc_jax.vae import prior

# --- Labels ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def conditional():
    """A conditional family on images of the digits' size, new variables, what draws from it."""
    made = mlp(vae__conditional=True)
    variables = Variables(*jax.jit(made.init)(jax.random.key(0)))
    return made, variables, Driver(made.drawing, "cpu")


def test_labels_change_what_a_conditional_model_says_and_draws(conditional):
    made, variables, drawn = conditional
    assert made.drawing.conditions == DIGITS.conditions
    batch = floats(digit_like())
    other = batch | {"label": (batch["label"] + 1) % 10}
    key, keys = jax.random.key(0), keys_of(16)

    def both(of):
        return (of(given) for given in (batch, other))

    evaluate, encode, decode = map(jax.jit, (made.evaluate, made.codec.encode, made.codec.decode))
    a, b = both(lambda given: evaluate(variables, given, key))
    for name in ("distortion", "kl"):  # so the decoder and the encoder have seen them
        assert np.all(np.asarray(a[name]) != b[name])
    a, b = both(lambda given: encode(variables, given)["mean"])
    assert np.all(np.asarray(a) != b)
    a, b = both(lambda given: decode(variables, jnp.zeros((16, 3)), {"label": given["label"]}))
    assert np.abs(a - b).max(axis=(1, 2, 3)).min() > 1e-3
    a, b = both(lambda given: drawn(variables, keys, {"label": given["label"]}))
    assert np.abs(a - b).max(axis=(1, 2, 3)).min() > 1e-3
    a, b = both(lambda given: made.bound(variables, given, key))
    assert np.all(np.asarray(a["neg_log_p_iw4"]) != b["neg_log_p_iw4"])


def test_the_decoder_is_given_the_label_wherever_it_is_used():
    level = jnp.array([0.1, 0.2, 0.3])

    def decode(weights, z, label):
        return 0.0 * z + level[label][:, None, None, None]

    network = Formula(constant(0.0, 0.0), decode)
    label = jnp.array([0, 2, 1, 1])
    batch = images(4) | {"label": label}
    expected = np.broadcast_to(level[label][:, None, None, None], (4, *SHAPE))
    squares = np.sum((batch["x"] - expected) ** 2, axis=(1, 2, 3)) / 0.25
    nats = 0.5 * (squares + PIXELS * np.log(2 * np.pi * 0.25))
    made = vae(network, classes=3)
    np.testing.assert_allclose(metrics(made, batch)["neg_elbo"], nats, rtol=1e-5)
    np.testing.assert_allclose(bound(made, batch), nats, rtol=1e-5)
    for samples in (1, 2):
        one = vae(network, classes=3, importance={"samples": samples})
        np.testing.assert_allclose(loss(one, batch)[0], nats.mean(), rtol=1e-5)
    variables, keys, cond = started(made), keys_of(4), {"label": label}
    shown = [driver(made)(variables, keys, cond), made.decode(variables, 0 * expected, cond)]
    shown += list(driver(made).frames(variables, keys, cond, 2))
    shown.append(made.reconstruct(variables, batch, keys[0])["reconstruction"][1])
    for found in shown:
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    ways = pictures.interpolations(made.family().drawing, variables, keys, cond)
    np.testing.assert_allclose(ways, np.stack([expected[:2]] * 10, axis=1), rtol=1e-6)

    def of_vectors(weights, z, label):
        return jnp.zeros((len(z), *SHAPE)) + level[label][:, None, None, None]

    made = vae(Formula(constant(0.0, 0.0), of_vectors, latent_shape=(3,)), classes=3)
    figures = made.figures(variables, keys, cond)  # all of the first key's label
    np.testing.assert_allclose(next(iter(figures.values())), 0.1, rtol=1e-6)


def test_a_model_without_labels_never_sees_one():
    made = mlp()  # its network raises where it is given one
    assert made.drawing.conditions == {}
    batch, key, cond = floats(digit_like()), jax.random.key(0), {"label": jnp.zeros(4, jnp.int32)}

    def everything(variables):
        found = [made.phases[0].loss(viewed(variables), batch, key)]
        found += [of(variables, batch, key) for of in (made.evaluate, made.views.reconstruct)]
        found += [made.bound(variables, batch, key), made.codec.encode(variables, batch)]
        keys, drawn = keys_of(4), Driver(made.drawing, "cpu")
        samples = drawn(variables, keys, cond)
        frames = drawn.frames(variables, keys, cond, 2)
        return found, samples, frames, made.codec.decode(variables, jnp.zeros((4, 3)), cond)

    *_, samples, frames, decoded = jax.eval_shape(
        everything, jax.eval_shape(lambda: Variables(*made.init(key)))
    )
    assert samples.shape == frames.shape[1:] == decoded.shape == (4, 8, 8, 1)


# --- Samples -----------------------------------------------------------------------------------


def two_clusters(n=6000):
    """Codes [N, 2, 2, 1] of two Gaussians, 3/4 and 1/4 of them; their means and covariances."""
    rng = np.random.default_rng(0)
    means = np.array([[-0.5, -0.5, 0.5, 0.0], [0.5, 0.5, 0.0, 0.3]])
    roots = 0.03 * rng.normal(size=(2, 4, 4))
    which = (np.arange(n) % 4 == 0).astype(int)
    z = means[which] + np.einsum("nij,nj->ni", roots[which], rng.normal(size=(n, 4)))
    covariances = roots @ roots.transpose(0, 2, 1)
    return {"mean": z.reshape(n, *SHAPE).astype(np.float32)}, means, covariances


def of_codes(**sampling):
    """A model whose samples are its codes."""
    return vae(Formula(identity), sampling=sampling)


def prepared(made, codes):
    """Variables with what the family makes of codes."""
    variables = started(made)
    made = made.family().drawing.prepare(variables, lambda: codes)
    return variables._replace(prepared=jax.device_put(made))


def drawn(made, variables, n=6000):
    z = driver(made)(variables, keys_of(n), {})
    assert z.shape == (n, *SHAPE)
    return np.asarray(z).reshape(n, PIXELS)


def test_a_fitted_mixture_draws_its_clusters_as_often_and_as_wide_as_they_are():
    codes, means, covariances = two_clusters()
    made = of_codes(prior="mixture")
    assert made.family().drawing.prepared_as == "mixture of 2"
    variables = prepared(made, codes)
    z = drawn(made, variables)
    right = z[:, 0] > 0
    np.testing.assert_allclose(right.mean(), 0.25, atol=0.03)
    for part, mean, covariance in zip((z[~right], z[right]), means, covariances, strict=True):
        np.testing.assert_allclose(part.mean(axis=0), mean, atol=0.01)
        found, size = np.cov(part.T), np.abs(covariance).max()
        np.testing.assert_allclose(found, covariance, atol=0.15 * size)
    # A quarter of the temperature is a quarter of the spread, about the same means as often.
    cold = drawn(of_codes(prior="mixture", temperature=0.25), variables)
    np.testing.assert_allclose((cold[:, 0] > 0).mean(), right.mean(), atol=1e-6)
    np.testing.assert_allclose(np.cov(cold[~right].T), np.cov(z[~right].T) / 16, atol=1e-5)


def test_temperature_zero_draws_the_means():
    codes, *_ = two_clusters()
    made = of_codes(temperature=0.0)
    assert np.all(drawn(made, started(made)) == 0)
    made = of_codes(temperature=0.0, prior="mixture")
    variables = prepared(made, codes)
    z = drawn(made, variables)
    found, counts = np.unique(z, axis=0, return_counts=True)
    means = np.asarray(variables.prepared["mixture"]["means"])
    assert {tuple(row) for row in found} == {tuple(row) for row in means}
    np.testing.assert_allclose(np.sort(counts) / len(z), [0.25, 0.75], atol=0.03)


def test_codes_without_a_mixture_are_normal_at_their_temperature():
    for temperature in (0.1, 0.2):  # images end at 1, so small
        made = of_codes(temperature=temperature)
        z = drawn(made, started(made))
        np.testing.assert_allclose(np.cov(z.T), temperature**2 * np.eye(PIXELS), atol=0.002)
        np.testing.assert_allclose(z.mean(axis=0), 0, atol=0.01)
    assert made.family().drawing.prepare is None
    assert made.family().drawing.prepared_as == ""


@pytest.mark.parametrize("components", [0, 7])
def test_a_mixture_has_as_many_parts_as_it_can(components):
    codes = {"mean": np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)}
    with pytest.raises(ValueError, match=r"sampling\.components must lie in 1\.\.6, not"):
        prior.fit_mixture(codes, components)


@pytest.mark.parametrize("kind", ["normal", "mixture"])
def test_sample_i_depends_on_key_i_alone(conditional, kind):
    made, variables, drawing = conditional
    if kind == "mixture":
        made = mlp(vae__conditional=True, sampling__prior=kind, sampling__components=2)
        codes = {"mean": np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)}
        fitted = made.drawing.prepare(variables, lambda: codes)
        variables, drawing = variables._replace(prepared=fitted), Driver(made.drawing, "cpu")
    keys, label = keys_of(9), jnp.arange(9, dtype=jnp.int32)
    many = np.asarray(drawing(variables, keys, {"label": label}))
    assert many.shape == (9, 8, 8, 1)
    assert np.abs(many).max() <= 1
    assert len(np.unique(many.reshape(9, -1), axis=0)) == 9
    chosen = jnp.array([7, 2, 5])
    few = drawing(variables, keys[chosen], {"label": label[chosen]})
    np.testing.assert_allclose(few, many[chosen], atol=1e-5)


def test_a_path_leads_from_one_sample_to_another_in_a_straight_line():
    made, keys = of_codes(temperature=0.2), keys_of(5)
    frames = np.asarray(driver(made).frames(started(made), keys, {}, 5))
    assert frames.shape == (5, 5, *SHAPE)
    begin = driver(made)(started(made), keys, {})
    np.testing.assert_allclose(frames[0], begin, atol=1e-6)
    steps = np.diff(frames, axis=0)
    np.testing.assert_allclose(steps, np.broadcast_to(steps[:1], steps.shape), atol=1e-6)
    assert np.abs(steps).max(axis=(0, 2, 3, 4)).min() > 1e-3


# --- Training ----------------------------------------------------------------------------------


def train(devices, count=3, **changes):
    """States before and after a few real steps, with their metrics, and the compiled step."""
    setting = config(optimizer__name="sgd", optimizer__learning_rate=1e-3, **changes)
    plan = toys.recipe_of(build.build(setting, DIGITS), setting)
    mesh = sharding.make_mesh(jax.devices()[:devices])
    target = sharding.abstract_state(plan, mesh, "replicated")
    state = sharding.new_state(plan, target, 0)
    before = jax.device_get(state.params)
    run, shown = toys.one_step(plan, mesh, target, {}), []
    for seed in range(count):
        batch = jax.tree.map(lambda x: x[None], digit_like(seed=seed))
        state, found = run((0,), state, batch)
        shown.append(found)
    return before, jax.device_get(state), shown, run


@pytest.mark.parametrize("changes", [{}, {"vae__importance__samples": 3, "vae__conditional": True}])
def test_eight_devices_train_as_one(changes):
    changes = {"vae__noise__kind": "salt_pepper", "vae__noise__level": 0.2, **changes}
    (before, *one, run), (_, *eight, _) = (train(n, **changes) for n in (1, 8))
    for a, b in zip(toys.arrays(one), toys.arrays(eight), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert int(one[0].step) == 3
    assert one[0].params.keys() == {"net"}
    for old, new in zip(toys.arrays(before), toys.arrays(one[0].params), strict=True):
        assert not np.array_equal(old, new)  # sigma too
    assert {"net/loss", "net/neg_elbo"} <= one[1][0].keys()
    assert run._cache_size() == 1  # with a learned sigma among the parameters


def test_a_trained_average_is_the_networks_and_the_sigmas():
    made = mlp(vae__likelihood__name="gaussian_learned")
    assert made.averaged == ("net",)
    assert [phase.player for phase in made.phases] == ["net"]
    params, extra = jax.eval_shape(made.init, jax.random.key(0))
    assert params["net"].keys() == {"network", "log_sigma"}
    assert extra == {}
    assert made.transferred == ()
    assert made.constants is None


OF_ITS_OWN = {"gaussian": {"sigma": 0.1}, "laplace": {"scale": 0.1}}


@pytest.mark.parametrize(
    ("name", "samples", "binarise"),
    [
        (name, *how)
        for name in likelihoods.LIKELIHOODS
        for how in ((1, "none"), (2, "threshold"))
        if (name, how[0]) != ("gaussian_optimal", 2)  # refused
    ],
)
def test_nothing_is_nan_where_the_weights_have_run_away(name, samples, binarise):
    likelihood = likelihoods.build(name, 1, **OF_ITS_OWN.get(name, {}))
    sign = jnp.where(jnp.arange(likelihood.channels) % 2, -1.0, 1.0)[None, None, None]
    network = Formula(
        lambda weights, x, label: (weights["mean"] * x, weights["logvar"] + 0.0 * x),
        lambda weights, z, label: weights["out"] * (z[..., :1] + 0.1) * sign,
        {"mean": jnp.float32(1.0), "logvar": jnp.float32(0.0), "out": jnp.float32(1.0)},
    )
    made = vae(network, likelihood=likelihood, binarise=binarise, importance={"samples": samples})
    assert (made.family().bound is None) == (name == "gaussian_optimal")
    net = started(made).params["net"]
    of = made.family().phases[0].loss
    batch = {"x": jnp.linspace(-1, 1, 16).reshape(4, *SHAPE)}

    def value(params, batch):
        return of(viewed(Variables(params, {})), batch, jax.random.key(0))

    run = jax.jit(jax.value_and_grad(value, has_aux=True))
    for extreme in ({"out": 1e4}, {"logvar": 1e4}, {"logvar": -1e4, "out": 1e4}):
        weights = net["network"] | {k: jnp.float32(v) for k, v in extreme.items()}
        for leaf in jax.tree.leaves(run({"net": net | {"network": weights}}, batch)):
            assert np.all(np.isfinite(leaf)), extreme
