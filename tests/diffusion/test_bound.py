"""The variational bound against published numbers, closed forms and the entropy of the data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from aigc_jax.diffusion import likelihood, precondition
from aigc_jax.diffusion import process as gaussian
from aigc_jax.diffusion.solvers.base import Estimate

CLOSE = {"rtol": 1e-9}
BYTES = np.arange(256) / 127.5 - 1


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def linear(total=1000):
    return gaussian.variance_preserving(gaussian.betas("linear", total))


def terms(process, variance):
    term = likelihood.terms(process, variance)
    return jax.jit(lambda x0, x0_hat, index: term(x0, Estimate(x0_hat), index))


def prior(process, x0):
    return likelihood.prior(process.level(process.high), x0)


def log_p(x, mean, std):
    return jax.jit(likelihood.discretized_gaussian_log_likelihood)(x, mean, np.log(std))


def test_the_kl_of_two_normals_is_its_closed_form(float64):
    np.testing.assert_allclose(likelihood.normal_kl(0.1, -1.0, 0.3, -0.5), 0.0862397552703, **CLOSE)
    assert likelihood.normal_kl(0.3, -2.0, 0.3, -2.0) == 0
    d = 1e-6  # the variances of a step far from the image differ by as little
    np.testing.assert_allclose(likelihood.normal_kl(0.0, d, 0.0, 0.0), d**2 / 4, rtol=1e-4)


@pytest.mark.parametrize(
    ("byte", "mean", "std", "expected"),
    [
        (128, 128 / 127.5 - 1, 0.01, -1.18725438924),
        (0, -1.0, 0.01, -0.426899937726),
        (255, 0.99, 0.01, -1.30325642182),
        (100, -0.2, 0.02, -2.16507877678),
    ],
)
def test_the_decoder_is_the_published_one(float64, byte, mean, std, expected):
    np.testing.assert_allclose(log_p(BYTES[byte], mean, std), expected, **CLOSE)


@pytest.mark.parametrize("std", [1e-3, 0.007, 0.1, 1.0])
def test_the_probabilities_of_all_bytes_sum_to_one(float64, std):
    mean = np.array([-3.0, -1.0, -0.5, 0.0, 0.0039, 0.7, 1.0, 1.5])
    np.testing.assert_allclose(
        np.exp(log_p(BYTES[:, None], mean[None], std)).sum(axis=0), 1.0, rtol=1e-9
    )


@pytest.mark.parametrize("std", [0.0073, 0.14, 1.0])
def test_a_mean_far_out_costs_what_it_should_in_float32(std):
    x, mean = np.meshgrid(BYTES, [-50.0, -3.0, -1.1, 0.0, 1.1, 3.0, 50.0])
    x, mean = x.astype(np.float32), mean.astype(np.float32)

    @jax.jit
    def both(mean):
        def total(mean):
            found = log_p(x, mean, np.float32(std))
            return jnp.sum(found), found

        return jax.grad(total, has_aux=True)(mean)

    slope, found = both(mean)
    assert np.isfinite(found).all()
    assert np.isfinite(slope).all()
    # In float64, from the nearer tail, by another package.
    near, far = (
        special.log_ndtr((sign / 255 - np.abs(x.astype(float) - mean)) / std) for sign in (1, -1)
    )
    inner = near + np.log(-np.expm1(far - near))
    z = (x.astype(float) - mean) / std
    outer = special.log_ndtr(1 / 255 / std - np.sign(x) * z)
    expected = np.where(np.abs(x) == 1, outer, inner)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)
    # Nearer is likelier, but for the open bins at either end.
    assert np.all((slope * (x - mean))[:, 1:-1] >= 0)


def test_the_prior_term_is_the_published_one(float64):
    x0 = np.sqrt([0.0, 0.25, 1.0])[:, None, None, None] * np.ones((3, 2, 2, 1))
    expected = [5.87478410086e-10, 7.27867696392e-6, 2.91129454203e-5]
    np.testing.assert_allclose(prior(linear(), x0), expected, rtol=1e-7)
    np.testing.assert_allclose(prior(linear(), x0)[1], expected[1], rtol=1e-9)


def test_the_prior_term_keeps_its_digits_in_float32():
    found = prior(linear(), jnp.full((1, 4), 0.5))
    np.testing.assert_allclose(found, 7.27867696392e-6, rtol=1e-5)


def mean_square_error(process, std):
    """Of the best estimate of x_0 ~ N(0, std^2) at each time."""
    return std**2 * process.sigmas**2 / (process.alphas**2 * std**2 + process.sigmas**2)


@pytest.mark.parametrize(("std", "expected"), [(0.5, 6.30243687593), (1.0, 7.31452491963)])
def test_the_terms_of_a_gaussian_sum_to_the_published_bits(float64, std, expected):
    process = linear()
    # The terms are quadratic in the error: one of the root mean square costs the mean.
    error = np.sqrt(mean_square_error(process, std))[:, None]
    term = terms(process, "fixed_small")
    found = term(np.zeros((1000, 1)), error, np.arange(1000))
    np.testing.assert_allclose(found[1:].sum(), expected, **CLOSE)


def posterior(beta):
    """Ho et al. 2020, eq. 7: both coefficients of the mean, and the variance."""
    alpha_bar = np.cumprod(1 - beta)
    before = np.append(1.0, alpha_bar[:-1])
    x0, x_t = np.sqrt(before) * beta, np.sqrt(1 - beta) * (1 - before)
    return x0 / (1 - alpha_bar), x_t / (1 - alpha_bar), beta * (1 - before) / (1 - alpha_bar)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_each_term_is_that_of_the_paper(float64, variance, schedule):
    beta = gaussian.betas(schedule, 100)
    c_x0, c_x, small = posterior(beta)
    large = np.append(small[1], beta[1:])
    small = np.append(small[1], small[1:])
    model = {"fixed_small": small, "fixed_large": large}[variance]
    x0, x0_hat, x_t = np.random.default_rng(0).uniform(-1, 1, (3, 100, 5))
    x0 = BYTES[np.round((x0 + 1) * 127.5).astype(int)]
    x0_hat = x0 + 0.01 * x0_hat
    mean1, mean2 = (c_x0[:, None] * x + c_x[:, None] * x_t for x in (x0, x0_hat))
    ratio = (small / model)[:, None]
    kl = 0.5 * (ratio - 1 - np.log(ratio) + (mean1 - mean2) ** 2 / model[:, None])
    process = gaussian.variance_preserving(beta)
    found = terms(process, variance)(x0, x0_hat, np.arange(100)) * np.log(2)
    np.testing.assert_allclose(found[1:], kl[1:].mean(axis=1), rtol=1e-7)
    edges = stats.norm(x0_hat[0], np.sqrt(small[1]))
    p = edges.cdf(x0[0] + 1 / 255) - edges.cdf(x0[0] - 1 / 255)
    assert np.abs(x0[0]).max() < 1
    np.testing.assert_allclose(found[0], -np.log(p).mean(), rtol=1e-7)


def test_a_term_is_the_weighted_error_in_eps(float64):
    """Ho et al. 2020, eq. 8 with sigma_t^2 the posterior variance, and eq. 12."""
    beta = gaussian.betas("cosine", 50)
    process = gaussian.variance_preserving(beta)
    small = posterior(beta)[2]
    eps, eps_hat, x0 = np.random.default_rng(1).normal(size=(3, 50, 6))
    level = process.level(np.arange(50))
    x_t = gaussian.diffuse(x0, eps, level)
    x0_hat = precondition.named("eps").x0_of(eps_hat, x_t, level)
    found = terms(process, "fixed_small")(x0, x0_hat, np.arange(50))
    weight = beta[1:] ** 2 / (2 * small[1:] * (1 - beta[1:]) * process.sigmas[1:] ** 2)
    expected = weight * np.mean((eps - eps_hat)[1:] ** 2, axis=1) / np.log(2)
    np.testing.assert_allclose(found[1:], expected, rtol=1e-8)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_the_bound_of_gaussian_bytes_lies_above_their_entropy(float64, variance):
    std, process = 0.5, linear()
    edges = np.concatenate([[-np.inf], (BYTES[1:] + BYTES[:-1]) / 2, [np.inf]])
    p = np.diff(stats.norm.cdf(edges / std))
    entropy = -np.sum(p * np.log2(p))
    # The best linear estimate, exactly: its error at t is (1 - k alpha) x_0 - k sigma eps.
    alpha, sigma = process.alphas, process.sigmas
    k = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
    term = terms(process, variance)
    square = ((1 - k * alpha) * BYTES[:, None]) ** 2 + (k * sigma) ** 2
    error = np.sqrt(square).reshape(-1, 1)
    kl = term(np.zeros_like(error), error, np.tile(np.arange(1000), 256)).reshape(256, 1000)
    node, share = np.polynomial.hermite_e.hermegauss(40)
    x0_hat = k[0] * (alpha[0] * BYTES[:, None] + sigma[0] * node)
    decoder = term(
        np.repeat(BYTES, 40)[:, None], x0_hat.reshape(-1, 1), np.zeros(256 * 40, int)
    ).reshape(256, 40) @ (share / share.sum())
    bits = p @ (kl[:, 1:].sum(axis=1) + decoder + prior(process, BYTES[:, None]))
    assert entropy == pytest.approx(7.762840752792776)
    assert 7.76289031197 < bits < entropy + 1.0


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_the_bound_of_a_gaussian_is_its_entropy_and_what_each_step_gets_wrong(float64, variance):
    """x_{t-1} given x_t is normal: the steps have its mean, and differ in variance alone."""
    std, beta, entropy = 0.5, gaussian.betas("linear", 1000), 1.04709558518
    process, (c_x0, _, small) = gaussian.variance_preserving(beta), posterior(beta)
    square = mean_square_error(process, std)
    term = terms(process, variance)
    kl = term(np.zeros((1000, 1)), np.sqrt(square)[:, None], np.arange(1000))
    # -E ln p(x_0 | x_1) as of a density: data that are not bytes.
    model = np.append(small[1], (small if variance == "fixed_small" else beta)[1:])
    decoder = 0.5 * (np.log(2 * np.pi * model[0]) + square[0] / model[0]) / np.log(2)
    total = kl[1:].sum() + decoder + prior(process, np.full((1, 1), std))[0]
    ratio = (c_x0**2 * square + small) / model
    last = (process.alphas[-1] * std) ** 2 + process.sigmas[-1] ** 2
    wrong = np.append(ratio, last)
    gap = 0.5 * np.sum(wrong - 1 - np.log(wrong)) / np.log(2)
    np.testing.assert_allclose(total, entropy + gap, rtol=1e-10)
    assert gap > 0.01


def test_an_example_has_the_same_bits_among_any_others():
    process = linear(30)
    term = terms(process, "fixed_large")
    x0 = np.random.default_rng(0).uniform(-1, 1, (6, 2, 2, 1)).astype(np.float32)
    index, order = np.array([0, 1, 29, 0, 5, 2]), np.array([3, 2, 5, 0, 1, 4])
    whole = term(x0, 0.5 * x0, index)
    assert whole.shape == (6,)
    np.testing.assert_allclose(
        term(x0[order], 0.5 * x0[order], index[order]), whole[order], rtol=1e-6
    )
    assert len(np.unique(whole)) == 6


def test_a_process_of_one_time_has_a_bound_too():
    term = terms(linear(1), "fixed_large")
    assert np.isfinite(term(np.zeros((2, 3)), np.ones((2, 3)), np.zeros(2, int))).all()


@pytest.mark.parametrize(("share", "fixed"), [(0.0, "fixed_small"), (1.0, "fixed_large")])
def test_a_learned_variance_at_either_end_is_a_fixed_one(share, fixed):
    process, rng = linear(20), np.random.default_rng(0)
    process_beta = gaussian.betas("linear", 20)
    x0, x0_hat = rng.uniform(-1, 1, (2, 20, 3)).astype(np.float32)
    estimate = Estimate(x0_hat, np.full((20, 3), share, np.float32))
    found = likelihood.terms(process, "learned")(x0, estimate, np.arange(20))
    expected = terms(process, fixed)(x0, x0_hat, np.arange(20))
    np.testing.assert_allclose(found[1:], expected[1:], rtol=1e-5)
    # The decoder's largest is beta_0, as in the code of Nichol & Dhariwal.
    logvar = np.log(posterior(process_beta)[2][1] if share == 0 else process_beta[0])
    byte = likelihood.decoder(x0[:1], x0_hat[:1], 0.5 * logvar, of_bytes=True)
    np.testing.assert_allclose(found[:1], byte, rtol=1e-5)
