"""The variational bound on -log p(x_0) of a discrete-time model, in bits per dimension.

Ho et al. 2020 (arXiv:2006.11239), eq. 5: L = L_T + L_{T-1} + ... + L_1 + L_0. Times are counted as
everywhere here: term t = 0..T-1 belongs to the step that leaves x_t, so term 0 is the paper's L_0,
the decoder of bytes, and the prior term its L_T. Images are bytes x as x / 127.5 - 1; the model is
ancestral sampling over all T times (`solvers.ancestral`), whatever solver draws the samples.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.diffusion.process import Discrete, expand
from aigc_jax.diffusion.solvers import ancestral
from aigc_jax.diffusion.solvers.base import Estimate
from aigc_jax.diffusion.solvers.spacing import ending
from aigc_jax.gaussian import normal_kl

HALF_BIN = 1 / 255  # half the distance between neighbouring bytes

Term = Callable[[jax.Array, Estimate, jax.Array], jax.Array]


def discretized_gaussian_log_likelihood(
    x: jax.Array, mean: jax.Array, log_scale: jax.Array
) -> jax.Array:
    """ln P of the byte whose value in [-1, 1] is `x`, elementwise (Ho et al. 2020, eq. 13).

    The mass of N(mean, e^(2 log_scale)) within half a bin of `x`; the bins of bytes 0 and 255 reach
    to infinity. Finite wherever the mean lies: it never forms a probability, only logarithms.
    """
    scale = jnp.exp(log_scale)
    z, h = (x - mean) / scale, HALF_BIN / scale
    log_cdf = jax.scipy.special.log_ndtr
    # A bin above the mean has the mass of its mirror image, and there the logarithms keep digits.
    upper, lower = log_cdf(h - jnp.abs(z)), log_cdf(-h - jnp.abs(z))
    gap = jnp.maximum(upper - lower, jnp.finfo(upper.dtype).tiny)
    inner = upper + jnp.log(-jnp.expm1(-gap))
    outer = jnp.where(x < -0.999, log_cdf(z + h), log_cdf(h - z))
    return jnp.where(jnp.abs(x) > 0.999, outer, inner)


def prior(process: Discrete, x0: jax.Array) -> jax.Array:
    """L_T [B]: bits/dim of KL(q(x_T | x_0) || N(0, I)) for images [B, ...]; no network is in it."""
    last = process.level(process.high)
    return _per_example(normal_kl(last.alpha * x0, 2 * math.log(last.sigma), 0.0, 0.0))


def terms(process: Discrete, variance: str) -> Term:
    """The terms of the bound that hold the network, L_t in bits/dim.

    Args:
      process: its times 0..T-1.
      variance: of the model's steps, "fixed_small", "fixed_large" or "learned". Step 0, whose
        posterior has none, takes the posterior variance of step 1 under all, as Ho et al. do.

    Returns:
      (x_0 [B, ...], estimate of x_0 [B, ...], time number int [B]) -> [B]: where t > 0 the KL from
      the posterior q(x_{t-1} | x_t, x_0) to the model's step, where t = 0 -ln p(x_0 | x_1).
    """
    grid = ending(process.level(np.arange(process.total)[::-1]))
    (_, c_x0, small), (*_, large) = (
        [column[::-1].copy() for column in ancestral.coefficients(grid, name)]
        for name in ("fixed_small", "fixed_large")
    )
    # Of a process with one time there is no step 1 to borrow from.
    small[0] = small[1] if process.total > 1 else process.sigmas[0]
    large[0] = small[0]
    logvar_small, logvar_large = 2 * np.log(small), 2 * np.log(large)

    def term(x0: jax.Array, estimate: Estimate, index: jax.Array) -> jax.Array:
        c, q, widest = (
            expand(jnp.asarray(column)[index], x0) for column in (c_x0, logvar_small, logvar_large)
        )
        if variance == "learned":
            p = q + estimate.share * (widest - q)
        else:
            p = q if variance == "fixed_small" else widest
        # Both means are c x_0 + c_x x_t: the share of x_t, the larger one, cancels.
        kl = normal_kl(c * x0, q, c * estimate.x0, p)
        decoder = -discretized_gaussian_log_likelihood(x0, estimate.x0, 0.5 * p)
        return jnp.where(index == 0, _per_example(decoder), _per_example(kl))

    return term


def _per_example(nats: jax.Array) -> jax.Array:
    """Bits/dim [B] of nats [B, ...]."""
    return jnp.mean(nats.reshape(len(nats), -1), axis=1) / math.log(2)
