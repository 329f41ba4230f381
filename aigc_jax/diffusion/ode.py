"""Exact log-densities by the probability-flow ODE (Song et al. 2021, arXiv:2011.13456, sec. 4.3).

dx_t/dt = alpha' x0_hat + sigma' eps_hat for every Gaussian process. In u = x_t / sqrt(alpha^2 +
sigma^2), with the logarithm of r = sigma / alpha as time, it is one equation for all of them,

    du / d ln r = a^2 u - a x0_hat,    a = 1 / sqrt(1 + r^2),

whose u has the size of the data where there is no noise, and that of unit noise where there is
nothing else: a density of x_0 does not depend on how the process gets from one to the other.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

MAX_STEPS = 4096
FIRST_STEP = 0.1  # in ln r
STAGES = 6  # network calls of a step: the last stage of Dormand and Prince is the next one's first


class Density(NamedTuple):
    """Of one example: ln p in nats, NaN where the solver gave up, and how often it called."""

    log_p: jax.Array
    calls: jax.Array


def log_density(
    estimate: Callable[[jax.Array, jax.Array], jax.Array],
    x0: jax.Array,
    key: jax.Array,
    *,
    ratios: tuple[Any, Any],
    std: Any,
    probes: int = 1,
    tolerance: float = 1e-5,
) -> Density:
    """ln p of one example, by an adaptive solver that carries the divergence along.

    Args:
      estimate: (x_t / alpha like x0, ratio scalar) -> estimate of x_0.
      x0: [...], taken for x_t / alpha at the least noisy level.
      key: of the probes.
      ratios: sigma / alpha at the least noisy and the noisiest level.
      std: standard deviation of x_t / alpha, normal around 0, at the noisiest level.
      probes: random signs by which the divergence is estimated, the same along the whole path
        (Hutchinson 1990; Grathwohl et al. 2019, arXiv:1810.01367); 0 computes it, by a derivative
        for each of x0's numbers.
      tolerance: relative and absolute, of u and of ln p a number.
    """
    import diffrax  # here, since it takes seconds, and nothing else needs it

    dims = math.prod(x0.shape)
    if probes:
        directions = jax.random.rademacher(key, (probes, *x0.shape), x0.dtype)
    else:
        directions = jnp.eye(dims, dtype=x0.dtype).reshape(dims, *x0.shape)

    def scale(log_ratio: jax.Array) -> jax.Array:
        return jax.lax.rsqrt(1 + jnp.exp(2 * log_ratio))

    def field(log_ratio: jax.Array, state: tuple, _: Any) -> tuple[jax.Array, jax.Array]:
        a = scale(log_ratio)

        def drift(u: jax.Array) -> jax.Array:
            return a**2 * u - a * estimate(u / a, jnp.exp(log_ratio))

        du, derivative = jax.linearize(drift, state[0])
        trace = jnp.sum(directions * jax.vmap(derivative)(directions)) / (probes or 1)
        return du, trace / dims

    def norm(error: tuple) -> jax.Array:
        """The larger of the two parts: ln p is one number beside many."""
        return jnp.maximum(*(jnp.sqrt(jnp.mean(part**2)) for part in error))

    low, high = (jnp.log(jnp.asarray(ratio, x0.dtype)) for ratio in ratios)
    solved = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Dopri5(),
        low,
        high,
        FIRST_STEP,
        (scale(low) * x0, jnp.zeros((), x0.dtype)),
        stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance, norm=norm),
        adjoint=diffrax.ForwardMode(),
        max_steps=MAX_STEPS,
        throw=False,
    )
    u, divergence = (part[-1] for part in solved.ys)
    z = u / scale(high) / std
    log_last = jnp.mean(-0.5 * z**2) - jnp.log(std) - 0.5 * math.log(2 * math.pi)
    # Of x_t / alpha = u / a at both ends.
    log_p = dims * (log_last + divergence + jnp.log(scale(low)) - jnp.log(scale(high)))
    solved_well = solved.result == diffrax.RESULTS.successful
    calls = STAGES * solved.stats["num_steps"] + 1
    return Density(jnp.where(solved_well, log_p, jnp.nan), calls)
