"""A VAE's labels, samples and training, how it is judged, and what it refuses."""

import itertools

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
    family,
    floats,
    identity,
    images,
    keys_of,
    loss,
    metrics,
    mlp,
    started,
)

from aigc_jax import build, judging
from aigc_jax.data import datasets
from aigc_jax.data.datasets import DataSpec
from aigc_jax.sampling import draw
from aigc_jax.training import loop, sharding
from aigc_jax.vae import likelihood as likelihoods
from aigc_jax.vae import posterior
from configs import vae_digits, vae_mnist

# --- Labels ------------------------------------------------------------------------------------


def test_labels_change_what_a_conditional_model_says_and_draws():
    made = mlp(vae__conditional=True)
    params, extra = started(made)
    assert made.num_classes == 10
    batch = floats(digit_like())
    other = batch | {"label": (batch["label"] + 1) % 10}
    key, keys = jax.random.key(0), keys_of(16)
    run = jax.jit(made.evaluate)
    a, b = (run(params, extra, given, key) for given in (batch, other))
    for name in ("distortion", "kl"):  # so the decoder and the encoder have seen them
        assert np.all(np.asarray(a[name]) != b[name])
    a, b = (made.codes(params, extra, given)["mean"] for given in (batch, other))
    assert np.all(np.asarray(a) != b)
    a, b = (made.decode(params, extra, jnp.zeros((16, 3)), g["label"]) for g in (batch, other))
    assert np.abs(a - b).max(axis=(1, 2, 3)).min() > 1e-3
    a, b = (made.sample(params, extra, keys, {"label": g["label"]}) for g in (batch, other))
    assert np.abs(a - b).max(axis=(1, 2, 3)).min() > 1e-3
    a, b = (made.likelihood(params, extra, given, key) for given in (batch, other))
    assert np.all(np.asarray(a["neg_log_p_iw4"]) != b["neg_log_p_iw4"])


def test_the_decoder_is_told_the_label_wherever_it_is_asked():
    level = jnp.array([0.1, 0.2, 0.3])

    def decode(weights, z, label):
        return 0.0 * z + level[label][:, None, None, None]

    network = Formula(constant(0.0, 0.0), decode, num_classes=3)
    label = jnp.array([0, 2, 1, 1])
    batch = images(4) | {"label": label}
    expected = np.broadcast_to(level[label][:, None, None, None], (4, *SHAPE))
    squares = np.sum((batch["image"] - expected) ** 2, axis=(1, 2, 3)) / 0.25
    nats = 0.5 * (squares + PIXELS * np.log(2 * np.pi * 0.25))
    made = family(network)
    np.testing.assert_allclose(metrics(made, batch)["neg_elbo"], nats, rtol=1e-5)
    np.testing.assert_allclose(bound(made, batch), nats, rtol=1e-5)
    for importance in (1, 2):
        value = loss(family(network, importance=importance), batch)[0]
        np.testing.assert_allclose(value, nats.mean(), rtol=1e-5)
    args, keys = started(made), keys_of(4)
    shown = [made.sample(*args, keys, {"label": label}), made.decode(*args, 0 * expected, label)]
    shown += list(made.trajectory(*args, keys, {"label": label}, 2))
    shown.append(made.restore(*args, batch, keys[0])["reconstruction"][1])
    for found in shown:
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_model_without_labels_never_sees_one():
    made = mlp()  # its network raises where it is given one
    assert made.num_classes == 0
    batch, key, cond = floats(digit_like()), jax.random.key(0), {"label": jnp.zeros(4, jnp.int32)}

    def everything(params, extra):
        found = [made.phases[0].loss, made.evaluate, made.likelihood, made.restore]
        found = [of(params, extra, batch, key) for of in found]
        keys = keys_of(4)
        samples = made.sample(params, extra, keys, cond)
        frames = made.trajectory(params, extra, keys, cond, 2)
        return found, made.codes(params, extra, batch), samples, frames

    *_, samples, frames = jax.eval_shape(everything, *jax.eval_shape(made.init, key))
    assert samples.shape == frames.shape[1:] == (4, 8, 8, 1)


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


def drawn(made, extra, n=6000):
    z = made.sample(started(made)[0], extra, keys_of(n), {})
    assert z.shape == (n, *SHAPE)
    return np.asarray(z).reshape(n, PIXELS)


