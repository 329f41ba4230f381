"""What decoders say of images, against torch.distributions, closed forms and counting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from aigc_jax.vae import likelihood

BYTES = np.arange(256) / 127.5 - 1
SETTINGS = {"gaussian": {"sigma": 0.3}, "laplace": {"scale": 0.4}}


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def build(name, channels=1):
    return jitted(likelihood.build(name, channels, **SETTINGS.get(name, {})))


def jitted(like):
    return like._replace(
        log_prob=jax.jit(like.log_prob), mean=jax.jit(like.mean), sample=jax.jit(like.sample)
    )


def scalars(like):
    return {name: jnp.asarray(value) for name, value in like.parameters.items()}


def value_and_slope(like, outputs, x):
    """log_prob [B] and the gradient of its sum with respect to the outputs."""

    def total(outputs):
        found = like.log_prob(outputs, x, **scalars(like))
        return jnp.sum(found), found

    slope, found = jax.jit(jax.grad(total, has_aux=True))(outputs)
    return np.asarray(found), np.asarray(slope)


def torch_distribution(name, outputs):
    if name == "bernoulli":
        return torch.distributions.Bernoulli(logits=outputs, validate_args=False)
    if name == "continuous_bernoulli":
        return torch.distributions.ContinuousBernoulli(logits=outputs)
    if name == "laplace":
        return torch.distributions.Laplace(outputs, 0.4)
    sigma = 0.3 if name == "gaussian" else np.exp(np.logaddexp(0, 6.0) - 6)
    return torch.distributions.Normal(outputs, sigma)


@pytest.mark.parametrize(
    "name", ["bernoulli", "continuous_bernoulli", "gaussian", "gaussian_learned", "laplace"]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_likelihood_and_its_gradient_are_torchs(float64, name, channels):
    rng = np.random.default_rng(0)
    outputs, x = rng.normal(size=(5, 4, 3, channels)) * 3, rng.uniform(-1, 1, (5, 4, 3, channels))
    # Torch's continuous Bernoulli is a short series within 0.004 of logit 0.
    outputs = np.where(np.abs(outputs) < 0.01, 0.01, outputs)
    like = build(name, channels)
    assert like.channels == channels
    found, slope = value_and_slope(like, outputs, x)
    theirs = torch.tensor(outputs, requires_grad=True)
    target = (x + 1) / 2 if name.endswith("bernoulli") else x
    expected = torch_distribution(name, theirs).log_prob(torch.tensor(target)).sum(dim=(1, 2, 3))
    expected.sum().backward()
    assert found.shape == (5,)
    np.testing.assert_allclose(found, expected.detach(), rtol=1e-6)
    np.testing.assert_allclose(slope, theirs.grad, rtol=1e-6, atol=1e-6)


def test_the_learned_sigma_has_the_gradient_of_a_normals_scale(float64):
    rng = np.random.default_rng(1)
    outputs, x = rng.normal(size=(2, 4, 2, 2, 1))
    like = build("gaussian_learned")
    slope = jax.grad(lambda s: jnp.sum(like.log_prob(outputs, x, log_sigma=s)))(-1.0)
    sigma = np.exp(-6 + np.logaddexp(0, 5.0))
    expected = np.sum(((x - outputs) / sigma) ** 2 - 1) / (1 + np.exp(-5.0))
    np.testing.assert_allclose(slope, expected, rtol=1e-9)


@pytest.mark.parametrize("name", ["bernoulli", "continuous_bernoulli"])
def test_any_logit_in_float32_gives_finite_values_and_gradients(name):
    logits = np.concatenate([np.geomspace(1e-8, 1e4, 49), [80.0, 90.0, 0.0]]).astype(np.float32)
    logits = np.concatenate([logits, -logits])[:, None, None, None]
    for grey in (-1.0, 0.0, 1.0):
        x = np.full_like(logits, grey)
        found, slope = value_and_slope(build(name), logits, x)
        assert np.isfinite(found).all()
        assert np.isfinite(slope).all()
        with jax.enable_x64(True):
            expected, slope64 = value_and_slope(build(name), logits.astype(np.float64), x)
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)
        np.testing.assert_allclose(slope, slope64, rtol=2e-5, atol=2e-6)
    # What log(1 - sigmoid) makes NaN of.
    if name == "bernoulli":
        found, _ = value_and_slope(build(name), np.full((2, 1, 1, 1), 90.0), np.ones((2, 1, 1, 1)))
        np.testing.assert_array_equal(found, 0.0)


@pytest.mark.parametrize("logit", [-300.0, -5.0, -0.501, -0.499, -0.003, 0.0, 0.4, 2.0, 50.0])
def test_the_continuous_bernoulli_integrates_to_one_with_its_mean(float64, logit):
    nodes, weights = np.polynomial.legendre.leggauss(400)  # on [-1, 1], of width 2
    like = build("continuous_bernoulli")
    outputs = np.full((400, 1, 1, 1), logit)
    density = np.exp(like.log_prob(outputs, nodes[:, None, None, None])) / 2
    np.testing.assert_allclose(np.sum(weights * density), 1.0, rtol=1e-8)
    mean = like.mean(outputs[:1])[0, 0, 0, 0]
    np.testing.assert_allclose(mean, np.sum(weights * density * nodes), atol=1e-7)


@pytest.mark.parametrize("name", ["bernoulli", "continuous_bernoulli", "logistic_mixture"])
def test_samples_have_the_mean_that_the_likelihood_says(name):
    like = build(name)
    outputs = 0.5 * jax.random.normal(jax.random.key(0), (1, 1, 5, like.channels))
    if name == "logistic_mixture":  # narrow: its mean is that of components that fit in [-1, 1]
        outputs = outputs.at[..., 2::3].set(-4.0).at[..., 1::3].mul(0.5)
    if name == "continuous_bernoulli":
        outputs = outputs.at[..., :2, :].set(jnp.array([30.0, 0.0])[None, None, :, None])
    n = 40_000
    images = like.sample(jnp.broadcast_to(outputs, (n, *outputs.shape[1:])), jax.random.key(1))
    assert images.shape == (n, 1, 5, 1)
    assert jnp.abs(images).max() <= 1
    np.testing.assert_allclose(images.mean(axis=0), like.mean(outputs)[0], atol=0.02)
    spread = np.sort(np.asarray(images), axis=0)[:: n // 10]
    if name == "continuous_bernoulli":  # deciles: -1 where none is below
        np.testing.assert_allclose(spread[1:10, 0, 1, 0], np.linspace(-0.8, 0.8, 9), atol=0.03)
    if name == "bernoulli":
        assert set(np.unique(images)) == {-1.0, 1.0}


@pytest.mark.parametrize("name", ["gaussian", "gaussian_learned"])
def test_a_normals_samples_have_its_sigma(name):
    like = build(name)
    parameters = {"log_sigma": jnp.log(0.3)} if like.parameters else {}
    images = like.sample(jnp.full((20_000, 1, 1, 1), 0.1), jax.random.key(0), **parameters)
    sigma = float(jnp.std(images))
    np.testing.assert_allclose(sigma, 0.3, atol=0.005)
    assert jnp.abs(images).max() <= 1
    np.testing.assert_array_equal(like.mean(jnp.array([[-3.0, 0.5, 2.0]])), [[-1.0, 0.5, 1.0]])


def test_the_optimal_sigma_is_the_one_that_no_other_beats(float64):
    rng = np.random.default_rng(2)
    outputs, x = rng.normal(size=(2, 6, 4, 4, 3))
    like = build("gaussian_optimal", 3)
    found = like.log_prob(outputs, x)
    mse = np.mean((outputs - x) ** 2)
    # At the best sigma, -d/2 (1 + log 2 pi sigma^2) on average; softclipping raises it by e^-6.
    assert found.shape == (6,)
    np.testing.assert_allclose(found.mean(), -24 * (1 + np.log(2 * np.pi * mse)), rtol=1e-5)
    for sigma in np.sqrt(mse) * np.array([0.9, 1.1]):
        assert likelihood.gaussian(3, sigma).log_prob(outputs, x).mean() < found.mean()


def test_a_perfect_fit_has_finite_density_and_gradient():
    like, x = build("gaussian_optimal"), np.zeros((3, 4, 4, 1), np.float32)
    found, slope = value_and_slope(like, x, x)
    np.testing.assert_allclose(found, -16 * (0.5 * np.log(2 * np.pi) - 6), rtol=1e-3)
    assert np.isfinite(slope).all()
    found, slope = value_and_slope(like, x + 1e-4, x)
    assert np.isfinite(slope).all()
    found = build("gaussian_learned").log_prob(x, x, log_sigma=jnp.asarray(-1e4))
    np.testing.assert_allclose(found, -16 * (0.5 * np.log(2 * np.pi) - 6), rtol=1e-6)


@pytest.mark.parametrize("log_scale", [-9.0, -5.0, 0.0, 9.0])
def test_a_grey_mixture_sums_to_one_over_the_bytes(float64, log_scale):
    like = build("logistic_mixture")
    assert like.channels == 30
    outputs = np.random.default_rng(3).normal(size=(1, 1, 1, 10, 3))
    outputs[..., 2] += log_scale
    outputs = np.tile(outputs.reshape(1, 1, 1, 30), (256, 1, 1, 1))
    log_p = like.log_prob(outputs, BYTES[:, None, None, None])
    np.testing.assert_allclose(np.exp(log_p).sum(), 1.0, rtol=1e-12)
    assert np.isfinite(value_and_slope(like, outputs, BYTES[:, None, None, None])[1]).all()


def paper_mixture(outputs, x):
    """P(x) [c, 256] along a pixel's chain by PixelCNN++'s words, in numpy: each channel's row.

    Row i is P(every byte of channel i, and the channels before it as in `x`).
    """
    o = outputs.reshape(10, 10)
    weights = np.exp(o[:, 0]) / np.exp(o[:, 0]).sum()
    alpha, beta, gamma = np.tanh(o[:, 7:]).T
    mean = [o[:, 1], o[:, 2] + alpha * x[0], o[:, 3] + beta * x[0] + gamma * x[1]]
    joint, rows = weights[:, None], []
    for i in range(3):
        edges = np.concatenate([[-np.inf], BYTES[:-1] + 1 / 255, [np.inf]])
        cdf = 1 / (1 + np.exp(-(edges[None] - mean[i][:, None]) / np.exp(o[:, 4 + i, None])))
        mass = joint * np.diff(cdf, axis=1)
        rows.append(mass.sum(axis=0))
        joint = mass[:, [np.argmin(np.abs(BYTES - x[i]))]]
    return np.stack(rows)


def test_an_rgb_mixture_is_the_papers_chain(float64):
    like = build("logistic_mixture", 3)
    assert like.channels == 100
    rng = np.random.default_rng(4)
    outputs = rng.normal(size=100)
    outputs.reshape(10, 10)[:, 4:7] -= 2
    for x in (BYTES[[40, 200, 90]], BYTES[[0, 255, 128]]):
        every = np.tile(x, (256, 1))
        every[:, 2] = BYTES
        log_p = like.log_prob(np.tile(outputs, (256, 1, 1, 1)), every[:, None, None, :])
        rows = paper_mixture(outputs, x)
        np.testing.assert_allclose(np.exp(log_p), rows[2], rtol=1e-9, atol=1e-15)
        # The chain: blue sums to P(red, green), green to P(red), red to 1.
        green = np.argmin(np.abs(BYTES - x[1]))
        red = np.argmin(np.abs(BYTES - x[0]))
        np.testing.assert_allclose(np.exp(log_p).sum(), rows[1][green], rtol=1e-9)
        np.testing.assert_allclose(rows[1].sum(), rows[0][red], rtol=1e-9)
        np.testing.assert_allclose(rows[0].sum(), 1.0, rtol=1e-9)


def test_an_rgb_mixtures_samples_are_as_frequent_as_it_says():
    like = jitted(likelihood.build("logistic_mixture", 3, components=2))
    outputs = np.array([0.3, -0.2, 0.1, 0.4, -4.5, -4.5, -4.5, 2.0, -1.0, 0.5] * 2, np.float32)
    outputs[10:14] = -0.3, 0.3, -0.3, 0.0
    n = 20_000
    tiled = np.tile(outputs, (n, 1, 1, 1))
    images = like.sample(tiled, jax.random.key(0))
    assert images.shape == (n, 1, 1, 3)
    np.testing.assert_allclose((images + 1) * 127.5, np.round((images + 1) * 127.5), atol=1e-4)
    # Minus the mean log p of samples is the entropy: so it is by another n samples' frequencies.
    entropy = -np.mean(like.log_prob(tiled, images))
    logits, half = outputs.reshape(2, 10)[:, 0], BYTES[1] - BYTES[0]
    p = np.exp(logits) / np.exp(logits).sum()
    # A logistic of scale s has differential entropy log s + 2, and the components are far apart.
    expected = -np.sum(p * np.log(p)) + 3 * (-4.5 + 2 - np.log(half))
    np.testing.assert_allclose(entropy, expected, atol=0.03)
    means = np.asarray(like.mean(tiled[:1]))[0, 0, 0]
    np.testing.assert_allclose(images.mean(axis=0)[0, 0], means, atol=0.01)


def test_extreme_outputs_leave_the_mixture_finite():
    like = build("logistic_mixture", 3)
    rng = np.random.default_rng(5)
    x = BYTES[rng.integers(0, 256, (64, 2, 2, 3))].astype(np.float32)
    outputs = (
        rng.normal(size=(64, 2, 2, 100)) * 10.0 ** rng.integers(-2, 5, (64, 2, 2, 100))
    ).astype(np.float32)
    found, slope = value_and_slope(like, outputs, x)
    assert np.isfinite(found).all()
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("name", list(likelihood.LIKELIHOODS))
def test_every_likelihood_is_a_value_an_example_and_keeps_the_images_shape(name):
    like = build(name, 3)
    outputs = jnp.linspace(-1, 1, 2 * 4 * 4 * like.channels).reshape(2, 4, 4, like.channels)
    x = jnp.linspace(-1, 1, 2 * 4 * 4 * 3).reshape(2, 4, 4, 3)
    x = jnp.round((x + 1) * 127.5) / 127.5 - 1
    assert like.log_prob(outputs, x, **scalars(like)).shape == (2,)
    for images in (like.mean(outputs), like.sample(outputs, jax.random.key(0), **scalars(like))):
        assert images.shape == x.shape
        assert jnp.abs(images).max() <= 1
    with pytest.raises((TypeError, ValueError)):  # a decoder of the wrong width
        like.log_prob(jnp.concatenate([outputs] * 2, axis=-1), x, **scalars(like))


def test_what_cannot_be_is_an_error():
    with pytest.raises(ValueError, match=r"likelihood\.name is one of bernoulli, .*, not 'normal'"):
        likelihood.build("normal", 1)
    with pytest.raises(TypeError):
        likelihood.build("bernoulli", 1, sigma=0.1)
