"""The bound, its price and its diagnostics against closed forms, torch and pythae.

The linear VAE is probabilistic PCA (Lucas et al. 2019, arXiv:1911.02469): its likelihood, its best
parameters and which of its latent dimensions die are known.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from aigc_jax.gaussian import normal_kl
from aigc_jax.vae import likelihood, objectives, posterior


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def pca_data():
    """2000 points [N, 10] of 3 factors in noise of 0.5, centred; eigenvalues and eigenvectors."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(10, 3)) * np.array([3.0, 2.0, 1.0])
    x = rng.normal(size=(2000, 3)) @ w.T + 0.5 * rng.normal(size=(2000, 10))
    x -= x.mean(axis=0)
    values, rows = np.linalg.eigh(x.T @ x / len(x))
    return x, values[::-1], rows[:, ::-1]


def closed_form(values, rows, variance=None):
    """The best parameters of a linear VAE with 3 latent dimensions (Tipping & Bishop 1999)."""
    variance = values[3:].mean() if variance is None else variance
    w = rows[:, :3] * np.sqrt(np.maximum(values[:3] - variance, 0))
    m = w.T @ w + variance * np.eye(3)
    log_sigma = 0.5 * np.log(variance)
    return {
        "w": w,
        "v": np.linalg.solve(m, w.T).T,  # encoder: mean = x v
        "logvar": np.log(variance / np.diag(m)),
        "log_sigma": -6 + np.log(np.expm1(log_sigma + 6)),  # what softclipping takes to log sigma
    }


def log_likelihood(x, params, variance):
    """log p(x) [N] of p(x) = N(0, W W^T + variance I)."""
    c = params["w"] @ params["w"].T + variance * np.eye(10)
    quad = np.einsum("nd,nd->n", x, np.linalg.solve(c, x.T).T)
    return -0.5 * (10 * np.log(2 * np.pi) + np.linalg.slogdet(c)[1] + quad)


LINEAR = likelihood.gaussian_learned(10)


def decode(params, x, z):
    """log p(x|z) [B] of x [B, 10] as images of 1 x 1, by the likelihood a family would use."""
    outputs = jnp.matmul(z, params["w"].T)
    images = (a[:, None, None, :] for a in (outputs, x))
    return LINEAR.log_prob(*images, log_sigma=params["log_sigma"])


def linear_elbo(params, x):
    """The exact ELBO [B]: of a quadratic, the mean over 2 d points is the expectation."""
    mean = jnp.matmul(x, params["v"])
    logvar = jnp.broadcast_to(params["logvar"][None], mean.shape)
    points = math.sqrt(3) * np.concatenate([np.eye(3), -np.eye(3)])
    log_px = [decode(params, x, mean + jnp.exp(0.5 * logvar) * p[None]) for p in points]
    kl = normal_kl(mean, logvar)
    return objectives.elbo(jnp.mean(jnp.stack(log_px), axis=0), kl)


def linear_log_w(params, x, key):
    """log p(x, z) / q(z|x) [B] of one z an example."""
    mean = jnp.matmul(x, params["v"])
    logvar = jnp.broadcast_to(params["logvar"][None], mean.shape)
    z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
    prior = likelihood.gaussian_log_prob(z, jnp.zeros_like(z), 0.0)
    posterior = likelihood.gaussian_log_prob(z, mean, logvar)
    return decode(params, x, z) + objectives.per_example(prior - posterior)


def test_a_linear_vae_is_probabilistic_pca(float64):
    x, values, rows = pca_data()
    np.testing.assert_allclose(values[3:].mean(), 0.2486625942566693, rtol=1e-9)
    params = closed_form(values, rows)

    def total(params):
        return jnp.mean(linear_elbo(params, x))

    value, slope = jax.jit(jax.value_and_grad(total))(params)
    np.testing.assert_allclose(value, -13.44661419049149, atol=1e-9)
    for name, part in slope.items():
        np.testing.assert_allclose(part, 0, atol=1e-9, err_msg=name)
    # Nowhere else is it as high.
    for name in params:
        assert total(params | {name: params[name] + 0.03}) < value - 1e-5