def test_a_fitted_mixture_draws_its_clusters_as_often_and_as_wide_as_they_are():
    codes, means, covariances = two_clusters()
    made = family(Formula(identity), sampling={"prior": "mixture"})
    extra = made.prior(codes)
    z = drawn(made, extra)
    right = z[:, 0] > 0
    np.testing.assert_allclose(right.mean(), 0.25, atol=0.03)
    for part, mean, covariance in zip((z[~right], z[right]), means, covariances, strict=True):
        np.testing.assert_allclose(part.mean(axis=0), mean, atol=0.01)
        found, size = np.cov(part.T), np.abs(covariance).max()
        np.testing.assert_allclose(found, covariance, atol=0.15 * size)
    # A quarter of the temperature is a quarter of the spread, about the same means as often.
    cold = drawn(
        family(Formula(identity), sampling={"prior": "mixture", "temperature": 0.25}), extra
    )
    np.testing.assert_allclose((cold[:, 0] > 0).mean(), right.mean(), atol=1e-6)
    np.testing.assert_allclose(np.cov(cold[~right].T), np.cov(z[~right].T) / 16, atol=1e-5)


def test_temperature_zero_draws_the_means():
    codes, *_ = two_clusters()
    changes = {"temperature": 0.0}
    assert np.all(drawn(family(Formula(identity), sampling=changes), {}) == 0)
    made = family(Formula(identity), sampling=changes | {"prior": "mixture"})
    extra = made.prior(codes)
    z = drawn(made, extra)
    found, counts = np.unique(z, axis=0, return_counts=True)
    assert {tuple(row) for row in found} == {tuple(row) for row in extra["mixture"]["means"]}
    np.testing.assert_allclose(np.sort(counts) / len(z), [0.25, 0.75], atol=0.03)


def test_codes_without_a_mixture_are_normal_at_their_temperature():
    for temperature in (0.1, 0.2):  # images end at 1, so small
        made = family(Formula(identity), sampling={"temperature": temperature})
        z = drawn(made, {})
        np.testing.assert_allclose(np.cov(z.T), temperature**2 * np.eye(PIXELS), atol=0.002)
        np.testing.assert_allclose(z.mean(axis=0), 0, atol=0.01)
    assert made.prior is None


@pytest.mark.parametrize("components", [0, 7])
def test_a_mixture_has_as_many_parts_as_it_can(components):
    codes = {"mean": np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)}
    with pytest.raises(ValueError, match=r"sampling\.components must lie in 1\.\.6, not"):
        posterior.fit_mixture(codes, components)


@pytest.mark.parametrize("prior", ["normal", "mixture"])
def test_sample_i_depends_on_key_i_alone(prior):
    made = mlp(vae__conditional=True, sampling__prior=prior, sampling__components=2)
    params, extra = started(made)
    if prior == "mixture":
        rng = np.random.default_rng(0)
        extra = extra | made.prior({"mean": rng.normal(size=(50, 3)).astype(np.float32)})
    keys, label = keys_of(9), jnp.arange(9, dtype=jnp.int32)
    many = np.asarray(made.sample(params, extra, keys, {"label": label}))
    assert many.shape == (9, 8, 8, 1)
    assert np.abs(many).max() <= 1
    assert len(np.unique(many.reshape(9, -1), axis=0)) == 9
    some = jnp.array([7, 2, 5])
    few = made.sample(params, extra, keys[some], {"label": label[some]})
    np.testing.assert_allclose(few, many[some], atol=1e-5)


def test_a_path_leads_from_one_sample_to_another_in_a_straight_line():
    made = family(Formula(identity), sampling={"temperature": 0.2})
    keys = keys_of(5)
    frames = np.asarray(made.trajectory({"net": {"network": {}}}, {}, keys, {}, 5))
    assert frames.shape == (5, 5, *SHAPE)
    begin = made.sample({"net": {"network": {}}}, {}, keys, {})
    np.testing.assert_allclose(frames[0], begin, atol=1e-6)
    steps = np.diff(frames, axis=0)
    np.testing.assert_allclose(steps, np.broadcast_to(steps[:1], steps.shape), atol=1e-6)
    assert np.abs(steps).max(axis=(0, 2, 3, 4)).min() > 1e-3


# --- Training ----------------------------------------------------------------------------------


