"""The variational bound on -log p(x_0), in bits per dimension: its terms, each [B].

In T steps, Ho et al. 2020 (arXiv:2006.11239), eq. 5: L = L_T + L_{T-1} + ... + L_1 + L_0. Times are
counted as everywhere here: term t = 0..T-1 belongs to the step that leaves x_t, so term 0 is the
paper's L_0, the decoder, and the prior term its L_T. The model is ancestral sampling over all T
times (`solvers.ancestral`), whatever solver draws the samples.

In continuous time, Kingma et al. 2021 (arXiv:2107.00630), eq. 11 to 18: the KL to the prior at the
noisiest level, the decoder at the least noisy one, and between them an integral over
gamma = -ln(SNR), in which no schedule is left: the ends are all that the bound depends on.

Images are bytes x as x / 127.5 - 1, and their decoder is a probability of bytes; other data have a
density.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.diffusion.process import Discrete, Level, expand, of
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


def decoder(x0: jax.Array, mean: jax.Array, log_scale: jax.Array, of_bytes: bool) -> jax.Array:
    """-ln p(x_0) in bits/dim [B] under N(mean, e^(2 log_scale)), both like x_0 or scalars.

    Args:
      of_bytes: whether p is the probability of bytes; else it is a density.
    """
    if of_bytes:
        return per_example(-discretized_gaussian_log_likelihood(x0, mean, log_scale))
    z = (x0 - mean) * jnp.exp(-log_scale)
    return per_example(0.5 * math.log(2 * math.pi) + log_scale + 0.5 * z**2)


def prior(last: Level, x0: jax.Array, std: Any = 1.0) -> jax.Array:
    """KL(q(x_t | x_0) || N(0, std^2 I)) in bits/dim [B] at one level; no network is in it.

    Args:
      last: the noisiest level, of scalars; on the host it keeps the digits of a sigma near `std`.
    """
    logvar = 2 * of(last.sigma).log(last.sigma / std)
    return per_example(normal_kl(last.alpha / std * x0, logvar, 0.0, 0.0))


def reconstruction(x0: jax.Array, eps: jax.Array, ratio: Any, of_bytes: bool) -> jax.Array:
    """-ln p(x_0 | x_t) in bits/dim [B] of x_t / alpha = x_0 + ratio eps, the least noisy level.

    p is N(x_t / alpha, ratio^2), of bytes its mass in their bins.
    """
    return decoder(x0, x0 + ratio * eps, jnp.log(ratio), of_bytes)


def diffusion_rate(x0: jax.Array, x0_hat: jax.Array, ratio: jax.Array) -> jax.Array:
    """What the diffusion term grows by per unit of gamma, bits/dim [B]: SNR |x_0 - x0_hat|^2 / 2.

    Kingma et al. 2021, eq. 18, with dSNR = -SNR dgamma. `ratio` is sigma / alpha [B].
    """
    return per_example(0.5 * ((x0 - x0_hat) / expand(ratio, x0)) ** 2)


def terms(process: Discrete, variance: str, of_bytes: bool = True) -> Term:
    """The terms of the bound that hold the network, L_t in bits/dim.

    Args:
      process: its times 0..T-1.
      variance: of the model's steps, "fixed_small", "fixed_large" or "learned". The posterior of
        step 0 has none: its smallest is that of step 1 (Ho et al. 2020), as is its only one where
        it is fixed; its largest, of "learned", is beta_0 (Nichol & Dhariwal 2021).
      of_bytes: whether the decoder is of bytes.

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
    large[0] = process.sigmas[0] if variance == "learned" else small[0]
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
        kl = per_example(normal_kl(c * x0, q, c * estimate.x0, p))
        return jnp.where(index == 0, decoder(x0, estimate.x0, 0.5 * p, of_bytes), kl)

    return term


def per_example(nats: jax.Array) -> jax.Array:
    """Bits/dim [B] of nats [B, ...]."""
    return jnp.mean(nats.reshape(len(nats), -1), axis=1) / math.log(2)
