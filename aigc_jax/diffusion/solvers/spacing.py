"""Which levels of noise a solver visits.

"leading", "trailing" and "linspace" are Lin et al. 2024 (arXiv:2305.08891, table 2); "quadratic" is
what DDIM uses for CIFAR-10 (Song et al. 2021, arXiv:2010.02502, D.3): times of a discrete process.
"""

import numpy as np

from aigc_jax.checks import one_of
from aigc_jax.diffusion.process import Level, Process
from aigc_jax.errors import SettingError


def leading(steps: int, total: int) -> np.ndarray:
    return np.arange(steps) * (total // steps)


def trailing(steps: int, total: int) -> np.ndarray:
    return np.round(np.arange(steps, 0, -1) * total / steps)[::-1] - 1


def linspace(steps: int, total: int) -> np.ndarray:
    return np.round(np.linspace(0, total - 1, steps))


def quadratic(steps: int, total: int) -> np.ndarray:
    # The published 0.8 T leaves out the noisiest fifth, where x_t is all but pure noise.
    t = np.floor(np.linspace(0, (0.8 * total) ** 0.5, steps) ** 2)
    t = np.maximum.accumulate(np.maximum(t, np.arange(steps)))  # distinct at any `steps`
    return np.minimum(t, total - steps + np.arange(steps))


# {name: (steps, total) -> times, ascending, [steps]}
SPACINGS = {
    "leading": leading,
    "trailing": trailing,
    "linspace": linspace,
    "quadratic": quadratic,
}


def timesteps(spacing: str, steps: int, total: int) -> np.ndarray:
    """`steps` of the times 0..total-1, descending, int [steps]; one step is from the noisiest.

    Raises:
      ValueError: an unknown spacing, or more steps than there are times.
    """
    if not 1 <= steps <= total:
        raise SettingError(
            f"sampling.steps must lie in 1..{total} (diffusion.process.timesteps), not {steps}"
        )
    one_of("sampling.spacing", spacing, SPACINGS)
    if steps == 1:  # from the cleanest time it would give back the noise that it is given
        return np.array([total - 1])
    return SPACINGS[spacing](steps, total)[::-1].astype(int)


def ending(levels: Level) -> Level:
    """Levels [S], noisiest first, and x_0 itself behind them: a grid [S + 1]."""
    return Level(
        np.append(levels.t, 0.0), np.append(levels.alpha, 1.0), np.append(levels.sigma, 0.0)
    )


def grid(process: Process, spacing: str, steps: int) -> Level:
    """The levels that a run of `steps` steps visits and x_0 behind them, [steps + 1].

    Args:
      steps: of a discrete process, 0 takes every time.
    """
    if process.total:
        t = timesteps(spacing, steps or process.total, process.total)
    else:  # TODO(solvers): continuous grids
        t = np.linspace(process.high, process.low, steps + 1)[:steps]
    return ending(process.level(t))
