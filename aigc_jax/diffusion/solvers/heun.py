"""Heun's method (Karras et al. 2022, arXiv:2206.00364, algorithms 1 and 2): two calls a step.

The first call makes Euler's step, the second corrects it by the slope where that ends. A step to
x_0, or from noise alone, is Euler's and one call: the slope has no limit there.

A large step from nearly noise alone goes wrong by its size, in float64 as in float32: of data with
std 0.5 and no clipping, samples by 10 of 1,000 cosine levels have 5.2 by "trailing", 0.52 by
"leading", which begins below, and by 2 of them 390 and 0.85.
"""

import math

import numpy as np

from aigc_jax.diffusion.process import Level, Process
from aigc_jax.diffusion.solvers import ddim
from aigc_jax.diffusion.solvers.base import Solver, linear, start_std, steps_of
from aigc_jax.diffusion.solvers.settings import Settings
from aigc_jax.diffusion.solvers.spacing import bounds


def solver(process: Process, grid: Level, chosen: Settings) -> Solver:
    """Heun's method in x / alpha and sigma / alpha over a grid [S + 1], with churn.

    Each step first raises the noise of its level. The call before adds that noise, and the first
    step's is in what samples start from.
    """
    at, to = steps_of(grid)
    raised, noise = churned(process, at, chosen)
    with np.errstate(invalid="ignore"):
        grown = np.where(noise > 0, raised.alpha / at.alpha, 1.0)
    keep, x0, corrected = _steps(raised, to, (raised.alpha, to.alpha), (raised.ratio, to.ratio))
    eps = np.zeros_like(x0)
    # The last call of a step also prepares the next.
    last = (np.arange(len(grown) - 1), corrected[:-1].astype(int), 0)
    keep[last] *= grown[1:, None]
    x0[last] *= grown[1:]
    eps[last] = noise[1:]
    std = math.hypot(start_std(process, grid) * grown[0], noise[0])
    return _solver(raised, to, keep, x0, eps, corrected, std)


def in_time(process: Process, grid: Level) -> Solver:
    """Heun's method for a flow in x and t, over a grid [S + 1]: its velocity is (x - x_0) / t."""
    at, to = steps_of(grid)
    one = np.ones_like(at.t)
    keep, x0, corrected = _steps(at, to, (one, one), (at.t, to.t))
    return _solver(at, to, keep, x0, np.zeros_like(x0), corrected, start_std(process, grid))


def churned(process: Process, at: Level, chosen: Settings) -> tuple[Level, np.ndarray]:
    """Levels [S] with their noise raised, at most to the process's noisiest, and its std [S].

    A ratio between churn_min and churn_max rises by churn / S of itself, at most by sqrt(2).
    """
    ratio = at.ratio
    within = (chosen.churn_min <= ratio) & (ratio <= chosen.churn_max)
    factor = 1 + min(chosen.churn / len(ratio), math.sqrt(2) - 1)
    higher = np.where(within, np.minimum(ratio * factor, bounds(process)[1]), ratio)
    rises = higher > ratio
    if not rises.any():
        return at, np.zeros_like(ratio)
    found = process.at_ratio(np.where(rises, higher, ratio.min()))
    raised = Level(*(np.where(rises, new, old) for new, old in zip(found, at, strict=True)))
    added = np.sqrt(np.where(rises, higher, 1) ** 2 - np.where(rises, ratio, 1) ** 2)
    return raised, chosen.churn_noise * raised.alpha * added


def _steps(
    at: Level,
    to: Level,
    scale: tuple[np.ndarray, np.ndarray],
    time: tuple[np.ndarray, np.ndarray],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Heun's method where x / scale moves by (x / scale - x_0) / time, as `linear` has it.

    The state is x, where the network is called, and z: x without the half of the step that the
    slope at its end makes.

    Args:
      at, to: the levels where steps start and end, [S]; so `scale` and `time`.

    Returns:
      keep [S, 2 calls, 2, 2], x0 [S, 2, 2], and which steps make their second call, [S].
    """
    corrected = np.isfinite(time[0]) & (time[1] > 0)
    q = np.where(corrected, time[1], 1.0) / np.where(corrected, time[0], 1.0)
    keep, x0 = np.zeros((len(q), 2, 2, 2)), np.zeros((len(q), 2, 2))
    keep[:, 0, 0, 0], x0[:, 0, 0], _ = ddim.between(at, to, eta=0.0)
    keep[:, 0, 1, 0] = scale[1] / np.where(corrected, scale[0], 1.0) * (1 + q) / 2
    x0[:, 0, 1] = scale[1] * (1 - q) / 2
    keep[:, 1, 0, 0], keep[:, 1, 0, 1] = (1 - 1 / q) / 2, 1.0
    x0[:, 1, 0] = -scale[1] * (1 - 1 / q) / 2
    return keep, x0, corrected


def _solver(
    at: Level,
    to: Level,
    keep: np.ndarray,
    x0: np.ndarray,
    eps: np.ndarray,
    corrected: np.ndarray,
    std: float,
) -> Solver:
    """The calls that are made, of arrays [S, 2 calls, ...]: see `_steps`."""
    made = np.stack([np.ones_like(corrected), corrected], axis=1)
    levels = Level(*(np.stack(pair, axis=1)[made] for pair in zip(at, to, strict=True)))
    return linear(levels, keep[made], x0[made], eps[made], std=std)