def test_more_importance_samples_tighten_the_bound(float64):
    x, values, rows = pca_data()
    x, best = x[:200], closed_form(values, rows)
    exact = log_likelihood(x, best, values[3:].mean())
    off = best | {"v": 0.98 * best["v"], "logvar": best["logvar"] + 1.0}
    sample = jax.jit(jax.vmap(linear_log_w, in_axes=(None, None, 0)))
    keys = jax.random.split(jax.random.key(0), 4000)
    at_best = sample(best, x, keys[:8])
    for k in (1, 8):  # the posterior is exact: every weight is p(x)
        np.testing.assert_allclose(objectives.iwae(at_best[:k]), exact, rtol=1e-9)
    log_w = sample(off, x, keys)
    bounds = []
    for k in (1, 5, 50, 1000):
        groups = log_w.reshape(-1, k, len(x))[:400]
        bounds.append(float(jnp.mean(jax.vmap(objectives.iwae)(groups))))
    assert bounds == sorted(bounds)
    assert bounds[-1] <= exact.mean() + 1e-3
    np.testing.assert_allclose(bounds[-1], exact.mean(), atol=0.01)
    np.testing.assert_allclose(bounds[0], linear_elbo(off, x).mean(), atol=0.1)
    assert bounds[0] < bounds[-1] - 0.5


def test_a_dimension_below_the_noise_dies_as_predicted(float64):
    x, values, rows = pca_data()
    noise = 0.5 * (values[2] + values[1])  # between the 2nd and the 3rd eigenvalue
    params = closed_form(values, rows, noise)
    means = x @ params["v"]
    kl = normal_kl(means, np.tile(params["logvar"], (len(x), 1)))
    active = posterior.active_units(means)
    np.testing.assert_array_equal(active, [True, True, False])
    np.testing.assert_allclose(kl.mean(axis=0)[2], 0, atol=1e-12)
    assert (kl.mean(axis=0)[:2] > 0.1).all()
    assert posterior.collapse_warning(kl.mean(axis=0), active) == ""


def test_the_kl_of_two_gaussians_is_torchs():
    q_mean, q_logvar, p_mean, p_logvar = np.random.default_rng(0).normal(size=(4, 2, 3))
    q, p = (
        torch.distributions.Normal(torch.from_numpy(m), torch.from_numpy(v / 2).exp())
        for m, v in ((q_mean, q_logvar), (p_mean, p_logvar))
    )
    expected = torch.distributions.kl_divergence(q, p).numpy()
    np.testing.assert_allclose(
        normal_kl(q_mean, q_logvar, p_mean, p_logvar), expected, rtol=1e-5, atol=1e-6
    )


def test_the_kl_and_the_log_density_are_torchs(float64):
    rng = np.random.default_rng(0)
    mean, logvar, x = rng.normal(size=(3, 7, 5)) * 3
    normal = torch.distributions.Normal
    mine = jax.value_and_grad(lambda m, v: jnp.sum(normal_kl(m, v)), argnums=(0, 1))(mean, logvar)
    m, v = torch.tensor(mean, requires_grad=True), torch.tensor(logvar, requires_grad=True)
    kl = torch.distributions.kl_divergence(normal(m, torch.exp(v / 2)), normal(0.0, 1.0))
    kl.sum().backward()
    found = normal_kl(mean, logvar)
    np.testing.assert_allclose(found, kl.detach(), rtol=1e-9)
    for slope, expected in zip(mine[1], (m.grad, v.grad), strict=True):
        np.testing.assert_allclose(slope, expected, rtol=1e-9, atol=1e-12)
    found = likelihood.gaussian_log_prob(x, mean, logvar)
    expected = normal(m, torch.exp(v / 2)).log_prob(torch.tensor(x)).detach()
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    # Near the prior float32 keeps d^2 / 4.
    with jax.enable_x64(False):
        tiny = normal_kl(jnp.float32(1e-3), jnp.float32(0.0))
    np.testing.assert_allclose(tiny, 5e-7, rtol=1e-5)


