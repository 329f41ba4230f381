"""UniPC (Zhao et al. 2023, arXiv:2302.04867) with B(h) = e^h - 1 ("bh2"): one call a step.

The estimate that a step's end gives corrects that step, and then serves the next one's prediction.
"""

import numpy as np

from aigc_jax.diffusion.process import Level
from aigc_jax.diffusion.solvers.base import Solver, linear, steps_of
from aigc_jax.diffusion.solvers.multistep import adams, log_snr, nodes_of, orders, x0_weights


def corrector(grid: Level, counts: np.ndarray) -> np.ndarray:
    """The weights [S, 1 + max(counts)] of the estimate at a step's end and of the latest before.

    One estimate before it makes the trapezoid rule; more, the polynomial through all of them.
    """
    at, to = steps_of(grid)
    lam = log_snr(grid)
    weights = np.zeros((len(counts), 1 + max(counts)))
    held = to.alpha - to.sigma / at.sigma * at.alpha
    weights[:, :2] = held[:, None] / 2
    for i in np.flatnonzero(counts > 1):
        h = lam[i + 1] - lam[i]
        nodes = np.append(1.0, nodes_of(lam, i, counts[i]))
        weights[i, : len(nodes)] = to.alpha[i] * h * adams(-h, nodes)
    return weights


def solver(grid: Level, start: float, order: int) -> Solver:
    """UniPC of an order over a grid [S + 1].

    The state is x as predicted, where the network is called, x as corrected at the level before,
    and the latest estimates of x_0.
    """
    at, to = steps_of(grid)
    counts = orders(grid, order, taper=True)
    predict, correct = x0_weights(grid, counts, midpoint=True), corrector(grid, counts)
    m = max(counts)
    k = m + 2
    keep, x0 = np.zeros((len(counts), k, k)), np.zeros((len(counts), k))
    for i in range(len(counts)):
        if i == 0 or at.alpha[i - 1] == 0:  # there is no step, or one from noise alone: exact
            keep[i, 1, 0] = 1.0
        else:
            keep[i, 1, 1] = at.sigma[i] / at.sigma[i - 1]
            x0[i, 1], keep[i, 1, 2:] = correct[i - 1, 0], correct[i - 1, 1:]
        move = to.sigma[i] / at.sigma[i]
        keep[i, 0], x0[i, 0] = move * keep[i, 1], move * x0[i, 1] + predict[i, 0]
        keep[i, 0, 2 : m + 1] += predict[i, 1:]
    x0[:, 2] = 1.0
    for j in range(3, k):
        keep[:, j, j - 1] = 1.0
    return linear(at, keep, x0, std=start)