def train(devices, count=3, **changes):
    """States before and after a few real steps, with their metrics, and the compiled step."""
    setting = config(optimizer__name="sgd", optimizer__learning_rate=1e-3, **changes)
    made = build.build(setting, DIGITS)
    plan = loop.recipe(setting, made)
    mesh = sharding.make_mesh(jax.devices()[:devices])
    target = sharding.abstract_state(plan, mesh, "replicated")
    state = sharding.new_state(plan, target, 0)
    before = jax.device_get(state.params)
    run, shown = sharding.compile_step(plan, mesh, target), []
    for seed in range(count):
        batch = jax.tree.map(lambda x: x[None], digit_like(seed=seed))
        state, found = run((0,), state, sharding.put(mesh, batch, axis=1))
        shown.append(jax.device_get(found))
    return before, jax.device_get(state), shown, run


@pytest.mark.parametrize("changes", [{}, {"vae__importance": 3, "vae__conditional": True}])
def test_eight_devices_train_as_one(changes):
    changes = {"vae__noise": "salt_pepper", "vae__noise_level": 0.2, **changes}
    (before, *one, _), (_, *eight, _) = (train(n, **changes) for n in (1, 8))
    for a, b in zip(toys.arrays(one), toys.arrays(eight), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert int(one[0].extra["step"]) == 3
    assert one[0].params.keys() == {"net"}
    for old, new in zip(toys.arrays(before), toys.arrays(one[0].params), strict=True):
        assert not np.array_equal(old, new)  # sigma too
    assert {"net/loss", "net/neg_elbo"} <= one[1][0].keys()


def test_a_step_is_compiled_once_with_a_learned_sigma():
    *_, run = train(1, vae__likelihood="gaussian_learned")
    assert run._cache_size() == 1


def test_a_trained_average_is_the_networks_and_the_sigmas():
    made = mlp(vae__likelihood="gaussian_learned")
    assert made.averaged == ("net",)
    assert [phase.player for phase in made.phases] == ["net"]
    params, extra = started(made)
    assert params["net"].keys() == {"network", "log_sigma"}
    assert extra.keys() == {"step"}


OF_ITS_OWN = {"gaussian": {"sigma": 0.1}, "laplace": {"scale": 0.1}}


@pytest.mark.parametrize(
    ("name", "importance", "binarise"),
    [
        (name, *how)
        for name in likelihoods.LIKELIHOODS
        for how in ((1, "none"), (2, "threshold"))
        if (name, how[0]) != ("gaussian_optimal", 2)  # refused
    ],
)
def test_nothing_is_nan_where_the_weights_have_run_away(name, importance, binarise):
    likelihood = likelihoods.build(name, 1, **OF_ITS_OWN.get(name, {}))
    sign = jnp.where(jnp.arange(likelihood.channels) % 2, -1.0, 1.0)[None, None, None]
    network = Formula(
        lambda weights, x, label: (weights["mean"] * x, weights["logvar"] + 0.0 * x),
        lambda weights, z, label: weights["out"] * (z[..., :1] + 0.1) * sign,
        {"mean": jnp.float32(1.0), "logvar": jnp.float32(0.0), "out": jnp.float32(1.0)},
    )
    made = family(network, likelihood=likelihood, binarise=binarise, importance=importance)
    params, extra = started(made)
    run = jax.jit(jax.value_and_grad(made.phases[0].loss, has_aux=True))
    batch = {"image": jnp.linspace(-1, 1, 16).reshape(4, *SHAPE)}
    for extreme in ({"out": 1e4}, {"logvar": 1e4}, {"logvar": -1e4, "out": 1e4}):
        weights = params["net"]["network"] | {k: jnp.float32(v) for k, v in extreme.items()}
        wild = {"net": params["net"] | {"network": weights}}
        for leaf in jax.tree.leaves(run(wild, extra, batch, jax.random.key(0))):
            assert np.all(np.isfinite(leaf)), extreme


# --- Judging -----------------------------------------------------------------------------------


def test_codes_are_of_every_image_once_whatever_the_batch():
    data = datasets.load("digits")
    setting, mesh = config(train__batch_size=80), sharding.make_mesh()
    made = build.build(setting, data.spec)
    params, extra = jax.device_put(started(made), sharding.replicated(mesh))
    batches = judging.examples(setting, data, mesh)
    found = judging.codes(made, params, extra, batches)  # 296 = 3 x 80 + 56: the last is padded
    assert found.keys() == {"mean", "logvar"}
    assert all(array.shape == (296, 3) for array in found.values())
    every = data.sources["test"].fetch(np.arange(296))
    expected = made.codes(params, extra, floats(every))
    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-5)
    counted, warning = made.diagnose(found)
    assert counted["active_units"] == np.sum(found["mean"].var(axis=0) > 0.01)
    assert isinstance(warning, str)


