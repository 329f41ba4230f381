"""What a network may predict of x_t = alpha x_0 + sigma eps, and the exact conversions among them.

A row of `PREDICTIONS` is all that a kind of prediction is; losses and solvers ask for it by name.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from aigc_jax.checks import one_of
from aigc_jax.diffusion.process import expand


class Prediction(NamedTuple):
    """One kind of network output; arrays are [B, ...], coefficients broadcast against them.

    Attributes:
      target: (x_0, eps, alpha, sigma) -> what the network should put out.
      to_x0: (output, x_t, alpha, sigma) -> the estimate of x_0 that an output is, exactly.
      error: (alpha [T], sigma [T]) -> [T], the squared error of the output that a squared error of
        1 in x_0 makes, x_t being given and the process variance-preserving.
    """

    target: Callable
    to_x0: Callable
    error: Callable


PREDICTIONS = {
    "eps": Prediction(
        target=lambda x0, eps, alpha, sigma: eps,
        to_x0=lambda output, x_t, alpha, sigma: (x_t - sigma * output) / alpha,
        error=lambda alpha, sigma: (alpha / sigma) ** 2,
    ),
    "x0": Prediction(
        target=lambda x0, eps, alpha, sigma: x0,
        to_x0=lambda output, x_t, alpha, sigma: output,
        error=lambda alpha, sigma: np.ones_like(alpha),
    ),
    # Salimans & Ho 2022 (arXiv:2202.00512). `to_x0` holds for any alpha and sigma.
    "v": Prediction(
        target=lambda x0, eps, alpha, sigma: alpha * eps - sigma * x0,
        to_x0=lambda output, x_t, alpha, sigma: (
            (alpha * x_t - sigma * output) / (alpha**2 + sigma**2)
        ),
        error=lambda alpha, sigma: (alpha / sigma) ** 2 + 1,
    ),
}


def target(
    prediction: str, x0: jax.Array, eps: jax.Array, alpha: jax.Array, sigma: jax.Array
) -> jax.Array:
    """What the network should put out for x_t.

    Args:
      prediction: a name of `PREDICTIONS`; ValueError for any other.
      x0, eps: clean examples and the noise in x_t, [B, ...].
      alpha, sigma: coefficients [B].
    """
    of = _named(prediction)
    return of.target(x0, eps, expand(alpha, x0), expand(sigma, x0))


def to_x0(
    prediction: str, output: jax.Array, x_t: jax.Array, alpha: jax.Array, sigma: jax.Array
) -> jax.Array:
    """The network's output for x_t [B, ...] as an estimate of the clean examples, exactly."""
    of = _named(prediction)
    return of.to_x0(output, x_t, expand(alpha, x_t), expand(sigma, x_t))


def error_of_x0(prediction: str, alpha: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """`Prediction.error` by name, float64 [T]."""
    return _named(prediction).error(alpha, sigma)


def _named(prediction: str) -> Prediction:
    one_of("diffusion.prediction", prediction, PREDICTIONS)
    return PREDICTIONS[prediction]
