"""The forward process: how much of an example and how much noise x_t holds.

Every Gaussian diffusion here is x_t = alpha(t) x_0 + sigma(t) eps. Times run from `low`, the least
noisy, to `high`; a discrete process, a table of T levels, is one case. A process answers in numpy
float64 on the host, where solvers make their tables, and in float32 inside a compiled program.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.checks import Count, Finite, OneOf, Positive, Range, arguments, choice, one_of
from aigc_jax.errors import SettingError

Beta = Annotated[float, Range(0, 1, above=True, below=True)]
Time = Annotated[float, Range(0, 1, above=True, below=True)]


class Level(NamedTuple):
    """Levels of noise: a time, and the coefficients there; all of one shape.

    Attributes:
      t: the time.
      alpha, sigma: of x_t = alpha x_0 + sigma eps.
    """

    t: Any
    alpha: Any
    sigma: Any

    @property
    def ratio(self) -> Any:
        """sigma / alpha: the noise in x_t / alpha. Infinite where x_t is noise alone."""
        if isinstance(self.alpha, jax.Array):
            return self.sigma / self.alpha
        with np.errstate(divide="ignore"):
            return np.divide(self.sigma, self.alpha)


class Process:
    """A Gaussian process; what there is of them are the classes in `PROCESSES`.

    Attributes:
      low, high: the least noisy and the noisiest time.
      total: T, where times are the whole numbers 0..T-1; 0 where they are continuous.
      start_std: standard deviation of x at `high`, of which samples start.
    """

    low: float
    high: float
    total: int = 0
    start_std: float = 1.0

    def coefficients(self, t: Any) -> tuple[Any, Any]:
        """alpha and sigma at times t, of its shape: float64 of numpy, float32 of a jax array."""
        raise NotImplementedError

    def time(self, ratio: np.ndarray) -> np.ndarray:
        """The time at which sigma / alpha is `ratio`, float64; may be fractional or outside."""
        raise NotImplementedError

    def clock(self, level: Level) -> jax.Array:
        """What a network's embedding is given for a time, in the order of 0..1000."""
        return 1000.0 * level.t

    def level(self, t: Any) -> Level:
        """The levels at times t."""
        if not isinstance(t, jax.Array):
            t = np.asarray(t, np.float64)
        return Level(t, *self.coefficients(t))

    def at_ratio(self, ratio: np.ndarray) -> Level:
        """The levels at which sigma / alpha is `ratio`, float64."""
        return self.level(self.time(np.asarray(ratio, np.float64)))

    @cached_property
    def ends(self) -> Level:
        """The levels at `low` and `high`, [2]."""
        return self.level(np.array([self.low, self.high]))


def linear(timesteps: int, beta_min: float, beta_max: float) -> np.ndarray:
    """Noise rates of Ho et al. 2020 (arXiv:2006.11239), float64 [T]."""
    return np.linspace(beta_min, beta_max, timesteps)


def cosine(timesteps: int, beta_min: float, beta_max: float) -> np.ndarray:
    """Noise rates of Nichol & Dhariwal 2021 (eq. 17, s = 0.008, capped at 0.999), float64 [T].

    beta_min and beta_max do not enter.
    """
    u = np.arange(timesteps + 1) / timesteps
    alpha_bar = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


def scaled_linear(timesteps: int, beta_min: float, beta_max: float) -> np.ndarray:
    """Noise rates that are linear in sqrt(beta) (Rombach et al. 2022), float64 [T]."""
    return np.linspace(beta_min**0.5, beta_max**0.5, timesteps) ** 2


SCHEDULES = {"linear": linear, "cosine": cosine, "scaled_linear": scaled_linear}