def test_any_logvar_gives_finite_values_and_gradients():
    logvar = np.linspace(-100, 100, 401, dtype=np.float32)[:, None]

    def both(logvar):
        clipped = objectives.clip_logvar(logvar)
        kl = normal_kl(jnp.full_like(logvar, 3.0), clipped)
        log_q = likelihood.gaussian_log_prob(jnp.exp(0.5 * clipped), 0.0 * logvar, clipped)
        return jnp.sum(kl + log_q), (kl, log_q)

    slope, values = jax.jit(jax.grad(both, has_aux=True))(logvar)
    assert all(np.isfinite(v).all() for v in (slope, *values))
    assert (slope[(logvar < -30) | (logvar > 20)] == 0).all()
    inside = (logvar >= -30) & (logvar <= 20)
    np.testing.assert_array_equal(objectives.clip_logvar(logvar)[inside], logvar[inside])


def dense(module, x):
    """A torch MLP of Linear, ReLU and Sigmoid in numpy arrays, without its last Sigmoid."""
    for layer in module:
        if isinstance(layer, torch.nn.Linear):
            x = jnp.matmul(x, layer.weight.detach().numpy().T) + layer.bias.detach().numpy()[None]
        elif isinstance(layer, torch.nn.ReLU):
            x = jax.nn.relu(x)
    return x


@pytest.mark.parametrize("loss", ["bce", "mse"])
def test_the_elbo_is_pythaes_loss(loss):
    models = pytest.importorskip("pythae.models")
    torch.manual_seed(0)
    config = models.VAEConfig(input_dim=(1, 6, 6), latent_dim=4, reconstruction_loss=loss)
    theirs = models.VAE(config)
    eps, drawn = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32), []

    def sample(mean, std):  # pythae's own, with noise that both sides know
        drawn.append(mean + torch.tensor(eps) * std)
        return drawn[-1], torch.tensor(eps)

    theirs._sample_gauss = sample
    x01 = np.random.default_rng(1).uniform(size=(5, 1, 6, 6)).astype(np.float32)
    out = theirs({"data": torch.tensor(x01)})
    enc, dec = theirs.encoder, theirs.decoder
    hidden = dense(_flat(enc.layers), x01.reshape(5, -1))
    mean, logvar = dense([enc.embedding], hidden), dense([enc.log_var], hidden)
    z = mean + jnp.exp(0.5 * logvar) * eps
    np.testing.assert_allclose(z, drawn[0].detach(), rtol=1e-4, atol=1e-5)
    logits = dense(_flat(dec.layers), z).reshape(5, 6, 6, 1)
    x = x01.reshape(5, 6, 6, 1)
    if loss == "bce":
        log_px = likelihood.bernoulli(1).log_prob(logits, 2 * x - 1)
    else:  # theirs is a Gaussian of sigma 1 in units of [0, 1], without its constant
        log_px = likelihood.gaussian(1, 1.0).log_prob(jax.nn.sigmoid(logits), x)
        log_px = log_px + 18 * math.log(2 * math.pi)
    kl = normal_kl(mean, logvar)
    np.testing.assert_allclose(-log_px.mean(), out.recon_loss.detach(), rtol=1e-5)
    np.testing.assert_allclose(objectives.per_example(kl).mean(), out.reg_loss.detach(), rtol=1e-5)
    found = -objectives.elbo(log_px, kl).mean()
    np.testing.assert_allclose(found, out.loss.detach(), rtol=1e-5)


def _flat(layers):
    return [layer for group in layers for layer in group]


