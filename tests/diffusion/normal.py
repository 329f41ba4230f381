"""Models whose network is the exact denoiser of known data, for any process."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from helpers import model

from aigc_jax.diffusion import process as gaussian

MEAN, STD = 0.3, 0.5
PROCESSES = {
    "discrete": {"name": "discrete", "schedule": "linear", "timesteps": 1000, "beta_min": 1e-5},
    "vp": {"name": "vp"},
    "sub_vp": {"name": "sub_vp"},
    "ve": {"name": "ve", "sigma_min": 0.002},
    "edm": {"name": "edm"},
    "flow": {"name": "flow"},
    "cosine": {"name": "cosine"},
    "log_snr": {"name": "log_snr"},
}
CONTINUOUS = [name for name in PROCESSES if name != "discrete"]


def level_of(process, clock):
    """The levels that a network is told, from what it is told of the time."""
    if process.total:
        ratio = jnp.exp(jnp.interp(clock, np.arange(process.total), process._log_ratios))
        alpha = 1 / jnp.sqrt(1 + ratio**2)
        return alpha, alpha * ratio
    if isinstance(process, gaussian.VE):
        return jnp.ones_like(clock), jnp.exp(4 * clock)
    return process.coefficients(clock / 1000)


def denoiser(process, means=(MEAN,), std=STD):
    """The mean of x_0 given x_t, of equally many points about each of the `means`."""

    def of(x, t, label, train):
        alpha, sigma = (gaussian.expand(a, x)[None] for a in level_of(process, t))
        y, ratio = x[None] / alpha, sigma / alpha
        centres = np.asarray(means, np.float32)
        centres = centres.reshape(len(means), *[1] * (x.ndim - 1), -1)
        variance = std**2 + ratio**2
        square = jnp.sum((y - centres) ** 2, axis=-1, keepdims=True)
        share = jax.nn.softmax(-0.5 * square / variance, axis=0)
        return jnp.sum(share * (std**2 * y + ratio**2 * centres) / variance, axis=0)

    return of


def knowing(name="vp", means=(MEAN,), std=STD, shape=(2,), of_bytes=False, **changes):
    """A `Diffusion` of a process, whose network knows the data."""
    settings = PROCESSES[name]
    of = denoiser(gaussian.build(settings), means, std)
    sampling = {"clip": False, "steps": 5}
    changes = {"process": settings, "prediction": "x0", "sampling": sampling} | changes
    return model(of, shape=shape, of_bytes=of_bytes, **changes)


def log_p(x, mean, std):
    """ln N(x; mean, std^2), each element."""
    return -0.5 * ((x - mean) / std) ** 2 - math.log(std) - 0.5 * math.log(2 * math.pi)