def betas(
    schedule: str, timesteps: int, beta_min: float = 1e-4, beta_max: float = 0.02
) -> np.ndarray:
    """Noise rates beta_0..beta_{T-1} of a schedule by name, float64 [T].

    Raises:
      ValueError: an unknown schedule, or a process without any times.
    """
    if timesteps < 1:
        raise SettingError(f"diffusion.process.timesteps must be at least 1, not {timesteps}")
    one_of("diffusion.process.schedule", schedule, SCHEDULES)
    return SCHEDULES[schedule](timesteps, beta_min, beta_max)


def zero_terminal(alpha: np.ndarray) -> np.ndarray:
    """alpha [T], shifted and scaled so that the last is 0 and the first stays.

    Lin et al. 2024 (arXiv:2305.08891), algorithm 1.
    """
    return (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])


@dataclass(frozen=True, eq=False)
class Discrete(Process):
    """T levels of noise with alpha^2 + sigma^2 = 1 (Ho et al. 2020); t is a level's number.

    Attributes:
      alphas: float64 [T], alpha of every level, falling.

    Raises:
      ValueError: alphas that do not fall within [0, 1).
    """

    alphas: np.ndarray

    def __post_init__(self) -> None:
        alphas = np.append(1.0, self.alphas)
        if not (np.diff(alphas) < 0).all() or alphas[-1] < 0:
            raise SettingError("every beta must lie in (0, 1)")

    @property
    def low(self) -> float:
        return 0.0

    @property
    def high(self) -> float:
        return float(self.total - 1)

    @property
    def total(self) -> int:
        return len(self.alphas)

    @cached_property
    def sigmas(self) -> np.ndarray:
        """sigma of every level, float64 [T]."""
        return np.sqrt(1 - self.alphas**2)

    @cached_property
    def _log_ratios(self) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return np.log(self.sigmas) - np.log(self.alphas)

    def coefficients(self, t: Any) -> tuple[Any, Any]:
        """alpha and sigma; between two levels, on the host, ln(sigma / alpha) is linear in t."""
        if isinstance(t, jax.Array):
            index = jnp.round(t).astype(jnp.int32)
            return per_time(self.alphas, index), per_time(self.sigmas, index)
        index = np.clip(np.round(t), 0, self.total - 1).astype(int)
        alpha, sigma = self.alphas[index], self.sigmas[index]
        between = np.interp(t, np.arange(self.total), self._log_ratios)
        alpha = np.where(index == t, alpha, 1 / np.hypot(1.0, np.exp(between)))
        return alpha, np.where(index == t, sigma, 1 / np.hypot(1.0, np.exp(-between)))

    def time(self, ratio: np.ndarray) -> np.ndarray:
        return np.interp(np.log(ratio), self._log_ratios, np.arange(self.total, dtype=np.float64))

    def clock(self, level: Level) -> jax.Array:
        """The level's number."""
        return level.t


def discrete(
    *,
    schedule: Annotated[str, OneOf(SCHEDULES)] = "linear",
    timesteps: Count = 1000,
    beta_min: Beta = 1e-4,
    beta_max: Beta = 0.02,
    zero_terminal_snr: bool = False,
) -> Discrete:
    """The process of Ho et al. 2020 with a schedule by name; see `betas` and `zero_terminal`."""
    process = variance_preserving(betas(schedule, timesteps, beta_min, beta_max))
    if zero_terminal_snr and timesteps > 1:
        process = Discrete(zero_terminal(process.alphas))
    return process


def variance_preserving(beta: np.ndarray) -> Discrete:
    """The process with noise rates `beta` [T]: alpha^2 = prod(1 - beta), sigma^2 = 1 - alpha^2.

    Raises:
      ValueError: a rate outside (0, 1).
    """
    if not ((beta > 0) & (beta < 1)).all():
        raise SettingError("every beta must lie in (0, 1)")
    return Discrete(np.sqrt(np.cumprod(1 - beta)))