def test_iwae_is_a_log_mean_with_the_gradient_that_pythae_takes(float64):
    log_w = 5 * np.random.default_rng(0).normal(size=(6, 4)) - 1000  # k = 6 of 4 examples
    found = objectives.iwae(log_w)
    np.testing.assert_allclose(found, np.log(np.mean(np.exp(log_w + 1000), axis=0)) - 1000)
    np.testing.assert_array_equal(objectives.iwae(log_w[:1]), log_w[0])
    # pythae returns -sum w~ log w with w~ held: not the bound, but with the bound's gradient.
    pythae = pytest.importorskip("pythae.models")
    config = pythae.IWAEConfig(
        input_dim=(1, 2, 2), latent_dim=2, number_samples=6, reconstruction_loss="mse"
    )
    zeros = torch.zeros(4, 6, 2)
    x = torch.zeros(4, 4)
    # One pixel carries all of log w; where z = mean = 0 and log_var = 0, z adds nothing.
    recon = torch.zeros(4, 6, 4)
    recon[:, :, 0] = torch.tensor(np.sqrt(-2 * log_w.T))
    recon.requires_grad_()
    loss, _, _ = pythae.IWAE(config).loss_function(recon, x, zeros, zeros, zeros)
    loss.backward()
    slope = jax.grad(lambda r: -jnp.mean(objectives.iwae(-0.5 * r**2)))(
        recon[..., 0].detach().numpy().T
    )
    np.testing.assert_allclose(slope, recon.grad[..., 0].T, rtol=1e-3, atol=1e-5)
    assert abs(loss.item() + found.mean()) > 0.5  # their value is another number


def test_chunks_do_not_change_an_importance_estimate():
    x, values, rows = pca_data()
    params = jax.tree.map(jnp.float32, closed_form(values, rows))
    params["logvar"] += 1.0
    x = jnp.float32(x[:16])
    log_w = jax.jit(jax.vmap(lambda key: linear_log_w(params, x, key)))
    key = jax.random.key(3)
    whole = objectives.iwae(log_w(jax.random.split(key, 600)))
    for chunk in (600, 50, 12):
        found = objectives.importance_log_likelihood(log_w, key, 600, chunk)
        assert found.shape == (16,)
        np.testing.assert_allclose(found, whole, rtol=1e-5)
    found = objectives.importance_log_likelihood(log_w, key, 5000, 500)
    np.testing.assert_allclose(found, log_likelihood(x, params, values[3:].mean()), atol=0.2)
    for k, chunk in ((10, 3), (10, 0), (0, 5), (5, 10)):
        with pytest.raises(ValueError, match="does not divide"):
            objectives.importance_log_likelihood(log_w, key, k, chunk)


def test_bits_per_dimension_count_bytes():
    dims = 12  # of a uniform: 8 bits each, as a probability or as a density
    for log_p, unit in ((-math.log(256), 1.0), (-math.log(2), 127.5), (0.0, 255.0)):
        bits = objectives.bits_per_dim(jnp.full(3, dims * log_p), dims, unit)
        np.testing.assert_allclose(bits, 8.0, atol=0.01)
    units = [
        likelihood.build(n, 1, **s).bytes_per_unit
        for n, s in (
            ("gaussian", {"sigma": 1.0}),
            ("continuous_bernoulli", {}),
            ("logistic_mixture", {}),
        )
    ]
    assert units == [127.5, 255.0, 1.0]


def test_the_weight_of_the_kl_follows_its_schedule():
    kl = jnp.ones((2, 3, 3, 2))  # 18 nats

    def weights(name, at, **settings):
        cost = jax.jit(objectives.kl_cost(name, **settings))
        return [float(cost(kl, step)[0]) / 18 for step in at]

    np.testing.assert_allclose(weights("constant", [0, 9], beta=4.0), 4)
    found = weights("linear", [0, 5, 10, 99], beta=2.0, steps=10)
    np.testing.assert_allclose(found, [0, 1, 2, 2])
    found = weights("cyclical", [0, 2, 4, 7, 8, 10, 15], steps=8)  # half rises, half stays
    np.testing.assert_allclose(found, [0, 0.5, 1, 1, 0, 0.5, 1])
    found = weights("cyclical", [1, 2, 7], steps=8, ratio=0.25)
    np.testing.assert_allclose(found, [0.5, 1, 1])
    cost = objectives.kl_cost("capacity", gamma=10.0, nats=20.0, steps=10)
    kl = jnp.stack([jnp.full(4, 1.0), jnp.full(4, 3.0)])
    for step, expected in ((0, [40, 120]), (5, [60, 20]), (50, [160, 80])):
        np.testing.assert_allclose(cost(kl, step), expected)


