"""What networks see and predict of x_t = alpha x_0 + sigma eps, and the exact conversions.

A row of `PREDICTIONS` is all that a kind of prediction is; losses and solvers ask for it by name.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from aigc_jax.checks import one_of
from aigc_jax.diffusion.process import Level, Process, expand
from aigc_jax.errors import SettingError


class Prediction(NamedTuple):
    """One kind of network output; arrays are [B, ...], coefficients broadcast against them.

    Attributes:
      target: (x_0, eps, alpha, sigma) -> what the network should put out.
      to_x0: (output, x_t, alpha, sigma) -> the estimate of x_0 that an output is, exactly.
      error: (alpha, sigma) -> the squared error of the output that a squared error of 1 in x_0
        makes, x_t being given.
      scale: (alpha, sigma) -> c_in, the factor on x_t that the network is given.
      divides: whether `to_x0` needs an alpha above 0.
    """

    target: Callable
    to_x0: Callable
    error: Callable
    scale: Callable = lambda alpha, sigma: jnp.ones_like(alpha)
    divides: bool = False

    def target_of(self, x0: jax.Array, eps: jax.Array, level: Level) -> jax.Array:
        """What the network should put out for x_t of examples and noise [B, ...] at levels [B]."""
        return self.target(x0, eps, expand(level.alpha, x0), expand(level.sigma, x0))

    def x0_of(self, output: jax.Array, x_t: jax.Array, level: Level) -> jax.Array:
        """The network's output for x_t [B, ...] as an estimate of the clean examples, exactly."""
        return self.to_x0(output, x_t, expand(level.alpha, x_t), expand(level.sigma, x_t))

    def given(self, x_t: jax.Array, level: Level) -> jax.Array:
        """What the network sees of x_t [B, ...]."""
        return x_t * expand(self.scale(level.alpha, level.sigma), x_t)


def edm(sigma_data: float, least: float = 0.0) -> Prediction:
    """Karras et al. 2022 (arXiv:2206.00364, table 1): D = c_skip x + c_out F(c_in x).

    Their x is x_t / alpha, whose noise has the ratio s = sigma / alpha.

    Args:
      sigma_data: standard deviation of the data.
      least: the s at which D is x itself, that of consistency models (Song et al. 2023,
        arXiv:2303.01469, appendix C); `error` is of 0.
    """

    def c_skip(s: Any) -> Any:
        return sigma_data**2 / ((s - least) ** 2 + sigma_data**2)

    def c_out(s: Any) -> Any:
        return sigma_data * (s - least) / (s**2 + sigma_data**2) ** 0.5

    def target(x0: Any, eps: Any, alpha: Any, sigma: Any) -> Any:
        s = sigma / alpha
        return (x0 - c_skip(s) * (x0 + s * eps)) / c_out(s)

    def to_x0(output: Any, x_t: Any, alpha: Any, sigma: Any) -> Any:
        s = sigma / alpha
        return c_skip(s) * x_t / alpha + c_out(s) * output

    return Prediction(
        target,
        to_x0,
        error=lambda alpha, sigma: (alpha / sigma) ** 2 + sigma_data**-2,
        scale=lambda alpha, sigma: 1 / (sigma**2 + (alpha * sigma_data) ** 2) ** 0.5,
        divides=True,
    )


# {config.diffusion.prediction: standard deviation of the data -> Prediction}
PREDICTIONS: dict[str, Callable[[float], Prediction]] = {
    "eps": lambda _: Prediction(
        target=lambda x0, eps, alpha, sigma: eps,
        to_x0=lambda output, x_t, alpha, sigma: (x_t - sigma * output) / alpha,
        error=lambda alpha, sigma: (alpha / sigma) ** 2,
        divides=True,
    ),
    "x0": lambda _: Prediction(
        target=lambda x0, eps, alpha, sigma: x0,
        to_x0=lambda output, x_t, alpha, sigma: output,
        error=lambda alpha, sigma: alpha**0,
    ),
    # Salimans & Ho 2022 (arXiv:2202.00512). `to_x0` holds for any alpha and sigma.
    "v": lambda _: Prediction(
        target=lambda x0, eps, alpha, sigma: alpha * eps - sigma * x0,
        to_x0=lambda output, x_t, alpha, sigma: (
            (alpha * x_t - sigma * output) / (alpha**2 + sigma**2)
        ),
        error=lambda alpha, sigma: (alpha**2 / sigma + sigma) ** 2,
    ),
    # dx_t / dt of the straight line from x_0 to eps (Liu et al. 2023, arXiv:2209.03003).
    "velocity": lambda _: Prediction(
        target=lambda x0, eps, alpha, sigma: eps - x0,
        to_x0=lambda output, x_t, alpha, sigma: (x_t - sigma * output) / (alpha + sigma),
        error=lambda alpha, sigma: (alpha / sigma + 1) ** 2,
    ),
    "edm": edm,
}


def named(prediction: str, sigma_data: float = 0.5) -> Prediction:
    """The prediction of a name; ValueError for any other.

    Args:
      sigma_data: standard deviation of the data, of "edm".
    """
    one_of("diffusion.prediction", prediction, PREDICTIONS)
    return PREDICTIONS[prediction](sigma_data)


def of_process(prediction: str, sigma_data: float, process: Process) -> Prediction:
    """`named`, of a network that is asked at all times of a process.

    Raises:
      ValueError: an unknown name, or one that says nothing of x_0 where x_t is noise alone.
    """
    found = named(prediction, sigma_data)
    if found.divides and process.ends.alpha[-1] == 0:
        raise SettingError(
            f"diffusion.prediction={prediction!r} says nothing of x_0 at the noisiest time of "
            "diffusion.process, where x_t is noise alone: predict v, x0 or velocity"
        )
    return found
