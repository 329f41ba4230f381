"""Which levels of noise a solver visits: a grid, noisiest first, with x_0 itself at its end.

"leading", "trailing" and "linspace" are Lin et al. 2024 (arXiv:2305.08891, table 2); "quadratic" is
what DDIM uses for CIFAR-10 (Song et al. 2021, arXiv:2010.02502, D.3): times of a discrete process.
"uniform" is of continuous times; the others are of sigma / alpha, the ratio of noise, and serve
every process.
"""

import warnings

import numpy as np

from aigc_jax.checks import one_of
from aigc_jax.diffusion.process import EDM, VE, VP, Discrete, Flow, Level, Process
from aigc_jax.diffusion.solvers.settings import DEFAULTS, Settings
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


# {name: (steps, total) -> times of a discrete process, ascending, [steps]}
OF_TIMES = {
    "leading": leading,
    "trailing": trailing,
    "linspace": linspace,
    "quadratic": quadratic,
}


def karras(high: float, low: float, steps: int, chosen: Settings) -> np.ndarray:
    """Karras et al. 2022 (arXiv:2206.00364, eq. 5): even in ratio^(1 / rho)."""
    return np.linspace(high ** (1 / chosen.rho), low ** (1 / chosen.rho), steps) ** chosen.rho


def exponential(high: float, low: float, steps: int, chosen: Settings) -> np.ndarray:
    """Even in the logarithm of the ratio."""
    return np.geomspace(high, low, steps)


def vp(high: float, low: float, steps: int, chosen: Settings) -> np.ndarray:
    """The ratios that even times of the VP SDE have (Song et al. 2021)."""
    process = VP()
    return process.level(np.linspace(process.time(high), process.time(low), steps)).ratio


# {name: (highest ratio, lowest, steps, settings) -> ratios from the one to the other, [steps]}
OF_RATIOS = {"karras": karras, "exponential": exponential, "vp": vp}
SPACINGS = ("", *OF_TIMES, "uniform", "flow_shift", *OF_RATIOS)
# What "" stands for: what the authors of a process sample it by. Networks of processes that are not
# here learn all times alike, so "uniform" asks them about all times alike.
NATURAL = {Discrete: "leading", EDM: "karras", VE: "karras", Flow: "flow_shift"}
# The ends of EDM, for grids of ratios where a process has none: flow begins at an infinite one.
LOWEST, HIGHEST = 0.002, 80.0
# The alpha of a first level from which on it is no noise any more. 60 of 1,000 cosine levels begin
# at 0.09 by "leading", and draw better digits than by "trailing" (fd 0.126 and 0.169).
HELD = 0.1


def timesteps(spacing: str, steps: int, total: int) -> np.ndarray:
    """`steps` of the times 0..total-1, descending, int [steps]; one step is from the noisiest.

    Args:
      spacing: a name of `OF_TIMES`.

    Raises:
      ValueError: more steps than there are times.
    """
    _check_steps(steps, total)
    if steps == 1:  # from the cleanest time it would give back the noise that it is given
        return np.array([total - 1])
    return OF_TIMES[spacing](steps, total)[::-1].astype(int)


def _check_steps(steps: int, total: int) -> None:
    if not 1 <= steps <= total:
        raise SettingError(
            f"sampling.steps must lie in 1..{total} (diffusion.process.timesteps), not {steps}"
        )


def ending(levels: Level) -> Level:
    """Levels [S], noisiest first, and x_0 itself behind them: a grid [S + 1]."""
    return Level(
        np.append(levels.t, 0.0), np.append(levels.alpha, 1.0), np.append(levels.sigma, 0.0)
    )


def grid(process: Process, spacing: str, steps: int, chosen: Settings = DEFAULTS) -> Level:
    """The levels that a run of `steps` steps visits and x_0 behind them, [steps + 1].

    Args:
      spacing: a name of `SPACINGS`; "" for `natural`.
      steps: 0 takes as many as a discrete process has times, or as `chosen.sigmas` has levels.

    Raises:
      ValueError: what cannot be; the message says what can.
    """
    one_of("sampling.spacing", spacing, SPACINGS)
    if chosen.sigmas:
        return ending(_own(process, spacing, steps, chosen))
    steps = steps or process.total
    if process.total:
        _check_steps(steps, process.total)
    elif steps < 1:
        raise SettingError(
            f"sampling.steps must be at least 1, such as 50, not {steps}: 0 takes every time of a "
            "discrete process alone"
        )
    spacing = spacing or natural(process)
    if spacing in OF_TIMES:
        return ending(_of_times(process, spacing, steps, chosen))
    if spacing == "uniform":
        return ending(_uniform(process, steps, chosen))
    if spacing == "flow_shift":
        return ending(_flow_shift(process, steps, chosen))
    low, high = _ends(process, chosen, finite=True)
    return ending(process.at_ratio(OF_RATIOS[spacing](high, low, steps, chosen)))


def natural(process: Process) -> str:
    """The spacing that a process is sampled by where none is set."""
    return NATURAL.get(type(process), "uniform")


def _of_times(process: Process, spacing: str, steps: int, chosen: Settings) -> Level:
    if not process.total:
        others = [name for name in SPACINGS if name and name not in OF_TIMES]
        raise SettingError(
            f"sampling.spacing={spacing} is of times of a discrete process, and this one's are "
            f"continuous: take {', '.join(others)}"
        )
    if chosen.sigma_min or chosen.sigma_max:
        raise SettingError(
            f"sampling.sigma_min and sigma_max say where spacings {', '.join(OF_RATIOS)} and "
            f"flow_shift end, not {spacing}: take one of these, or set both to 0"
        )
    return process.level(timesteps(spacing, steps, process.total))


