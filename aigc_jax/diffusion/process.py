"""The forward process, what a network may predict of it, and how a loss weighs it.

Every Gaussian diffusion here is x_t = alpha(t) x_0 + sigma(t) eps; the variance-preserving one of
Ho et al. 2020 (arXiv:2006.11239) has alpha^2 + sigma^2 = 1 and integer t in 0..T-1, t = 0 being the
least noisy. Tables are float64 on the host and become float32 on the device.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SCHEDULES = ("linear", "cosine", "scaled_linear")
PREDICTIONS = ("eps", "x0", "v")
WEIGHTINGS = ("simple", "snr", "min_snr")


class Process(NamedTuple):
    """A Gaussian process x_t = alpha(t) x_0 + sigma(t) eps on a grid of times.

    Attributes:
      times: float64 [T], the times a network is trained at, least noisy first.
      alpha, sigma: float64 [T], the coefficients at `times`.
    """

    times: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray


def betas(
    schedule: str, timesteps: int, beta_min: float = 1e-4, beta_max: float = 0.02
) -> np.ndarray:
    """Noise rates beta_0..beta_{T-1}, float64 [T].

    "linear" is Ho et al. 2020, "cosine" Nichol & Dhariwal 2021 (eq. 17, s = 0.008, capped at 0.999;
    beta_min and beta_max do not enter), "scaled_linear" is linear in sqrt(beta) (Rombach et al.
    2022).
    """
    if timesteps < 1:
        raise ValueError(f"diffusion.timesteps must be at least 1, not {timesteps}")
    if schedule == "linear":
        return np.linspace(beta_min, beta_max, timesteps)
    if schedule == "scaled_linear":
        return np.linspace(beta_min**0.5, beta_max**0.5, timesteps) ** 2
    if schedule == "cosine":
        u = np.arange(timesteps + 1) / timesteps
        alpha_bar = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)
    raise ValueError(f"diffusion.schedule is one of {', '.join(SCHEDULES)}, not {schedule!r}")


def variance_preserving(beta: np.ndarray) -> Process:
    """The process with noise rates `beta` [T]: alpha^2 = prod(1 - beta), sigma^2 = 1 - alpha^2."""
    if not ((beta > 0) & (beta < 1)).all():
        raise ValueError("every beta must lie in (0, 1)")
    alpha_bar = np.cumprod(1 - beta)
    return Process(np.arange(len(beta), dtype=np.float64), alpha_bar**0.5, (1 - alpha_bar) ** 0.5)


def diffuse(x0: jax.Array, eps: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """x_t of clean images `x0` and noise `eps`, both [B, ...], at coefficients [B]."""
    return _like(alpha, x0) * x0 + _like(sigma, x0) * eps


def target(
    prediction: str, x0: jax.Array, eps: jax.Array, alpha: jax.Array, sigma: jax.Array
) -> jax.Array:
    """What the network should put out for x_t. v is Salimans & Ho 2022 (arXiv:2202.00512)."""
    if prediction == "eps":
        return eps
    if prediction == "x0":
        return x0
    if prediction == "v":
        return _like(alpha, x0) * eps - _like(sigma, x0) * x0
    raise _unknown_prediction(prediction)


def to_x0(
    prediction: str, output: jax.Array, x_t: jax.Array, alpha: jax.Array, sigma: jax.Array
) -> jax.Array:
    """The network's output as an estimate of the clean image, exactly."""
    alpha, sigma = _like(alpha, x_t), _like(sigma, x_t)
    if prediction == "eps":
        return (x_t - sigma * output) / alpha
    if prediction == "x0":
        return output
    if prediction == "v":  # holds for any alpha and sigma, not only variance-preserving ones
        return (alpha * x_t - sigma * output) / (alpha**2 + sigma**2)
    raise _unknown_prediction(prediction)


def to_eps(x0: jax.Array, x_t: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """The noise that leads from an estimate of the clean image to `x_t`."""
    return (x_t - _like(alpha, x_t) * x0) / _like(sigma, x_t)


def weight(
    weighting: str, prediction: str, alpha: np.ndarray, sigma: np.ndarray, gamma: float = 5.0
) -> np.ndarray:
    """Factor on the squared error of `prediction` at each time, float64 [T].

    "simple": 1 (Ho et al. 2020, L_simple). "snr": the error in x_0 counts by SNR = alpha^2/sigma^2,
    whatever is predicted. "min_snr": by min(SNR, gamma) (Hang et al. 2023, arXiv:2303.09556).
    The process is taken to be variance-preserving.
    """
    if prediction not in PREDICTIONS:
        raise _unknown_prediction(prediction)
    if weighting not in WEIGHTINGS:
        raise ValueError(
            f"diffusion.weighting is one of {', '.join(WEIGHTINGS)}, not {weighting!r}"
        )
    if weighting == "simple":
        return np.ones_like(alpha)
    snr = (alpha / sigma) ** 2
    on_x0 = np.minimum(snr, gamma) if weighting == "min_snr" else snr
    # |x0 error|^2 = |eps error|^2 / SNR = |v error|^2 / (SNR + 1)
    return on_x0 / {"eps": snr, "x0": np.ones_like(snr), "v": snr + 1}[prediction]


def per_time(table: np.ndarray) -> Callable[[jax.Array], jax.Array]:
    """A table [T] as a function of integer times [B]."""
    values = np.asarray(table, np.float32)
    return lambda index: jnp.asarray(values)[index]


def _unknown_prediction(prediction: str) -> ValueError:
    return ValueError(
        f"diffusion.prediction is one of {', '.join(PREDICTIONS)}, not {prediction!r}"
    )


def _like(coefficient: jax.Array, x: jax.Array) -> jax.Array:
    """A coefficient [B] (or scalar) with x's rank, to multiply x [B, ...]."""
    coefficient = jnp.asarray(coefficient)
    return coefficient.reshape(coefficient.shape + (1,) * (x.ndim - coefficient.ndim))
