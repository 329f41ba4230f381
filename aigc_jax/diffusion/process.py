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

from aigc_jax.checks import Count, Finite, OneOf, Positive, Range, arguments, choice
from aigc_jax.diffusion.schedules import SCHEDULES, betas, zero_terminal
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

    def time(self, ratio: Any) -> Any:
        """The time at which sigma / alpha is `ratio`, of its shape; may lie outside low..high."""
        raise NotImplementedError

    def noise_rate(self, t: jax.Array) -> jax.Array:
        """-d ln(SNR) / dt at times t; of a discrete process for t as a share of it."""

        def log_ratio(t: jax.Array) -> jax.Array:
            alpha, sigma = self.coefficients(t)
            return jnp.log(sigma) - jnp.log(alpha)

        return 2 * jax.jvp(log_ratio, (t,), (jnp.ones_like(t),))[1]

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

    def time(self, ratio: Any) -> Any:
        xp = of(ratio)
        return xp.interp(xp.log(ratio), self._log_ratios, np.arange(self.total, dtype=np.float64))

    def noise_rate(self, t: jax.Array) -> jax.Array:
        rate = 2 * self.total * np.gradient(self._log_ratios)
        return per_time(rate, jnp.round(t).astype(jnp.int32))

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
    """The process with noise rates `beta` [T] in (0, 1): alpha^2 = prod(1 - beta)."""
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

    def time(self, ratio: Any) -> Any:
        xp = of(ratio)
        return self.time_of_log_alpha(-0.5 * xp.log1p(xp.square(ratio)))

    def time_of_log_alpha(self, log_alpha: Any) -> Any:
        """The time at which ln(alpha) has a value."""
        b, d = self.beta_min, self.beta_max - self.beta_min
        # The root without a difference of two nearly equal numbers; d may be 0.
        return -4 * log_alpha / (b + of(log_alpha).sqrt(b**2 - 4 * d * log_alpha))


@dataclass(frozen=True, eq=False)
class SubVP(VP):
    """The sub-VP SDE of Song et al. 2021 (eq. 28 and 29): alpha of VP, sigma its square."""

    def coefficients(self, t: Any) -> tuple[Any, Any]:
        xp, log_alpha = of(t), self.log_alpha(t)
        return xp.exp(log_alpha), -xp.expm1(2 * log_alpha)

    def time(self, ratio: Any) -> Any:
        # (1 - a^2) / a = ratio
        xp = of(ratio)
        return self.time_of_log_alpha(xp.log(2 / (ratio + xp.sqrt(xp.square(ratio) + 4))))


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

    def time(self, ratio: Any) -> Any:
        log_range = math.log(self.sigma_max / self.sigma_min)
        return of(ratio).log(ratio / self.sigma_min) / log_range

    def clock(self, level: Level) -> jax.Array:
        """ln(sigma) / 4 (Karras et al. 2022, table 1)."""
        return jnp.log(level.sigma) / 4


@dataclass(frozen=True, eq=False)
class EDM(VE):
    """alpha = 1 and sigma = t (Karras et al. 2022, arXiv:2206.00364); `clock` is their c_noise."""

    sigma_min: Positive = 0.002
    sigma_max: Positive = 80.0

    @property
    def low(self) -> float:
        return self.sigma_min

    @property
    def high(self) -> float:
        return self.sigma_max

    def coefficients(self, t: Any) -> tuple[Any, Any]:
        return of(t).ones_like(t), t

    def time(self, ratio: Any) -> Any:
        return ratio


@dataclass(frozen=True, eq=False)
class Flow(Process):
    """The straight line from data to noise: alpha = 1 - t, sigma = t.

    Liu et al. 2023 (arXiv:2209.03003), Lipman et al. 2023 (arXiv:2210.02747); noise is at t = 1.
    """

    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0

    def coefficients(self, t: Any) -> tuple[Any, Any]:
        return 1 - t, t

    def time(self, ratio: Any) -> Any:
        with np.errstate(divide="ignore"):
            return 1 / (1 + 1 / ratio)  # 1 where the ratio is infinite


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

    def time(self, ratio: Any) -> Any:
        return 2 / math.pi * of(ratio).arctan(ratio)


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

    def time(self, ratio: Any) -> Any:
        log_ratio = of(ratio).log(ratio)
        return (2 * log_ratio - self.gamma_min) / (self.gamma_max - self.gamma_min)


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
