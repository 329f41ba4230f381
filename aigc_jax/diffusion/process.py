"""The forward process: how much of an example and how much noise x_t holds.

Every Gaussian diffusion here is x_t = alpha(t) x_0 + sigma(t) eps; the variance-preserving one of
Ho et al. 2020 (arXiv:2006.11239) has alpha^2 + sigma^2 = 1 and integer t in 0..T-1, t = 0 being the
least noisy. Tables are float64 on the host and become float32 on the device.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.checks import one_of
from aigc_jax.errors import SettingError


class Process(NamedTuple):
    """A Gaussian process x_t = alpha(t) x_0 + sigma(t) eps on a grid of times.

    Attributes:
      times: float64 [T], the times a network is trained at, least noisy first.
      alpha, sigma: float64 [T], the coefficients at `times`.
    """

    times: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray

    def coefficients(self, index: jax.Array) -> tuple[jax.Array, jax.Array]:
        """alpha and sigma, float32 [B], at the time numbers `index` int [B]."""
        return per_time(self.alpha, index), per_time(self.sigma, index)


def linear(timesteps: int, beta_min: float, beta_max: float) -> np.ndarray:
    """Noise rates of Ho et al. 2020, float64 [T]."""
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
        raise SettingError(f"diffusion.timesteps must be at least 1, not {timesteps}")
    one_of("diffusion.schedule", schedule, SCHEDULES)
    return SCHEDULES[schedule](timesteps, beta_min, beta_max)


def variance_preserving(beta: np.ndarray) -> Process:
    """The process with noise rates `beta` [T]: alpha^2 = prod(1 - beta), sigma^2 = 1 - alpha^2.

    Raises:
      ValueError: a rate outside (0, 1).
    """
    if not ((beta > 0) & (beta < 1)).all():
        raise SettingError("every beta must lie in (0, 1)")
    alpha_bar = np.cumprod(1 - beta)
    return Process(np.arange(len(beta), dtype=np.float64), alpha_bar**0.5, (1 - alpha_bar) ** 0.5)


def diffuse(x0: jax.Array, eps: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """x_t of clean examples `x0` and noise `eps`, both [B, ...], at coefficients [B]."""
    return expand(alpha, x0) * x0 + expand(sigma, x0) * eps


def per_time(table: np.ndarray, index: jax.Array) -> jax.Array:
    """The values of a table [T] at the time numbers `index` int [B], float32 [B]."""
    return jnp.asarray(np.asarray(table, np.float32))[index]


def expand(coefficient: jax.Array, x: jax.Array) -> jax.Array:
    """A coefficient [B] (or a scalar) with the rank of x [B, ...], to multiply it."""
    coefficient = jnp.asarray(coefficient)
    return coefficient.reshape(coefficient.shape + (1,) * (x.ndim - coefficient.ndim))
