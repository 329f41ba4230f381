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

from aigc_jax.diffusion.process import Process, expand
from aigc_jax.diffusion.solvers import ancestral
from aigc_jax.gaussian import normal_kl

HALF_BIN = 1 / 255  # half the distance between neighbouring bytes

Term = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


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


def prior(process: Process, x0: jax.Array) -> jax.Array:
    """L_T [B]: bits/dim of KL(q(x_T | x_0) || N(0, I)) for images [B, ...]; no network is in it."""
    alpha, sigma = process.alpha[-1], process.sigma[-1]
    return _per_example(normal_kl(alpha * x0, 2 * math.log(sigma), 0.0, 0.0))


def terms(process: Process, variance: str) -> Term:
    """The terms of the bound that hold the network, L_t in bits/dim.

    Args:
      process: its times 0..T-1.
      variance: of the model's steps, "fixed_small" or "fixed_large". Step 0, whose posterior has
        none, takes the posterior variance of step 1 under both, as Ho et al. do.

    Returns:
      (x_0 [B, ...], estimate of x_0 [B, ...], time number int [B]) -> [B]: where t > 0 the KL from
      the posterior q(x_{t-1} | x_t, x_0) to the model's step, where t = 0 -ln p(x_0 | x_1).
    """
    every = np.arange(len(process.times))[::-1]
    table = ancestral.solver(process, every, "fixed_small").table
    c_x0, posterior = table["c_x0"][::-1], table["std"][::-1].copy()
    model = ancestral.solver(process, every, variance).table["std"][::-1].copy()
    # Of a process with one time there is no step 1 to borrow from.
    posterior[0] = model[0] = posterior[1] if len(every) > 1 else process.sigma[0]
    logvar_q, logvar_p = 2 * np.log(posterior), 2 * np.log(model)

    def term(x0: jax.Array, x0_hat: jax.Array, index: jax.Array) -> jax.Array:
        c, q, p = (expand(jnp.asarray(column)[index], x0) for column in (c_x0, logvar_q, logvar_p))
        # Both means are c x_0 + c_x x_t: the share of x_t, the larger one, cancels.
        kl = normal_kl(c * x0, q, c * x0_hat, p)
        decoder = -discretized_gaussian_log_likelihood(x0, x0_hat, 0.5 * p)
        return jnp.where(index == 0, _per_example(decoder), _per_example(kl))

    return term


def _per_example(nats: jax.Array) -> jax.Array:
    """Bits/dim [B] of nats [B, ...]."""
    return jnp.mean(nats.reshape(len(nats), -1), axis=1) / math.log(2)
