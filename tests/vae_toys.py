"""A VAE by its formulas, data and settings for the tests of the family."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import specs

from aigc_jax import build
from aigc_jax.family import Field, Variables, View
from aigc_jax.sampling.driver import Driver
from aigc_jax.vae import likelihood as likelihoods
from aigc_jax.vae import objectives
from aigc_jax.vae.plain import VAE
from aigc_jax.vae.prior import Sampling
from configs import vae_digits

SHAPE = (2, 2, 1)
PIXELS = 4
DIGITS = specs.images((8, 8, 1), 10)


class Formula(NamedTuple):
    """A network whose parameters are `weights`: by default one latent number a pixel.

    encode: (weights, x, label) -> (mean, logvar); decode: (weights, z, label) -> outputs.
    """

    encode: Callable[..., Any]
    decode: Callable[..., Any] = lambda weights, z, label: z
    weights: Any = ()
    latent_shape: tuple[int, ...] = SHAPE

    def init(self, *_):
        return {"params": dict(self.weights)}

    def apply(self, variables, *args, method):
        return method(variables["params"], *args)


def constant(mean, logvar):
    """An encoder that says the same of every image."""
    return lambda weights, x, label: (jnp.full_like(x, mean), jnp.full_like(x, logvar))


def identity(weights, x, label):
    """An encoder of no noise: the code is the image."""
    return x, jnp.full_like(x, -100.0)


def vae(network, *, shape=SHAPE, likelihood=None, cost=None, classes=0, sampling=None, **changes):
    """A VAE of that network; with `classes` it is conditional."""
    importance = {"test_samples": 8, "chunk": 4} | changes.pop("importance", {})
    return VAE(
        network=network,
        shape=shape,
        likelihood=likelihood or likelihoods.build("gaussian", 1, sigma=0.5),
        conditions={"label": Field("label", (), classes)} if classes else {},
        kl_cost=cost or objectives.kl_cost("constant"),
        importance=objectives.Importance(**importance),
        sampling=Sampling(**{"components": 2} | (sampling or {})),
        **changes,
    )


def images(n, value=None):
    """n images of one value, or of uniform noise."""
    if value is not None:
        return {"x": jnp.full((n, *SHAPE), value)}
    return {"x": jax.random.uniform(jax.random.key(5), (n, *SHAPE), minval=-1.0)}


@functools.cache
def started(made, seed=0):
    """Variables of a new model."""
    return Variables(*made.init(jax.random.key(seed)))


def viewed(variables, step=0, constants=None):
    """What a loss sees of a model at that step."""
    params, extra, *_ = variables
    return View(params, {"net": params["net"]}, extra, constants or {}, jnp.int32(step))


@functools.cache
def compiled(made, name):
    """A method of a model, or a function of a family, jitted once."""
    return jax.jit(getattr(made, name))


def loss(made, batch, seed=0, step=0, constants=None, variables=None):
    """The training loss and what comes with it."""
    name = "loss" if made.importance.samples == 1 else "importance_loss"
    view = viewed(variables or started(made), step, constants)
    return compiled(made, name)(view, batch, jax.random.key(seed))


def metrics(made, batch, seed=0):
    return compiled(made, "evaluate")(started(made), batch, jax.random.key(seed))


def reconstructed(made):
    return compiled(made, "reconstruct")(started(made), images(6), jax.random.key(0))


def bound(made, batch, seed=0):
    """-log p(x) by importance sampling, [B]."""
    found = made.importance_bound(started(made), batch, jax.random.key(seed))
    ((name, value),) = found.items()
    assert name.startswith("neg_log_p_iw")
    return np.asarray(value)


@functools.cache
def driver(made):
    """Draws from a model or a family."""
    return Driver((made.family() if isinstance(made, VAE) else made).drawing, "cpu")


def keys_of(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def config(**changes):
    """The smallest experiment on digits, with dots for double underscores: network__latent=3."""
    made = vae_digits.get_config("smoke")
    flat = {"network.hidden": (8,), "network.latent": 3} | {
        name.replace("__", "."): value for name, value in changes.items()
    }
    with made.unlocked():
        made.update_from_flattened_dict(flat)
    return made


def mlp(**changes):
    """The family of a config, on images of the digits' size."""
    return build.build(config(**changes), DIGITS)


def digit_like(n=16, seed=0):
    """Bytes that no data set holds, with labels."""
    rng = np.random.default_rng(seed)
    return {
        "x": rng.integers(0, 256, (n, 8, 8, 1), np.uint8),
        "label": rng.integers(0, 10, n).astype(np.int32),
    }


def floats(batch):
    return {**batch, "x": jnp.asarray(batch["x"], jnp.float32) / 127.5 - 1}
