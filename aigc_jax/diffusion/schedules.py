"""Noise rates of diffusion in T steps, by name."""

import numpy as np

from aigc_jax.checks import one_of
from aigc_jax.errors import SettingError


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
