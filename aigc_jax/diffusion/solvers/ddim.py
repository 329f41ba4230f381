"""DDIM (Song et al. 2021, arXiv:2010.02502), which is Euler's method in x / alpha."""

import numpy as np

from aigc_jax.diffusion.process import Level
from aigc_jax.diffusion.solvers.base import Solver, single_step, steps_of


def coefficients(grid: Level, eta: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """c_x, c_x0 and the noise's std [S] of DDIM (Song et al. 2021, eq. 12) over a grid [S + 1]."""
    return between(*steps_of(grid), eta)


def between(at: Level, to: Level, eta: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`coefficients` of steps from levels `at` to levels `to`, [S]."""
    # The posterior q(x_s | x_t, x_0) has this std at eta = 1, for any alpha and sigma.
    std = (
        eta
        * to.sigma
        * np.sqrt(np.maximum(1 - (at.alpha * to.sigma / (to.alpha * at.sigma)) ** 2, 0))
    )
    c_x = np.sqrt(np.maximum(to.sigma**2 - std**2, 0)) / at.sigma
    return c_x, to.alpha - c_x * at.alpha, std


def solver(grid: Level, start: float, eta: float = 0.0) -> Solver:
    """DDIM over a grid [S + 1], noisiest first.

    eta = 0 is deterministic, Euler's method in x / alpha; eta = 1 is ancestral sampling with the
    posterior's variance, which k-diffusion has as ancestral Euler.
    """
    at, _ = steps_of(grid)
    return single_step(at, *coefficients(grid, eta), start=start)
