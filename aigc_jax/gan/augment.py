"""Augmentation of what a discriminator sees, real and generated; gradients pass through it.

Differentiable augmentation, Zhao et al. 2020 (arXiv:2006.10738), with the ranges of their code, and
the adaptive probability of Karras et al. 2020 (arXiv:2006.06676). Images are [B, H, W, C] in
[-1, 1]; what comes out is not clipped, so it can leave that range, as in the published code.
"""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp

from aigc_jax.checks import OR_EMPTY, BelowOne, OneOf, Positive, Probability


def color(key: jax.Array, image: jax.Array) -> jax.Array:
    """Brightness + U(-.5, .5), saturation x U(0, 2), contrast x U(.5, 1.5) of one image [H, W, C].

    Saturation is about each pixel's mean over channels, so a grey image keeps it; contrast about
    the image's mean.
    """
    brightness, saturation, contrast = jax.random.uniform(key, (3,), image.dtype)
    image = image + (brightness - 0.5)
    grey = jnp.mean(image, axis=2, keepdims=True)
    image = grey + 2.0 * saturation * (image - grey)
    mean = jnp.mean(image)
    return mean + (0.5 + contrast) * (image - mean)


def translation(key: jax.Array, image: jax.Array) -> jax.Array:
    """One image [H, W, C] shifted by up to an eighth of each side; zeros fill what it leaves."""
    height, width, _ = image.shape
    down, right = max(1, _fraction(height, 0.125)), max(1, _fraction(width, 0.125))
    padded = jnp.pad(image, ((down, down), (right, right), (0, 0)))
    largest = jnp.array([2 * down, 2 * right])
    start = jax.random.randint(key, (2,), 0, largest + 1)
    return jax.lax.dynamic_slice(padded, (start[0], start[1], 0), image.shape)


def cutout(key: jax.Array, image: jax.Array) -> jax.Array:
    """One image [H, W, C] with a box of half its sides set to 0.

    As published the box's centre is anywhere in the image, so an edge can cut the box down to half
    of its size. A box that had to lie within the image would always cover the image's centre.
    """
    row_key, column_key = jax.random.split(key)
    rows, columns = _span(row_key, image.shape[0]), _span(column_key, image.shape[1])
    return jnp.where(rows[:, None, None] & columns[None, :, None], 0.0, image)


# What a policy is made of: (key, image [H, W, C]) -> an image of the same shape.
PARTS = {"color": color, "translation": translation, "cutout": cutout}


@dataclass(frozen=True)
class Augmentation:
    """What images go through before the discriminator sees them: the settings of `gan.augment`.

    Attributes:
      policy: of "color", "translation", "cutout"; () for no augmentation.
      probability: of each part; where `target` is not 0, that of the start.
      probability_end: where the probability ends if it follows a schedule.
      target: E sign(D(real)) at which the probability is held (adaptive augmentation); 0: it is not
        adaptive.
      images: that the discriminator sees while an adaptive probability goes from 0 to 1.
    """

    policy: Annotated[tuple[Annotated[str, OneOf(PARTS)], ...], OR_EMPTY] = ()
    probability: Probability = 1.0
    probability_end: Probability = 1.0
    target: BelowOne = 0.0
    images: Positive = 500_000.0

    @property
    def adaptive(self) -> bool:
        """Whether the probability follows the discriminator's logits."""
        return bool(self.policy and self.target)


def differentiable(
    key: jax.Array, x: jax.Array, policy: tuple[str, ...], probability: float | jax.Array
) -> jax.Array:
    """Images x [B, H, W, C] changed at random by each part of `policy`, in its order.

    Args:
      key: an example's draws depend on it and the example's position in the batch only.
      policy: as of `Augmentation`; () changes nothing.
      probability: of each part for each example, a number or a (traced) scalar; 0 changes nothing,
        1 always changes.
    """

    def one(key: jax.Array, image: jax.Array) -> jax.Array:
        for name in policy:
            # By the part's place in PARTS: what it draws does not depend on which others there are.
            part_key = jax.random.fold_in(key, list(PARTS).index(name))
            draw_key, coin_key = jax.random.split(part_key)
            applied = jax.random.bernoulli(coin_key, probability)
            image = jnp.where(applied, PARTS[name](draw_key, image), image)
        return image

    return jax.vmap(one)(jax.random.split(key, len(x)), x)


def adapted(
    probability: jax.Array,
    real_logits: jax.Array,
    *,
    target: float,
    images: float,
    batch_size: int,
) -> jax.Array:
    """The next augmentation probability, in [0, 1]: higher where D is too sure of real images.

    Karras et al. 2020, eq. 1: r_t = E sign(D(x)) over the training images' logits, of any shape, is
    held at `target` (0.6 there). Their code takes the sign of r_t - target over 4 minibatches and
    changes the probability once for all 4. Here each step changes it by its own share, by its own
    r_t: the speed is the same, and r_t noisier.

    Args:
      images: that the discriminator sees while the probability goes from 0 to 1, 500_000 there.
      batch_size: real images of a step.
    """
    overfitting = jnp.mean(jnp.sign(real_logits))
    step = jnp.sign(overfitting - target) * (batch_size / images)
    return jnp.clip(probability + step, 0.0, 1.0)


def _fraction(side: int, ratio: float) -> int:
    return int(side * ratio + 0.5)


def _span(key: jax.Array, side: int) -> jax.Array:
    """Which of `side` positions a run of half of them covers, cut off at the ends, bool [side]."""
    length = _fraction(side, 0.5)
    # A run of even length has its centre between two pixels, so there is one more place for it.
    centre = jax.random.randint(key, (), 0, side + 1 - length % 2)
    distance = jnp.arange(side) - (centre - length // 2)
    return (distance >= 0) & (distance < length)
