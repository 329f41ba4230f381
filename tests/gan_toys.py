"""A GAN by its formulas, data and settings for the tests of the family."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import specs

from aigc_jax import streams
from aigc_jax.family import Variables, View
from aigc_jax.gan import augment, losses
from aigc_jax.gan import family as families
from aigc_jax.gan.latents import Latents
from aigc_jax.training.recipe import recipe
from aigc_jax.training.step import init_state
from configs import gan_mnist

SPEC = specs.images((8, 8, 1), classes=10)
SHAPE, B = (2, 2, 1), 6
WEIGHTS = np.array([0.5, -1.0, 2.0, 0.25], np.float32)  # of the discriminator of `linear`
SCALE, SHIFT = 0.3, 0.2  # of its generator


class Formula(SimpleNamespace):
    """A module without statistics whose output is `of(weights, x, label)`."""

    def init(self, key, x, label):
        return {"params": dict(self.weights)}

    def apply(self, variables, x, label, *, train, mutable=False):
        out = self.of(variables["params"], x, label)
        return (out, {}) if mutable else out


def linear(classes=0, prior="normal", truncation=0.0, **changes):
    """Images are w_g z + b, logits <w_d, x>; class logits, where asked for, the first pixels."""

    def draw(p, z, label):
        return p["in"]["kernel"][0, 0] * z.reshape(-1, *SHAPE) + p["b"]

    def judge(p, x, label):
        flat = x.reshape(len(x), -1)
        return flat @ p["w"], flat[:, :2] if classes else None

    generator = Formula(
        of=draw,
        weights={"in": {"kernel": SCALE * jnp.ones((4, 4))}, "b": jnp.float32(SHIFT)},
        num_classes=classes,
        latent=4,
        shape=SHAPE,
    )
    discriminator = Formula(of=judge, weights={"w": jnp.asarray(WEIGHTS)}, norm="none")
    settings = {
        "generator": generator,
        "discriminator": discriminator,
        "latents": Latents(4, prior, truncation),
        "kind": "image",
        "game": losses.build(changes.pop("loss", "non_saturating")),
        "penalty": losses.Penalty(),
        "augmentation": augment.Augmentation(images=1e3),
        "class_weight_generator": 0.5,
    }
    return families.GAN(**settings | changes)


def images(n=B, seed=0):
    x = jax.random.uniform(jax.random.key(seed), (n, *SHAPE), minval=-1.0)
    return {"x": x, "label": jnp.arange(n, dtype=jnp.int32) % 2}


def drawn(key, n=B):
    """The images, flat, that `linear` makes from a key of latents."""
    return SCALE * np.asarray(jax.random.normal(key, (n, 4))) + SHIFT


def view(made, step=0):
    """What losses of a new GAN see at a step."""
    params, extra = made.init(jax.random.key(0))
    return View(params, {}, extra, {}, step)


def run(made, loss, batch, seed=1, step=0):
    """(value, (metrics, extra)) of the loss of that name, of new parameters."""
    return getattr(made, loss)(view(made, step), batch, jax.random.key(seed))


def config(variant="non_saturating+smoke", **changes):
    made = gan_mnist.get_config(variant)
    with made.unlocked():
        flat = {name.replace("__", "."): value for name, value in changes.items()}
        made.update_from_flattened_dict({"train.batch_size": 16} | flat)
    return made


def small(variant="non_saturating+smoke", spec=SPEC, **changes):
    """The GAN of MNIST with networks of 8x8 and other settings."""
    return families.from_config(config(variant, **changes), spec)


def new(made, prepare=True):
    """Variables of a new GAN: its parameters, and what is prepared of them."""
    # Random numbers of such a key compile several times faster on a CPU.
    variables = Variables(*jax.jit(made.init)(jax.random.key(0, impl="rbg")))
    found = made.family().drawing.prepare
    return variables._replace(prepared=found(variables, None)) if found and prepare else variables


def sample(made, variables, keys, cond):
    return made.finish(variables, made.start(variables, keys, cond))


def digits(n=16, batches=1):
    """Bytes of as many batches as a step takes."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (batches, n, 8, 8, 1), np.uint8)
    return {"x": x, "label": rng.integers(0, 10, (batches, n)).astype(np.int32)}


def recipe_of(made, setting, spec=SPEC):
    sections = {name: setting[name] for name in ("optimizer", "ema", "augment")}
    return recipe(made.family(), spec, batch_size=setting["train"]["batch_size"], **sections)


def started(plan):
    """A state at step 0."""
    # Random numbers of such a key compile several times faster on a CPU.
    init_key = jax.random.key(0, impl="rbg")
    return jax.jit(partial(init_state, plan))(init_key, streams.init(0)[1])
