"""A GAN by its formulas, data and settings for the tests of the family."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax import build
from aigc_jax.data.datasets import DataSpec
from aigc_jax.gan import augment, losses
from aigc_jax.gan import family as families
from aigc_jax.training import loop
from aigc_jax.training.step import init_state
from configs import gan_mnist

SPEC = DataSpec((8, 8, 1), 10, {})
SHAPE, B = (2, 2, 1), 6
SETTINGS = {
    "batch_size": B,
    "truncation": 0.0,
    "loss": "non_saturating",
    "penalty": losses.Penalty("none", 1.0, 1),
    "augment": augment.Augmentation((), 1.0, 0.0, 1e3),
    "decay_steps": 0,
    "critics": 1,
    "generator_batch": 1,
    "prior": "normal",
    "class_weight": 1.0,
    "class_weight_generator": 0.5,
    "frozen": 0,
}


class Formula(SimpleNamespace):
    """A module without statistics whose output is `of(weights, x, label)`."""

    def init(self, key, x, label):
        return {"params": dict(self.weights)}

    def apply(self, variables, x, label, *, train, mutable=False):
        out = self.of(variables["params"], x, label)
        return (out, {}) if mutable else out


def linear(classes=0, **changes):
    """Images are w_g z + b, logits <w_d, x>; class logits, where asked for, the first pixels."""

    def draw(p, z, label):
        return p["in"]["kernel"][0, 0] * z.reshape(-1, *SHAPE) + p["b"]

    def judge(p, x, label):
        flat = x.reshape(len(x), -1)
        return flat @ p["w"], flat[:, :2] if classes else None

    generator = Formula(
        of=draw,
        weights={"in": {"kernel": 0.3 * jnp.ones((4, 4))}, "b": jnp.float32(0.2)},
        num_classes=classes,
        latent=4,
        image_shape=SHAPE,
    )
    discriminator = Formula(of=judge, weights={"w": jnp.array([0.5, -1.0, 2.0, 0.25])}, norm="none")
    return families.gan(generator, discriminator, **SETTINGS | changes)


def images(n=B, seed=0):
    x = jax.random.uniform(jax.random.key(seed), (n, *SHAPE), minval=-1.0)
    return {"image": x, "label": jnp.arange(n, dtype=jnp.int32) % 2}


def run(made, index, batch, seed=1):
    params, extra = made.init(jax.random.key(0))
    return jax.jit(made.phases[index].loss)(params, extra, batch, jax.random.key(seed))


def config(variant="non_saturating+smoke", **changes):
    made = gan_mnist.get_config(variant)
    with made.unlocked():
        flat = {name.replace("__", "."): value for name, value in changes.items()}
        made.update_from_flattened_dict({"train.batch_size": 16} | flat)
    return made


def small(variant="non_saturating+smoke", **changes):
    return build.build(config(variant, **changes), SPEC)


def digits(n=16, fresh=1):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (fresh, n, 8, 8, 1), np.uint8)
    return {"image": image, "label": rng.integers(0, 10, (fresh, n)).astype(np.int32)}


def started(made, setting):
    plan = loop.recipe(setting, made)
    return plan, jax.jit(partial(init_state, plan))(jax.random.key(0))
