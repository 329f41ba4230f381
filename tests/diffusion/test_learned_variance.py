"""The objective of improved DDPM (Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 14 to 16)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import SHAPE, T, model

from aigc_jax.diffusion import likelihood, precondition
from aigc_jax.diffusion import process as gaussian
from aigc_jax.diffusion.solvers.base import Estimate

LEARNED = {"variance": "learned", "prediction": "eps"}
SAMPLING = {"sampler": "ancestral", "variance": "learned"}


def made(**changes):
    return model(lambda x, *_: x, sampling=SAMPLING, **LEARNED, **changes)


def drawn():
    """Examples, noise and outputs of every time, the output twice as wide."""
    rng = np.random.default_rng(0)
    x0, eps, mean, share = rng.uniform(-1, 1, (4, T, *SHAPE)).astype(np.float32)
    return x0, eps, jnp.concatenate([mean, share], axis=-1)


def errors(given, output):
    x0, eps, _ = drawn()
    level = given.process.level(jnp.arange(T, dtype=jnp.float32))
    return given.errors(x0, eps, output, gaussian.diffuse(x0, eps, level), level)


def test_the_bound_moves_the_variance_alone():
    output = drawn()[2]
    hybrid, simple = (
        jax.grad(lambda o, w=w: errors(made(bound_weight=w), o).sum())(output) for w in (1.0, 0.0)
    )
    of_bound = np.asarray(hybrid - simple)
    np.testing.assert_allclose(of_bound[..., :1], 0.0, atol=1e-6)
    assert np.all(of_bound[1:, ..., 1:] != 0)
    np.testing.assert_array_equal(simple[..., 1:], 0.0)


def test_the_objective_is_the_simple_loss_and_a_thousandth_of_the_whole_bound():
    """T L_t in bits/dim, whose mean over uniform t is the bound: their code's T / 1000 of L_t."""
    given, (x0, eps, output) = made(), drawn()
    level = given.process.level(jnp.arange(T, dtype=jnp.float32))
    x_t = gaussian.diffuse(x0, eps, level)
    x0_hat = precondition.named("eps").x0_of(output[..., :1], x_t, level)
    estimate = Estimate(x0_hat, (output[..., 1:] + 1) / 2)
    term = likelihood.terms(given.process, "learned")(x0, estimate, jnp.arange(T))
    simple = np.mean((output[..., :1] - eps) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(errors(given, output), simple + 0.001 * T * term, rtol=1e-4)


def test_the_bound_alone_moves_the_mean_too():
    given, (x0, eps, output) = made(objective="bound"), drawn()
    level = given.process.level(jnp.arange(T, dtype=jnp.float32))
    estimate = given.estimate(output, gaussian.diffuse(x0, eps, level), level)
    term = likelihood.terms(given.process, "learned")(x0, estimate, jnp.arange(T))
    np.testing.assert_allclose(errors(given, output), T * term, rtol=1e-5)
    slope = jax.grad(lambda o: errors(given, o).sum())(output)
    assert np.all(slope != 0)


@pytest.mark.parametrize("error", [0.0, 0.03, 0.06])
def test_the_share_that_fits_the_error_has_the_fewest_bits(error):
    process = gaussian.variance_preserving(gaussian.betas("linear", T))
    beta = gaussian.betas("linear", T)
    alpha_bar = np.cumprod(1 - beta)
    before = np.append(1.0, alpha_bar[:-1])
    small = beta * (1 - before) / (1 - alpha_bar)
    c = np.sqrt(before) * beta / (1 - alpha_bar)  # of x_0 in the posterior's mean
    t = 4
    # The variance that a step should have is the posterior's and the square of what it misses by.
    fit = np.log((small[t] + (c[t] * error) ** 2) / small[t]) / np.log(beta[t] / small[t])
    assert fit < 1
    shares = np.linspace(0, 1, 201).astype(np.float32)[:, None]
    x0 = np.zeros((201, 1), np.float32)
    term = likelihood.terms(process, "learned")
    bits = term(x0, Estimate(x0 + error, shares), np.full(201, t))
    np.testing.assert_allclose(shares[np.argmin(bits), 0], fit, atol=0.011)
