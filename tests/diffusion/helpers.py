"""Diffusion models whose networks are formulas, and what tests do with them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.diffusion import family as families
from aigc_jax.diffusion import precondition
from aigc_jax.diffusion import process as gaussian
from aigc_jax.family import Variables, View
from aigc_jax.sampling.driver import Driver

SHAPE = (2, 2, 1)
SAMPLING = {"sampler": "ddim", "steps": 5, "clip": True, "guidance": 1.0}
T = 20
LEVELS = jnp.array([0.1, 0.2, 0.05])  # of two classes, and of "none"
PROCESS = gaussian.variance_preserving(gaussian.betas("linear", T))
VARIABLES = Variables({"net": {}}, {})
VIEW = View({"net": {}}, {"net": {}}, {}, {}, jnp.int32(0))


class Formula(NamedTuple):
    """A network without parameters: (x, t, label, train) -> output like x."""

    of: Callable[..., Any]
    num_classes: int = 0

    def init(self, *_):
        return {"params": {}}

    def apply(self, variables, x, t, label, *, train=False, rngs=None):
        assert train == (rngs is not None)
        assert t.shape == (len(x),)
        return self.of(x, t, label, train) + jnp.zeros_like(x)


def model(of, num_classes=0, *, shape=SHAPE, sampling=None, timesteps=T, **changes):
    """A `Diffusion` whose network is the formula `of`."""
    settings = {
        "process": {"name": "discrete", "schedule": "linear", "timesteps": timesteps},
        "prediction": "x0",
        "times": {"name": "uniform"},
        "weighting": {"name": "simple"},
        "label_dropout": 0.1,
        "sampling": {**SAMPLING, **(sampling or {})},
        **changes,
    }
    return families.diffusion(Formula(of, num_classes), shape, **settings)


def images(n, value=0.0):
    return {"x": jnp.full((n, *SHAPE), value)}


def loss(made, batch, seed=0):
    return jax.jit(made.loss)(VIEW, batch, jax.random.key(seed))[0]


def metrics(made, batch, seed=0):
    return jax.jit(made.evaluate)(VARIABLES, batch, jax.random.key(seed))


def evaluate(made, batch, seed=0):
    return metrics(made, batch, seed)["loss"]


def reconstructed(made, batch, seed=0):
    return jax.jit(made.reconstruct)(VARIABLES, batch, jax.random.key(seed))


def bits(made, batch, seed=0):
    return made.likelihood.bound(VARIABLES, batch, jax.random.key(seed))["bits_per_dim"]


def keys_of(n):
    return jax.vmap(jax.random.key)(jnp.arange(n))


def sample(made, n=4, cond=None):
    driver = Driver(made.family().drawing, "cpu")
    return np.asarray(driver(VARIABLES, keys_of(n), cond or {}))


def column(values):
    return jnp.asarray(values)[:, None, None, None]


def with_memory(x, t, label, train):
    """A network that every input matters to."""
    return jnp.tanh(x * 0.7 + 0.01 * column(t) + 0.3 * column(label))


def to_eps(x0, x_t, level):
    """The noise that leads from an estimate of the clean example to `x_t`."""
    return (x_t - gaussian.expand(level.alpha, x_t) * x0) / gaussian.expand(level.sigma, x_t)


def believing(prediction, x0_of):
    """A network whose estimate of x_0 is `x0_of(label)`, whatever it sees."""

    def of(x, t, label, train):
        level = PROCESS.level(t)
        scale = precondition.named(prediction).scale(level.alpha, level.sigma)
        x_t = x / gaussian.expand(scale, x)
        x0 = x0_of(label) + jnp.zeros_like(x)
        return precondition.named(prediction).target_of(x0, to_eps(x0, x_t, level), level)

    return of