@dataclass(frozen=True, eq=False)
class VP(Process):
    """The variance-preserving SDE of Song et al. 2021 (arXiv:2011.13456, eq. 32 and 33).

    Attributes:
      beta_min, beta_max: its noise rate at t = 0 and t = 1.
      low: the time at which training begins.
    """

    beta_min: Positive = 0.1
    beta_max: Positive = 20.0
    low: Time = 1e-5
    high: ClassVar[float] = 1.0

    def log_alpha(self, t: Any) -> Any:
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def coefficients(self, t: Any) -> tuple[Any, Any]:
        xp, log_alpha = of(t), self.log_alpha(t)
        return xp.exp(log_alpha), xp.sqrt(-xp.expm1(2 * log_alpha))

    def time(self, ratio: np.ndarray) -> np.ndarray:
        return self.time_of_log_alpha(-0.5 * np.log1p(np.square(ratio)))

    def time_of_log_alpha(self, log_alpha: np.ndarray) -> np.ndarray:
        """The time at which ln(alpha) has a value."""
        b, d = self.beta_min, self.beta_max - self.beta_min
        # The root without a difference of two nearly equal numbers; d may be 0.
        return -4 * log_alpha / (b + np.sqrt(b**2 - 4 * d * log_alpha))


@dataclass(frozen=True, eq=False)
class SubVP(VP):
    """The sub-VP SDE of Song et al. 2021 (eq. 28 and 29): alpha of VP, sigma its square."""

    def coefficients(self, t: Any) -> tuple[Any, Any]:
        xp, log_alpha = of(t), self.log_alpha(t)
        return xp.exp(log_alpha), -xp.expm1(2 * log_alpha)

    def time(self, ratio: np.ndarray) -> np.ndarray:
        # (1 - a^2) / a = ratio
        return self.time_of_log_alpha(np.log(2 / (ratio + np.sqrt(np.square(ratio) + 4))))


@dataclass(frozen=True, eq=False)
class VE(Process):
    """The variance-exploding SDE of Song et al. 2021: alpha = 1, sigma a power of t in 0..1."""

    sigma_min: Positive = 0.01
    sigma_max: Positive = 50.0
    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        _check_rising("sigma", self.sigma_min, self.sigma_max)

    @property
    def start_std(self) -> float:
        return self.sigma_max

    def coefficients(self, t: Any) -> tuple[Any, Any]:
        sigma = self.sigma_min * (self.sigma_max / self.sigma_min) ** t
        return of(t).ones_like(sigma), sigma

    def time(self, ratio: np.ndarray) -> np.ndarray:
        return np.log(ratio / self.sigma_min) / math.log(self.sigma_max / self.sigma_min)

    def clock(self, level: Level) -> jax.Array:
        """ln(sigma) / 4, as for EDM."""
        return jnp.log(level.sigma) / 4


@dataclass(frozen=True, eq=False)
class EDM(Process):
    """alpha = 1 and sigma = t (Karras et al. 2022, arXiv:2206.00364)."""

    sigma_min: Positive = 0.002
    sigma_max: Positive = 80.0

    def __post_init__(self) -> None:
        _check_rising("sigma", self.sigma_min, self.sigma_max)

    @property
    def low(self) -> float:
        return self.sigma_min

    @property
    def high(self) -> float:
        return self.sigma_max

    @property
    def start_std(self) -> float:
        return self.sigma_max

    def coefficients(self, t: Any) -> tuple[Any, Any]:
        return of(t).ones_like(t), t

    def time(self, ratio: np.ndarray) -> np.ndarray:
        return ratio

    def clock(self, level: Level) -> jax.Array:
        """ln(sigma) / 4, their c_noise."""
        return jnp.log(level.sigma) / 4