@pytest.mark.parametrize(
    ("per", "shape", "axes"),
    [("dimension", (6,), ()), ("channel", (2, 2, 6), (1, 2)), ("layer", (2, 3), (1, 2))],
)
def test_free_bits_have_no_gradient_below_the_floor(per, shape, axes):
    rng = np.random.default_rng(0)
    kl = rng.uniform(0, 2, (32, *shape)) * np.linspace(0.1, 2, shape[-1])
    means = kl.sum(axis=axes).mean(axis=0)
    floor = float(np.median(means)) * (1.001 if per == "layer" else 1.0)
    cost = objectives.kl_cost("constant", beta=2.0, free_bits=floor, free_bits_per=per)
    found = cost(kl, 0)
    assert found.shape == (32,)
    np.testing.assert_allclose(found.mean(), 2 * np.maximum(means, floor).sum(), rtol=1e-5)
    slope = jax.grad(lambda kl: jnp.mean(cost(kl, 0)))(kl)
    expected = np.broadcast_to(2 / 32 * (means > floor), kl.shape)
    np.testing.assert_allclose(slope, expected, rtol=1e-6)
    assert per == "layer" or 0 < (means > floor).sum() < means.size


def test_settings_that_mean_nothing_are_errors():
    for settings, message in (
        ({"beta": 0.0, "free_bits": 0.5}, "free_bits does nothing"),
        ({"free_bits": 1.0, "free_bits_per": "pixel"}, r"is one of dimension, .*'pixel'"),
    ):
        with pytest.raises(ValueError, match=message):
            objectives.kl_cost("constant", **settings)
    with pytest.raises(ValueError, match=r"vae\.kl\.weight is one of constant, .*, not 'sigmoid'"):
        objectives.kl_cost("sigmoid")
    for name, settings in (("constant", {"steps": 5}), ("linear", {}), ("capacity", {"beta": 1.0})):
        with pytest.raises(TypeError):
            objectives.kl_cost(name, **settings)


def test_the_aggregate_posterior_is_described_exactly(float64):
    rng = np.random.default_rng(0)
    means, logvar = rng.normal(size=(300, 4)), rng.normal(size=(300, 4))
    mean, covariance = posterior.aggregate_moments(means, logvar)
    np.testing.assert_allclose(mean, means.mean(axis=0))
    expected = np.cov(means.T, bias=True) + np.diag(np.exp(logvar).mean(axis=0))
    np.testing.assert_allclose(covariance, expected, rtol=1e-9)


def test_mutual_information_is_none_all_or_the_closed_form():
    n, key = 2000, jax.random.key(0)
    same = jnp.zeros((n, 3))
    np.testing.assert_allclose(posterior.mutual_information(same, same - 1, key), 0, atol=1e-4)
    apart = jnp.arange(n, dtype=jnp.float32)[:, None] * 100
    found = posterior.mutual_information(apart, 0 * apart, key)
    np.testing.assert_allclose(found, math.log(n), rtol=1e-4)
    # z = mean + noise with both normal: I = 1/2 log(1 + s^2 / v) in each dimension.
    means = jax.random.normal(jax.random.key(1), (n, 2)) * jnp.array([[2.0, 1.0]])
    found = posterior.mutual_information(means, jnp.full((n, 2), math.log(0.5)), key)
    np.testing.assert_allclose(found, 0.5 * math.log(9) + 0.5 * math.log(3), atol=0.1)


def test_collapse_is_told_in_words():
    warn, on = posterior.collapse_warning, np.arange(32) < 8
    assert warn(np.where(on, 2.0, 0.001), on) == ""
    assert "none of 32 latent dimensions" in warn(np.full(32, 1e-4), on & False)
    assert "3 of 32 latent dimensions are active" in warn(np.where(on, 2.0, 0.0), np.arange(32) < 3)
    assert "not finite" in warn(np.where(on, np.nan, 0.0), on)
    assert "12 of 28 nats of KL are in 24" in warn(np.where(on, 2.0, 0.5), on)


def test_an_elbo_adds_up_the_kl_of_a_map():
    np.testing.assert_array_equal(objectives.elbo(jnp.ones(2), jnp.ones((2, 4, 4, 2))), -31.0)
