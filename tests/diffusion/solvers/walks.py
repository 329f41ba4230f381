"""Solvers run in numpy float64 (their steps are arithmetic, so they need not be jax), and networks
that are formulas."""

import jax
import numpy as np

from aigc_jax.diffusion import process as gaussian
from aigc_jax.diffusion.process import Level
from aigc_jax.diffusion.solvers.base import Estimate


def linear_betas(total=1000):
    return gaussian.variance_preserving(gaussian.betas("linear", total))


def rows(solver):
    """What each call is given."""
    return [jax.tree.map(lambda column, i=i: column[i], solver.table) for i in range(solver.calls)]


def walk(solver, denoise, x, noise=None):
    """The samples that a solver makes of x, by denoise(x, level) -> x_0 and noise[i] of call i."""
    carry = solver.start(np.asarray(x, np.float64))
    for i, row in enumerate(rows(solver)):
        eps = None if noise is None else noise[i]
        carry, _ = solver.step(lambda x, level: Estimate(denoise(x, level)), carry, row, eps)
    return solver.finish(carry)


def of_gaussian(mean, std):
    """The exact denoiser of data N(mean, std^2)."""

    def denoise(x, level):
        variance = level.alpha**2 * std**2 + level.sigma**2
        return (level.alpha * std**2 * x + level.sigma**2 * mean) / variance

    return denoise


def moments(solver, mean, std):
    """Mean and std of a solver's samples of N(mean, std^2), exactly.

    x is held as its coefficients on the start, on 1 and on each call's noise.
    """
    exact, shift = of_gaussian(0.0, std), of_gaussian(mean, std)
    one = np.eye(2 + solver.calls)[1]

    def denoise(x, level):
        return exact(x, level) + shift(0.0, level) * one

    basis = np.eye(2 + solver.calls)
    found = walk(solver, denoise, solver.std * basis[0], basis[2:])
    return found[1], np.sqrt((np.delete(found, 1) ** 2).sum())


def tenth_of_x(x, level):
    """The denoiser of a network whose eps is 0.1 x."""
    return (x - level.sigma * 0.1 * x) / level.alpha


def sub_grid(levels, start=0, stop=None):
    return Level(*(column[start:stop] for column in levels))
