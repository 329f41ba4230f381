"""A VAE by its formulas, data and settings for the tests of the family."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax import build
from aigc_jax.data.datasets import DataSpec
from aigc_jax.vae import family as families
from aigc_jax.vae import likelihood as likelihoods
from aigc_jax.vae import objectives
from configs import vae_digits

SHAPE = (2, 2, 1)
PIXELS = 4
SETTINGS = {
    "importance": 1,
    "binarise": "none",
    "noise": "none",
    "noise_level": 0.0,
    "noise_clip": True,
    "test_samples": 8,
    "chunk": 4,
}
SAMPLING = {"prior": "normal", "components": 2, "temperature": 1.0}


class Formula(NamedTuple):
    """A network whose parameters are `weights`: one latent number a pixel, if not told otherwise.

    encode: (weights, x, label) -> (mean, logvar); decode: (weights, z, label) -> outputs.
    """

    encode: Callable[..., Any]
    decode: Callable[..., Any] = lambda weights, z, label: z
    weights: Any = ()
    num_classes: int = 0

    def init(self, *_):
        return {"params": dict(self.weights)}

    def init_with_output(self, key, x, *, method):
        return method(dict(self.weights), x, None), self.init()

    def apply(self, variables, *args, method):
        return method(variables["params"], *args)


def constant(mean, logvar):
    """An encoder that says the same of every image."""
    return lambda weights, x, label: (jnp.full_like(x, mean), jnp.full_like(x, logvar))


def identity(weights, x, label):
    """An encoder of no noise: the code is the image."""
    return x, jnp.full_like(x, -100.0)


def family(network, *, shape=SHAPE, likelihood=None, cost=None, sampling=None, **changes):
    return families.vae(
        network,
        shape,
        likelihood or likelihoods.build("gaussian", 1, sigma=0.5),
        cost or objectives.kl_cost("constant"),
        sampling=SAMPLING | (sampling or {}),
        **SETTINGS | changes,
    )


def images(n, value=None):
    """n images of one value, or of uniform noise."""
    if value is not None:
        return {"image": jnp.full((n, *SHAPE), value)}
    return {"image": jax.random.uniform(jax.random.key(5), (n, *SHAPE), minval=-1.0)}


def started(made, seed=0):
    """(params, extra) of a new model."""
    return made.init(jax.random.key(seed))


def loss(made, batch, seed=0, step=0):
    """The training loss and what comes with it."""
    params, extra = started(made)
    extra = extra | {"step": jnp.int32(step)}
    return jax.jit(made.phases[0].loss)(params, extra, batch, jax.random.key(seed))


def metrics(made, batch, seed=0):
    return jax.jit(made.evaluate)(*started(made), batch, jax.random.key(seed))


def restored(made):
    return jax.jit(made.restore)(*started(made), images(6), jax.random.key(0))


def bound(made, batch, seed=0):
    """-log p(x) by importance sampling, [B]."""
    found = made.likelihood(*started(made), batch, jax.random.key(seed))
    ((name, value),) = found.items()
    assert name.startswith("neg_log_p_iw")
    return np.asarray(value)


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


DIGITS = DataSpec((8, 8, 1), 10, {})


def mlp(**changes):
    """The family of a config, on images of the digits' size."""
    return build.build(config(**changes), DIGITS)


def digit_like(n=16, seed=0):
    """Bytes that no data set holds, with labels."""
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (n, 8, 8, 1), np.uint8),
        "label": rng.integers(0, 10, n).astype(np.int32),
    }


def floats(batch):
    return {**batch, "image": jnp.asarray(batch["image"], jnp.float32) / 127.5 - 1}