def _begins_late(process: Process, alpha: float) -> bool:
    """Whether a network is told of a level with much less noise than samples start from."""
    return alpha > HELD and alpha > 2 * process.ends.alpha[1]


def warn_of_start(process: Process, spacing: str, levels: Level) -> None:
    """Warns of a grid [S + 1] of `OF_TIMES` that begins well below the noise of samples."""
    spacing, steps = spacing or natural(process), len(levels.t) - 1
    if spacing not in OF_TIMES or not _begins_late(process, levels.alpha[0]):
        return
    total = process.total
    first = {n: OF_TIMES[spacing](n, total).max() for n in range(2, total + 1)}
    in_time = [n for n, t in first.items() if not _begins_late(process, process.level(t).alpha)]
    near = [n for n in in_time if n < steps][-1:]
    near += [n for n in in_time if steps < n <= 2 * steps][:1]
    others = f", or sampling.steps={' or '.join(map(str, near))}" if near else ""
    warnings.warn(
        f"sampling.spacing={spacing} in {steps} steps begins at time {levels.t[0]:.0f} of "
        f"0..{total - 1}, where x holds {levels.alpha[0]:.2f} of an example, and samples begin as "
        f"noise alone: set sampling.spacing=trailing{others}",
        stacklevel=1,
    )


def _uniform(process: Process, steps: int, chosen: Settings) -> Level:
    """Even times; x_0 stands for the last of steps + 1, or follows the one of sigma_min."""
    if process.total:
        raise SettingError(
            "sampling.spacing=uniform is of continuous times, and this process is discrete: take "
            f"{', '.join(OF_TIMES)}"
        )
    low, high = _ends(process, chosen)
    last = process.time(np.array(low)) if chosen.sigma_min else process.low
    first = process.time(np.array(high)) if chosen.sigma_max else process.high
    return process.level(_even(first, last, steps, chosen))


def _flow_shift(process: Process, steps: int, chosen: Settings) -> Level:
    """Even times of the straight flow, t = ratio / (1 + ratio), and each ratio times `shift`.

    Esser et al. 2024 (arXiv:2403.03206, eq. 23): t -> shift t / (1 + (shift - 1) t).
    """
    low, high = _ends(process, chosen)
    flow = Flow()
    first, last = flow.time(np.array([high, low]) / chosen.shift)
    t = _even(first, last if chosen.sigma_min else 0.0, steps, chosen)
    return process.at_ratio(chosen.shift * flow.level(t).ratio)


def _even(first: float, last: float, steps: int, chosen: Settings) -> np.ndarray:
    """Even times from the first, [steps]; `last` is one of them only if sigma_min is set."""
    if chosen.sigma_min:
        return np.linspace(first, last, steps)
    return np.linspace(first, last, steps + 1)[:-1]


def _own(process: Process, spacing: str, steps: int, chosen: Settings) -> Level:
    """The levels of `sampling.sigmas`, without x_0."""
    ratios = np.asarray(chosen.sigmas, np.float64)
    ratios = ratios[:-1] if ratios[-1] == 0 and len(ratios) > 1 else ratios
    if spacing or chosen.sigma_min or chosen.sigma_max:
        raise SettingError(
            "sampling.sigmas is a whole grid: set sampling.spacing='' and sigma_min and sigma_max "
            "to 0 beside it"
        )
    if steps not in (0, len(ratios)):
        raise SettingError(
            f"sampling.sigmas has {len(ratios)} levels: set sampling.steps={len(ratios)}, or to 0, "
            f"not {steps}"
        )
    if (np.diff(ratios) >= 0).any() or ratios[-1] == 0:
        raise SettingError(
            "sampling.sigmas must fall from the noisiest level to the least noisy, none twice, and "
            "0 only at the end"
        )
    for ratio in ratios:
        _check_within(process, "sigmas", ratio)
    return process.at_ratio(ratios)


def bounds(process: Process) -> tuple[float, float]:
    """The lowest and the highest ratio of a process; 0 and infinity where it has no end."""
    low, high = process.ends.ratio
    if process.total > 1 and np.isinf(high):  # nothing lies between the last two levels
        high = process.level(process.high - 1).ratio
    return float(low), float(high)


def _ends(process: Process, chosen: Settings, finite: bool = False) -> tuple[float, float]:
    """The lowest and the highest ratio of a grid, by the settings or else of the process.

    Args:
      finite: takes EDM's where a process has no end.
    """
    low, high = bounds(process)
    if finite:
        low, high = low or LOWEST, HIGHEST if np.isinf(high) else high
    for name in ("sigma_min", "sigma_max"):
        if getattr(chosen, name):
            _check_within(process, name, getattr(chosen, name))
    low, high = chosen.sigma_min or low, chosen.sigma_max or high
    if not low < high:
        raise SettingError(
            f"sampling.sigma_min={low:g} must lie below sigma_max={high:g}: lower sigma_min or "
            "raise sigma_max"
        )
    return low, high


def _check_within(process: Process, name: str, ratio: float) -> None:
    low, high = bounds(process)
    if not low * (1 - 1e-6) <= ratio <= high * (1 + 1e-6):
        raise SettingError(
            f"sampling.{name} must lie in {low:g}..{high:g}, the noise (sigma / alpha) of "
            f"config.diffusion.process, not {ratio:g}"
        )
