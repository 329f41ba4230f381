"""Ancestral sampling (Ho et al. 2020, arXiv:2006.11239)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.diffusion.process import Level
from aigc_jax.diffusion.solvers import ddim
from aigc_jax.diffusion.solvers.base import Denoise, Solver, single_step, steps_of


def coefficients(grid: Level, variance: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """c_x, c_x0 and the noise's std [S] of algorithm 2 of Ho et al. 2020 over a grid [S + 1].

    The variance is the posterior's ("fixed_small") or beta ("fixed_large"), the noise rate between
    two levels of the grid (Nichol & Dhariwal 2021). The step to x_0 adds no noise.
    """
    at, to = steps_of(grid)
    c_x, c_x0, std = ddim.coefficients(grid, eta=1.0)
    if variance == "fixed_large":
        beta = at.sigma**2 - (at.alpha / to.alpha * to.sigma) ** 2
        std = np.where(to.sigma > 0, np.sqrt(beta), 0.0)
    return c_x, c_x0, std


def solver(grid: Level, start: float, variance: str) -> Solver:
    """Ancestral sampling over a grid [S + 1], noisiest first.

    Args:
      variance: "fixed_small", "fixed_large", or "learned", which lies between the two where the
        network says (Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 15).
    """
    at, _ = steps_of(grid)
    if variance != "learned":
        return single_step(at, *coefficients(grid, variance), start=start)
    c_x, c_x0, small = coefficients(grid, "fixed_small")
    large = coefficients(grid, "fixed_large")[2]
    return _learned(at, c_x, c_x0, small, large, start)


def _learned(
    at: Level,
    c_x: np.ndarray,
    c_x0: np.ndarray,
    small: np.ndarray,
    large: np.ndarray,
    start: float,
) -> Solver:
    table = {"at": at, "c_x": c_x, "c_x0": c_x0, "small": small, "large": large}

    def step(
        denoise: Denoise, x: jax.Array, row: dict[str, Any], eps: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        estimate = denoise(x, row["at"])
        # A geometric mean of the two; the last step's are 0.
        std = jnp.where(
            row["small"] > 0,
            row["small"] ** (1 - estimate.share) * row["large"] ** estimate.share,
            0.0,
        )
        return row["c_x"] * x + row["c_x0"] * estimate.x0 + std * eps, estimate.x0

    return Solver(table, step, std=start, stochastic=True)