def test_what_is_drawn_from_a_mixture_is_fitted_to_training_images():
    data = datasets.load("digits")
    setting = config(sampling__prior="mixture", sampling__components=3, train__batch_size=80)
    mesh = sharding.make_mesh()
    made = build.build(setting, data.spec)
    params, extra = jax.device_put(started(made), sharding.replicated(mesh))
    fitted = judging.with_prior(setting, made, data, mesh, params, extra, count=240)
    assert fitted["mixture"]["means"].shape == (3, 3)
    assert fitted["step"] is extra["step"]
    batches = judging.examples(setting, data, mesh, 240, split="train")
    means = judging.codes(made, params, extra, batches)["mean"]
    centre = np.exp(fitted["mixture"]["log_weights"]) @ np.asarray(fitted["mixture"]["means"])
    np.testing.assert_allclose(centre, means.mean(axis=0), atol=1e-3)
    images = draw(made.sample, params, fitted, mesh, seed=0, count=20, batch_size=16)
    assert np.concatenate(list(images)).shape == (20, 8, 8, 1)
    plain = mlp()
    assert judging.with_prior(setting, plain, data, mesh, params, extra) is extra


def test_a_collapsed_model_is_warned_of_and_a_living_one_is_not():
    rng = np.random.default_rng(0)
    shape = (200, 2, 2, 1)
    dead = {"mean": np.zeros(shape, np.float32), "logvar": np.zeros(shape, np.float32)}
    found, warning = posterior.diagnose(dead)
    assert found["active_units"] == 0
    np.testing.assert_allclose(found["largest_kl"], 0, atol=1e-6)
    np.testing.assert_allclose(found["mutual_information"], 0, atol=1e-5)
    assert warning.startswith("Posterior collapse: none of 4 latent dimensions")
    alive = {
        "mean": rng.normal(size=shape).astype(np.float32),
        "logvar": np.full(shape, -20, np.float32),
    }
    found, warning = posterior.diagnose(alive)
    assert warning == ""
    assert found["active_units"] == 4
    np.testing.assert_allclose(found["mutual_information"], np.log(200), rtol=1e-3)  # all it can be
    np.testing.assert_allclose(found["aggregate_variance"], 1, atol=0.15)


def test_every_variant_of_the_configs_can_be_built():
    spec = {vae_digits: DIGITS, vae_mnist: DataSpec((28, 28, 1), 10, {})}
    for module, variant in itertools.chain.from_iterable(
        [(module, name) for name in ("", *module.VARIANTS)] for module in spec
    ):
        made = build.build(module.get_config(variant), spec[module])
        params, _ = jax.eval_shape(made.init, jax.random.key(0))
        assert params.keys() == {"net"}, variant


def test_pictures_show_paths_of_codes_and_what_each_number_does():
    keys = jax.random.split(jax.random.key(0), 16)
    made = mlp(**{"network.latent": 2})
    params, extra = made.init(jax.random.key(1))
    found = {k.split(":")[0]: v for k, v in made.pictures(params, extra, keys, {}).items()}
    shapes = {name: images.shape for name, images in found.items()}
    assert shapes == {
        "Interpolations": (8, 10, 8, 8, 1),
        "Traversals": (2, 10, 8, 8, 1),
        "Manifold": (15, 15, 8, 8, 1),
    }
    ends = made.sample(params, extra, keys, {})
    np.testing.assert_allclose(found["Interpolations"][:, 0], ends[:8], atol=1e-5)
    np.testing.assert_allclose(found["Interpolations"][:, -1], ends[8:], atol=1e-5)
    effect = np.abs(found["Traversals"][:, -1] - found["Traversals"][:, 0]).sum((1, 2, 3))
    assert effect[0] >= effect[1] > 0
    middle = made.decode(params, extra, jnp.zeros((1, 2)), None)
    np.testing.assert_allclose(found["Manifold"][7, 7], middle[0], atol=1e-5)