@dataclass(frozen=True, eq=False)
class Flow(Process):
    """The straight line from data to noise: alpha = 1 - t, sigma = t.

    Rectified flow (Liu et al. 2023, arXiv:2209.03003), flow matching (Lipman et al. 2023,
    arXiv:2210.02747); noise is at t = 1 here, as in Esser et al. 2024 (arXiv:2403.03206).
    """

    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0

    def coefficients(self, t: Any) -> tuple[Any, Any]:
        return 1 - t, t

    def time(self, ratio: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return np.where(np.isinf(ratio), 1.0, ratio / (1 + ratio))


@dataclass(frozen=True, eq=False)
class Cosine(Process):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2) (Nichol & Dhariwal 2021, in continuous time).

    Attributes:
      low: times are low..1 - low, so that the noise ratio stays finite.
    """

    low: Time = 1e-4

    @property
    def high(self) -> float:
        return 1.0 - self.low

    def coefficients(self, t: Any) -> tuple[Any, Any]:
        xp, angle = of(t), t * (math.pi / 2)
        return xp.cos(angle), xp.sin(angle)

    def time(self, ratio: np.ndarray) -> np.ndarray:
        return 2 / math.pi * np.arctan(ratio)


@dataclass(frozen=True, eq=False)
class LogSNR(Process):
    """alpha^2 = sigmoid(-gamma), sigma^2 = sigmoid(gamma), gamma linear in t from 0 to 1.

    Kingma et al. 2021, "Variational Diffusion Models" (arXiv:2107.00630), section 3.2.

    Attributes:
      gamma_min, gamma_max: gamma = -ln(SNR) at the ends.
    """

    gamma_min: Finite = -13.3
    gamma_max: Finite = 5.0
    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        _check_rising("gamma", self.gamma_min, self.gamma_max)

    def gamma(self, t: Any) -> Any:
        """-ln(SNR) at times t."""
        return self.gamma_min + (self.gamma_max - self.gamma_min) * t

    def coefficients(self, t: Any) -> tuple[Any, Any]:
        xp, gamma = of(t), self.gamma(t)
        return 1 / xp.sqrt(1 + xp.exp(gamma)), 1 / xp.sqrt(1 + xp.exp(-gamma))

    def time(self, ratio: np.ndarray) -> np.ndarray:
        return (2 * np.log(ratio) - self.gamma_min) / (self.gamma_max - self.gamma_min)


# {config.diffusion.process.name: what makes it of the section's other settings}
PROCESSES = {
    "discrete": discrete,
    "vp": VP,
    "sub_vp": SubVP,
    "ve": VE,
    "edm": EDM,
    "flow": Flow,
    "cosine": Cosine,
    "log_snr": LogSNR,
}


def build(settings: Mapping[str, Any]) -> Process:
    """The process of `config.diffusion.process`: its name, and its own settings.

    Raises:
      ValueError: an unknown name or setting, or one out of its range.
    """
    name, others = choice("diffusion.process", settings, PROCESSES)
    return PROCESSES[name](**arguments("diffusion.process", PROCESSES[name], others))


def diffuse(x0: jax.Array, eps: jax.Array, level: Level) -> jax.Array:
    """x_t of clean examples `x0` and noise `eps`, both [B, ...], at levels [B] or one of them."""
    return expand(level.alpha, x0) * x0 + expand(level.sigma, x0) * eps


def per_time(table: np.ndarray, index: jax.Array) -> jax.Array:
    """The values of a table [T] at the time numbers `index` int [B], float32 [B]."""
    return jnp.asarray(np.asarray(table, np.float32))[index]


def expand(coefficient: jax.Array, x: jax.Array) -> jax.Array:
    """A coefficient [B] (or a scalar) with the rank of x [B, ...], to multiply it."""
    coefficient = jnp.asarray(coefficient)
    return coefficient.reshape(coefficient.shape + (1,) * (x.ndim - coefficient.ndim))


def of(t: Any) -> Any:
    """The library that computes with t: jax.numpy for its arrays, else numpy."""
    return jnp if isinstance(t, jax.Array) else np


def _check_rising(name: str, low: float, high: float) -> None:
    if not low < high:
        raise SettingError(
            f"diffusion.process.{name}_min={low} must lie below {name}_max={high}: raise "
            f"{name}_max or lower {name}_min"
        )
