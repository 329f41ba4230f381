"""Which times a loss sees, and how much the error at each time counts."""

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.checks import one_of
from aigc_jax.diffusion import precondition


def uniform(key: jax.Array, count: int, total: int) -> jax.Array:
    """Time numbers of a training batch, int32 [count], each uniform over 0..total-1."""
    return jax.random.randint(key, (count,), 0, total)


def stratified(key: jax.Array, count: int, total: int) -> jax.Array:
    """Time numbers of a test batch, int32 [count].

    Row i is from the i-th of `count` equal parts of 0..total-1. A mean over them varies much less
    than one over times drawn independently.
    """
    u = (jnp.arange(count) + jax.random.uniform(key, (count,))) / count
    return jnp.minimum((u * total).astype(jnp.int32), total - 1)


# {name: (SNR = alpha^2 / sigma^2, `precondition.error_of_x0`, gamma) -> factor}, arrays [T].
# "simple" counts errors of the prediction as they are (Ho et al. 2020, L_simple). The others count
# an error in x_0, whatever is predicted: by SNR, or by min(SNR, gamma) (Hang et al. 2023,
# arXiv:2303.09556).
WEIGHTINGS = {
    "simple": lambda snr, error, gamma: np.ones_like(snr),
    "snr": lambda snr, error, gamma: snr / error,
    "min_snr": lambda snr, error, gamma: np.minimum(snr, gamma) / error,
}


def weight(
    weighting: str, prediction: str, alpha: np.ndarray, sigma: np.ndarray, gamma: float = 5.0
) -> np.ndarray:
    """Factor on the squared error of `prediction` at each time, float64 [T].

    Args:
      weighting: a name of `WEIGHTINGS`; ValueError for any other.
      prediction: a name of `precondition.PREDICTIONS`; ValueError for any other.
      alpha, sigma: coefficients [T] of a variance-preserving process.
      gamma: of "min_snr".
    """
    error = precondition.error_of_x0(prediction, alpha, sigma)
    one_of("diffusion.weighting", weighting, WEIGHTINGS)
    return WEIGHTINGS[weighting]((alpha / sigma) ** 2, error, gamma)
