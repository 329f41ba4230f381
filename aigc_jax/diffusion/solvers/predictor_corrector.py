"""Predictor-corrector sampling (Song et al. 2021, arXiv:2011.13456, appendix G): two calls a step.

The first call moves x at its level by Langevin dynamics, the second takes it to the next level.
The score is a difference of nearly equal numbers over sigma^2: where sigma is below a thousandth,
as at the last level of "vp" and "sub_vp", float32 holds none, and the first call moves next to
nothing.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from aigc_jax.diffusion.process import Level, of
from aigc_jax.diffusion.solvers import ddim
from aigc_jax.diffusion.solvers.base import Denoise, Solver, steps_of


def reverse_diffusion(grid: Level) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """c_x, c_x0 and the noise's std [S] of the forward step turned round (their eq. 46).

    Steps from noise alone and to x_0, for which it is no approximation, are the posterior's.
    """
    at, to = steps_of(grid)
    a = at.alpha / to.alpha
    variance = at.sigma**2 - (a * to.sigma) ** 2
    found = (
        2 - a - variance / at.sigma**2,
        variance * at.alpha / at.sigma**2,
        np.sqrt(variance),
    )
    exact = (at.alpha == 0) | (to.sigma == 0)
    posterior = ddim.coefficients(grid, eta=1.0)
    return tuple(np.where(exact, p, f) for p, f in zip(posterior, found, strict=True))


def solver(grid: Level, start: float, predictor: str, snr: float) -> Solver:
    """Predictor-corrector sampling over a grid [S + 1].

    Args:
      predictor: "ancestral", the posterior given the estimate of x_0, or "reverse_diffusion".
      snr: r of their algorithms 4 and 5; norms are of each sample alone, not means of a batch.
    """
    at, to = steps_of(grid)
    chosen = ddim.coefficients(grid, 1.0) if predictor == "ancestral" else reverse_diffusion(grid)
    c_x, c_x0, std = (
        np.stack([np.full_like(column, still), column], axis=1).ravel()
        for column, still in zip(chosen, (1.0, 0.0, 0.0), strict=True)
    )
    langevin = np.stack([2 * snr * at.alpha / to.alpha, np.zeros_like(at.alpha)], axis=1)
    level = Level(*(np.repeat(column, 2) for column in at))
    table = {"at": level, "c_x": c_x, "c_x0": c_x0, "std": std, "langevin": langevin.ravel()}
    return Solver(table, _step, std=start, stochastic=True)


def _step(
    denoise: Denoise, x: jax.Array, row: Mapping[str, Any], eps: jax.Array
) -> tuple[jax.Array, jax.Array]:
    level, estimate = row["at"], denoise(x, row["at"]).x0
    score = (level.alpha * estimate - x) / level.sigma**2
    # sqrt(2 step) = 2 r sqrt(alpha) |eps| / |score|. Where a score all but vanishes that would be
    # any size: noise stays below what x itself is, of data of variance 1.
    longest = row["langevin"] * _norm(eps)
    largest = (level.alpha**2 + level.sigma**2) ** 0.5
    root = longest / of(x).maximum(_norm(score), longest / largest + 1e-30)
    moved = row["c_x"] * x + row["c_x0"] * estimate + row["std"] * eps
    return moved + root**2 / 2 * score + root * eps, estimate


def _norm(x: jax.Array) -> jax.Array:
    """Euclidean norm of each sample [n, ...], [n, 1, ...]."""
    return (x**2).sum(axis=tuple(range(1, x.ndim)), keepdims=True) ** 0.5
