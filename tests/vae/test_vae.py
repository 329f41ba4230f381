"""The VAE's bounds, and what encoder and likelihood are given."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from vae_toys import (
    PIXELS,
    Formula,
    bound,
    config,
    constant,
    digit_like,
    floats,
    identity,
    images,
    keys_of,
    loss,
    metrics,
    mlp,
    reconstructed,
    started,
    vae,
    viewed,
)

from aigc_jax import streams
from aigc_jax.family import Variables
from aigc_jax.training.step import init_state, train_step
from aigc_jax.vae import likelihood as likelihoods
from aigc_jax.vae import objectives
from aigc_jax.vae.noise import Noise
from aigc_jax.vae.posterior import diagnose

# --- Probabilistic PCA -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pca():
    """2000 points of 3 factors in noise of 0.5, 10 numbers each; eigenvalues.

    test_vae_objectives has the same points and what the best linear VAE makes of them.
    """
    rng = np.random.default_rng(0)
    w = rng.normal(size=(10, 3)) * np.array([3.0, 2.0, 1.0])
    x = rng.normal(size=(2000, 3)) @ w.T + 0.5 * rng.normal(size=(2000, 10))
    x -= x.mean(axis=0)
    values = np.linalg.eigvalsh(x.T @ x / len(x))[::-1]
    return {"x": jnp.asarray(x, jnp.float32)}, values


def linear(likelihood):
    """The linear VAE of 3 latent numbers with that likelihood, and random weights."""

    def encode(weights, x, label):
        mean = x @ weights["v"]
        return mean, jnp.broadcast_to(weights["logvar"][None], mean.shape)

    def decode(weights, z, label):
        return z @ weights["w"]

    v, w = 0.1 * np.random.default_rng(1).normal(size=(2, 10, 3)).astype(np.float32)
    network = Formula(encode, decode, {"v": v, "w": w.T, "logvar": np.zeros(3, np.float32)}, (3,))
    return vae(network, shape=(10,), likelihood=likelihood)


def trained(made, batch, steps=2000):
    """Variables after Adam on the whole batch at once."""
    setting = config(
        train__steps=steps, optimizer__learning_rate=2e-2, optimizer__schedule="cosine"
    )
    plan = toys.recipe_of(made.family(), setting)._replace(prepare=lambda batch, keys: batch)

    @jax.jit  # dense layers only: a scan of them is fast on a CPU too
    def run(batch):
        batch = jax.tree.map(lambda x: x[None], batch)

        def step(state, _):
            return train_step(plan, (0,), state, {}, batch)[0], None

        return jax.lax.scan(step, init_state(plan, *streams.init(0)), None, steps)[0]

    state = run(batch)
    assert int(state.step) == steps
    assert int(state.skipped) == 0
    return Variables(state.params, state.extra)


def test_training_a_linear_vae_finds_probabilistic_pca(pca):
    batch, values = pca
    made = linear(likelihoods.build("gaussian_learned", 10))
    variables = trained(made, batch, steps=4000)
    evaluate = jax.jit(jax.vmap(made.evaluate, in_axes=(None, None, 0)))
    elbo = -np.mean(evaluate(variables, batch, keys_of(32))["neg_elbo"])
    best = -13.44661419049149  # the likelihood's maximum, Tipping & Bishop 1999
    assert best - 0.1 < elbo < best + 0.02  # 64,000 draws leave 0.005 of noise
    sigma = jnp.exp(likelihoods.soft_floor(variables.params["net"]["log_sigma"]))
    np.testing.assert_allclose(sigma**2, values[3:].mean(), rtol=0.03)
    found, warning = diagnose(jax.device_get(made.encode(variables, batch)))
    assert found["active_units"] == 3
    assert warning == ""
    np.testing.assert_allclose(found["aggregate_mean"], 0, atol=0.1)
    np.testing.assert_allclose(found["aggregate_variance"], 1, atol=0.2)


@pytest.mark.parametrize("alive", [2, 0])
def test_latents_whose_eigenvalue_is_below_the_noise_die_and_are_counted(pca, alive):
    batch, values = pca
    noise = 0.5 * (values[1] + values[2]) if alive else 1.5 * values[0]
    made = linear(likelihoods.build("gaussian", 10, sigma=float(np.sqrt(noise))))
    found, warning = diagnose(jax.device_get(made.encode(trained(made, batch), batch)))
    assert found["active_units"] == alive
    # A factor is worth half the log of its eigenvalue over the noise, and what is below it nothing.
    worth = 0.5 * np.log(values[:alive] / noise)
    np.testing.assert_allclose(found["mutual_information"], worth.sum(), atol=0.15)
    if alive:
        assert warning == ""
        assert found["largest_kl"] > 0.5
    else:
        assert warning.startswith("Posterior collapse: none of 3")
        assert found["largest_kl"] < 0.01


# --- The bounds --------------------------------------------------------------------------------


def test_the_bound_is_distortion_and_kl_and_both_are_their_formulas():
    sigma, shift, logvar = 0.5, 0.3, -1.0
    made = vae(Formula(constant(shift, logvar), lambda w, z, label: 0.0 * z + 0.1))
    batch = images(6)
    found = metrics(made, batch)
    assert found.keys() == {"neg_elbo", "kl", "distortion", "bits_per_dim"}
    squares = np.sum((batch["x"] - 0.1) ** 2, axis=(1, 2, 3)) / sigma**2
    distortion = 0.5 * (squares + PIXELS * np.log(2 * np.pi * sigma**2))
    kl = 0.5 * PIXELS * (shift**2 + np.exp(logvar) - logvar - 1)
    np.testing.assert_allclose(found["distortion"], distortion, rtol=1e-5)
    np.testing.assert_allclose(found["kl"], kl, rtol=1e-5)
    np.testing.assert_allclose(found["neg_elbo"], distortion + kl, rtol=1e-5)
    bits = (distortion + kl) / (PIXELS * np.log(2)) + np.log2(127.5)
    np.testing.assert_allclose(found["bits_per_dim"], bits, rtol=1e-5)
    value, (shown, _) = loss(made, batch)
    np.testing.assert_allclose(value, np.mean(distortion + kl), rtol=1e-5)
    np.testing.assert_allclose(shown["neg_elbo"], value, rtol=1e-6)
    np.testing.assert_allclose(shown["kl"], kl, rtol=1e-5)


W, SIGMA = 0.7, 0.5  # x = W z + SIGMA eps of each pixel: its posterior and p(x) are known
EVIDENCE = W**2 + SIGMA**2


def linear_gaussian(off=0.0, **changes):
    """The model with the true posterior, or one whose mean and log-variance are `off`."""

    def encode(weights, x, label):
        mean = W / EVIDENCE * x + off
        return mean, jnp.full_like(x, math.log(SIGMA**2 / EVIDENCE) + off)

    network = Formula(encode, lambda weights, z, label: W * z)
    return vae(network, likelihood=likelihoods.build("gaussian", 1, sigma=SIGMA), **changes)


def neg_log_p(batch):
    squares = np.sum(np.asarray(batch["x"]) ** 2, axis=(1, 2, 3)) / EVIDENCE
    return 0.5 * (squares + PIXELS * np.log(2 * np.pi * EVIDENCE))


def test_with_the_true_posterior_one_sample_is_the_likelihood_whatever_it_is():
    batch = images(8)
    exact = neg_log_p(batch)
    for k in (1, 8):
        made = linear_gaussian(importance={"test_samples": k, "chunk": k})
        for seed in range(2):
            np.testing.assert_allclose(bound(made, batch, seed), exact, rtol=1e-4)
    value, (shown, _) = loss(linear_gaussian(importance={"samples": 3}), batch)
    np.testing.assert_allclose(value, exact.mean(), rtol=1e-4)
    np.testing.assert_allclose(shown["neg_elbo"], value, rtol=1e-4)
    many = {"x": jnp.tile(batch["x"], (500, 1, 1, 1))}
    found = metrics(linear_gaussian(), many)["neg_elbo"].mean()  # one sample and the KL's formula
    np.testing.assert_allclose(found, exact.mean(), atol=0.05)


def test_more_samples_tighten_the_bound_in_training_and_in_the_test():
    batch = {"x": jnp.tile(images(8)["x"], (200, 1, 1, 1))}
    exact = neg_log_p(batch).mean()
    counts = (1, 8, 100)
    losses = [
        float(loss(linear_gaussian(0.5, importance={"samples": k}), batch)[0]) for k in counts
    ]
    tests = [{"test_samples": k, "chunk": k} for k in counts]
    bounds = [bound(linear_gaussian(0.5, importance=test), batch).mean() for test in tests]
    for found in (losses, bounds):
        assert found == sorted(found, reverse=True)
        assert found[0] > exact + 0.5
        assert exact - 0.02 < found[-1] < exact + 0.1
    np.testing.assert_allclose(losses, bounds, rtol=0.05)


def test_the_test_estimate_names_its_samples_and_does_not_depend_on_the_chunk():
    batch = images(5)

    def noisy(chunk):
        importance = {"test_samples": 12, "chunk": chunk}
        noise = Noise("gaussian", 1.0)
        return linear_gaussian(0.5, binarise="dynamic", noise=noise, importance=importance)

    made = noisy(12)
    whole = bound(made, batch)
    assert whole.shape == (5,)
    found = made.importance_bound(started(made), batch, jax.random.key(0))
    assert found.keys() == {"neg_log_p_iw12"}
    for chunk in (1, 4):
        np.testing.assert_allclose(bound(noisy(chunk), batch), whole, rtol=1e-5)
    assert not np.allclose(bound(made, batch, seed=1), whole, rtol=1e-5)


def test_a_bound_of_several_batches_is_compiled_once():
    made = linear_gaussian(0.5, importance={"test_samples": 8, "chunk": 4})
    for seed in range(3):
        bound(made, images(5), seed)
    assert made._log_weights._cache_size() == 1


def test_what_the_kl_costs_follows_the_steps_of_the_run():
    made = vae(
        Formula(constant(1.0, 0.0), lambda w, z, label: 0.0 * z),
        cost=objectives.kl_cost("linear", steps=4, beta=2.0),
    )
    batch, kl = images(3), 0.5 * PIXELS
    without = metrics(made, batch)["distortion"].mean()
    assert started(made).extra == {}
    for step, share in enumerate((0.0, 0.25, 0.5, 0.75, 1.0, 1.0)):
        value, (shown, extra) = loss(made, batch, step=step)
        np.testing.assert_allclose(value, without + 2.0 * share * kl, rtol=1e-5)
        np.testing.assert_allclose(shown["neg_elbo"], without + kl, rtol=1e-5)
        assert extra == {}


def test_a_config_names_what_the_kl_costs():
    def cost(**changes):
        made = mlp(**changes)
        variables = Variables(*jax.jit(made.init)(jax.random.key(0)))
        batch, run = floats(digit_like(4)), jax.jit(made.phases[0].loss)
        value, (shown, _) = run(viewed(variables, 50), batch, jax.random.key(0))
        return float(value - shown["neg_elbo"]), float(shown["kl"])

    excess, kl = cost()
    np.testing.assert_allclose(excess, 0, atol=1e-4)
    np.testing.assert_allclose(cost(vae__kl__beta=3.0)[0], 2 * kl, rtol=1e-3, atol=1e-3)
    annealed = cost(vae__kl__weight="linear", vae__kl__steps=200)[0]
    np.testing.assert_allclose(annealed, -0.75 * kl, rtol=1e-3, atol=1e-3)
    free = cost(vae__kl__free_bits=50.0, vae__kl__free_bits_per="layer")[0]
    np.testing.assert_allclose(free, 50 - kl, rtol=1e-3)
    changes = {"vae__kl__weight": "capacity", "vae__kl__gamma": 10.0, "vae__kl__capacity": 40.0}
    capacity = cost(**changes, vae__kl__steps=100)[0]
    np.testing.assert_allclose(capacity, 10 * abs(kl - 20) - kl, rtol=1e-3)


# --- What the encoder, and what the likelihood, is given ----------------------------------------


def recording(**changes):
    """(model, given): {"encoder": what the network was given, "target": what was to be explained}.

    For functions that are not compiled.
    """
    given = {"encoder": [], "target": []}

    def encode(weights, x, label):
        if not isinstance(x, jax.core.Tracer):
            given["encoder"].append(np.asarray(x))
        return 0.0 * x, 0.0 * x

    plain = likelihoods.build("gaussian", 1, sigma=1.0)

    def log_prob(outputs, x):
        if not isinstance(x, jax.core.Tracer):
            given["target"].append(np.asarray(x))
        return plain.log_prob(outputs, x)

    made = vae(Formula(encode), likelihood=plain._replace(log_prob=log_prob), **changes)
    return made, given


def test_binarised_data_are_black_and_white_by_their_grey_value():
    levels = jnp.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    batch = {"x": jnp.tile(levels[:, None, None, None], (1, 2, 2, 1)).repeat(2000, axis=0)}
    shares = {"threshold": [0, 0, 0, 1, 1], "dynamic": [0, 0.25, 0.5, 0.75, 1]}
    for kind, expected in shares.items():
        made, given = recording(binarise=kind)
        variables = started(made)
        made.loss(viewed(variables), batch, jax.random.key(0))
        made.evaluate(variables, batch, jax.random.key(0))
        made.evaluate(variables, batch, jax.random.key(1))
        for x, target in zip(*given.values(), strict=True):
            np.testing.assert_array_equal(x, target)  # one draw for both
            assert set(np.unique(target)) == {-1.0, 1.0}
            found = (target > 0).reshape(5, -1).mean(axis=1)
            np.testing.assert_allclose(found, expected, atol=0.03)
        again, other = given["target"][1:]
        assert np.array_equal(again, other) == (kind == "threshold")


@pytest.mark.parametrize("samples", [1, 3])
def test_the_encoder_is_given_the_noise_and_the_likelihood_the_clean_image(samples):
    made, given = recording(noise=Noise("gaussian", 0.3), importance={"samples": samples})
    batch = images(500, 0.2)
    of = made.family().phases[0].loss
    of(viewed(started(made)), batch, jax.random.key(0))
    (x,) = given["encoder"]
    assert np.abs(x - 0.2).mean() > 0.3
    for target in given["target"]:  # with several samples they are within a vmap, so not recorded
        np.testing.assert_array_equal(target, batch["x"])


def test_the_clean_image_is_the_target_of_the_importance_weighted_bound_too():
    # A decoder that says 0 and a posterior that is the prior: what remains is the target's square.
    network = Formula(constant(0.0, 0.0), lambda weights, z, label: 0.0 * z)
    batch = images(7)
    clean = vae(network, importance={"samples": 4})
    noisy = vae(network, importance={"samples": 4}, noise=Noise("gaussian", 1.0))
    np.testing.assert_allclose(loss(noisy, batch)[0], loss(clean, batch)[0], rtol=1e-6)


def test_the_test_estimate_is_of_the_image_without_noise():
    batch = images(8)
    noisy = linear_gaussian(noise=Noise("gaussian", 1.0))
    np.testing.assert_allclose(bound(noisy, batch), neg_log_p(batch), rtol=1e-4)


def test_gaussian_noise_has_its_deviation_in_units_of_the_range():
    x = jnp.full((100, 10, 10, 3), 0.5)
    noisy = Noise("gaussian", 0.2, False)(jax.random.key(0), x) - x
    np.testing.assert_allclose(noisy.std(), 0.4, rtol=0.02)
    np.testing.assert_allclose(noisy.mean(), 0, atol=0.01)
    assert noisy.max() > 0.5
    clipped = Noise("gaussian", 0.2, True)(jax.random.key(0), x)
    np.testing.assert_array_equal(clipped, np.clip(x + noisy, -1, 1))


@pytest.mark.parametrize("share", [0.1, 0.6])
def test_salt_and_pepper_hit_their_share_of_pixels_in_all_channels(share):
    x = jnp.full((100, 10, 10, 3), 0.5)
    found = np.asarray(Noise("salt_pepper", share, True)(jax.random.key(0), x))
    hit = found != 0.5
    np.testing.assert_array_equal(hit, np.repeat(hit[..., :1], 3, axis=-1))
    np.testing.assert_allclose(hit.mean(), share, atol=0.02)
    assert set(np.unique(found[hit])) == {-1.0, 1.0}
    np.testing.assert_allclose((found[hit] > 0).mean(), 0.5, atol=0.03)
    np.testing.assert_array_equal(Noise()(jax.random.key(0), x), x)


def test_images_are_reconstructed_from_themselves_and_from_the_noise_that_was_trained_on():
    batch = images(6)
    ((name, (given, image)),) = reconstructed(vae(Formula(identity))).items()
    assert name == "reconstruction"
    np.testing.assert_array_equal(given, batch["x"])
    np.testing.assert_allclose(image, batch["x"], atol=1e-6)  # the mean, not a draw

    wild = Formula(lambda weights, x, label: (3.0 * x, 5.0 + 0.0 * x))
    found = reconstructed(vae(wild, noise=Noise("gaussian", 0.5, clip=False)))
    assert found.keys() == {"reconstruction", "gaussian=0.5"}
    np.testing.assert_allclose(
        found["reconstruction"][1], np.clip(3 * batch["x"], -1, 1), atol=1e-6
    )
    assert np.abs(found["gaussian=0.5"][0] - batch["x"]).mean() > 0.3
    for given, image in found.values():
        assert given.shape == image.shape == batch["x"].shape
        assert max(np.abs(given).max(), np.abs(image).max()) <= 1
