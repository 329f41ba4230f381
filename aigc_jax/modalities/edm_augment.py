"""EDM's augmentation: images that were moved, and a label that tells a network how.

Karras, Aittala, Aila & Laine, "Elucidating the Design Space of Diffusion-Based Generative Models",
2022 (arXiv:2206.00364), appendix F.2, after the geometric transforms of Karras et al. 2020
(arXiv:2006.06676), appendix B. The network is told the label while it trains and zeros, an image as
it is, when it samples: what it generates is not augmented.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.modalities.augment import bilinear, mirror

LABEL_DIM = 9
ZOOM = 2**0.2  # of a scale of 1, and of a stretch of 1
SHIFT = 1 / 8  # of the image's side, of a shift of 1
# The share of stretches along any line; others are along a row. As in NVlabs/edm, training/
# augment.py, by which the published models were trained; table 6 of the paper does not have it.
SLANTED = 0.5
EXACT = jax.lax.Precision.HIGHEST  # positions and pixels need more bits than a matrix unit's

# The scaling filter of the wavelet sym6 (Daubechies 1992), as in the papers: images are moved at
# twice their size. It is orthogonal, so reducing undoes enlarging but for rounding.
SYM6 = np.array([
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
    0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252,
    -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
])  # fmt: skip
# Of its mass: what it moves pixels by. NVlabs/edm takes it for 5, and so moves images about a point
# 0.05 pixels from their centre; by that number the two agree to 1e-5.
CENTRE = float(np.arange(len(SYM6)) @ SYM6 / SYM6.sum())


class Move(NamedTuple):
    """How each example is moved, each [B] float32; zeros leave it as it is.

    Attributes:
      x_flip, y_flip: 1 for an image mirrored left to right, or top to bottom.
      scale: of the magnification ZOOM ** scale about the centre.
      angle: radians by which it then turns counterclockwise.
      direction, stretch: it then becomes ZOOM ** stretch times as long along the line `direction`
        radians counterclockwise of a row, and as many times as short across it.
      right, down: it then moves by these times SHIFT of its width and height.
    """

    x_flip: jax.Array
    y_flip: jax.Array
    scale: jax.Array
    angle: jax.Array
    direction: jax.Array
    stretch: jax.Array
    right: jax.Array
    down: jax.Array


def augment_with_label(
    key: jax.Array, x: jax.Array, probability: float | jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Images x [B, H, W, C] in [-1, 1] moved at random, and their labels [B, 9] float32.

    An image that stays as it is has a label of zeros. What comes out is not clipped, so resampling
    can leave [-1, 1] a little.

    Args:
      probability: of each of mirroring top to bottom (which half of these do), scale, rotation,
        stretch and translation, 0.12 in the paper for CIFAR-10. Half of the images are mirrored
        left to right whatever it is, unless it is 0: then nothing changes.
    """
    move = draw(key, len(x), probability)
    return moved(x, move), label(move)


def draw(key: jax.Array, batch: int, probability: float | jax.Array) -> Move:
    """A move of each example."""
    coin_key, flip_key, normal_key, angle_key, line_key = jax.random.split(key, 5)
    coins = jax.random.bernoulli(coin_key, probability, (5, batch)).astype(jnp.float32)
    flips = jax.random.bernoulli(flip_key, 0.5, (2, batch)).astype(jnp.float32)
    scale, stretch, right, down = jax.random.normal(normal_key, (4, batch))
    angle, direction = jax.random.uniform(angle_key, (2, batch), minval=-math.pi, maxval=math.pi)
    slanted = jax.random.bernoulli(line_key, SLANTED, (batch,))
    flipped, scaled, turned, stretched, translated = coins
    return Move(
        x_flip=jnp.where(probability > 0, flips[0], 0.0),
        y_flip=flipped * flips[1],
        scale=scaled * scale,
        angle=turned * angle,
        direction=slanted * direction,
        stretch=stretched * stretch,
        right=translated * right,
        down=translated * down,
    )


def label(move: Move) -> jax.Array:
    """What a network is told of a move, [B, 9] float32."""
    parts = [
        move.x_flip,
        move.y_flip,
        move.scale,
        jnp.cos(move.angle) - 1.0,
        jnp.sin(move.angle),
        move.stretch * jnp.cos(move.direction),
        move.stretch * jnp.sin(move.direction),
        move.right,
        move.down,
    ]
    return jnp.stack(parts, axis=1)


def moved(x: jax.Array, move: Move) -> jax.Array:
    """Images x [B, H, W, C] in any range; what comes in from outside is their reflection."""
    height, width = x.shape[1:3]
    x = mirror(x, move.x_flip > 0)
    x = mirror(x.swapaxes(1, 2), move.y_flip > 0).swapaxes(1, 2)

    enlarge = (_enlarging(height), _enlarging(width))
    large = jnp.einsum("rh,bhwc,sw->brsc", enlarge[0], x, enlarge[1], precision=EXACT)
    # Where pixels of the large result are, from the centre of the image, in its pixels.
    reduce = (_reducing(height), _reducing(width))
    places = ((np.arange(r.shape[1]) - CENTRE - (len(r) - 1)) / 2 for r in reduce)
    places = jnp.asarray(np.stack(np.meshgrid(*places, indexing="ij"), axis=-1), jnp.float32)
    shift = SHIFT * jnp.stack([move.down * height, move.right * width], axis=1)
    middle = jnp.array([height - 1, width - 1], jnp.float32)

    def one(image: jax.Array, matrix: jax.Array, shift: jax.Array) -> jax.Array:
        there = jnp.einsum("ij,rsj->rsi", matrix, places - shift[None, None], precision=EXACT)
        there = 2 * there + middle[None, None] + CENTRE
        return bilinear(image, there[..., 0], there[..., 1], jnp.mod)

    large = jax.vmap(one)(large, _back(move), shift)
    found = jnp.einsum("hr,brsc,ws->bhwc", reduce[0], large, reduce[1], precision=EXACT)
    moves = jnp.stack([move.scale, move.angle, move.stretch, move.right, move.down])
    return jnp.where(jnp.any(moves != 0, axis=0)[:, None, None, None], found, x)


def _back(move: Move) -> jax.Array:
    """Maps (down, right) of the centre in the result to those in the image, [B, 2, 2]."""

    def turn_back(angle: jax.Array) -> jax.Array:
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        return jnp.stack([jnp.stack([cos, sin], -1), jnp.stack([-sin, cos], -1)], axis=-2)

    longer = ZOOM**move.stretch
    squeeze = jnp.stack([longer, 1 / longer], axis=-1)[:, :, None]
    # Turned back until the stretched line is a row, each coordinate scaled, and turned again.
    stretch = jnp.matmul(
        turn_back(-move.direction), squeeze * turn_back(move.direction), precision=EXACT
    )
    back = jnp.matmul(turn_back(move.angle), stretch, precision=EXACT)
    return back / (ZOOM**move.scale)[:, None, None]


def _enlarging(size: int) -> jax.Array:
    """[2 P, size]: a line of pixels, reflected to its period P, at twice its length."""
    period = max(2 * (size - 1), 1)
    matrix = np.zeros((2 * period, size))
    for k in range(period):
        for i, tap in enumerate(SYM6):
            matrix[(2 * k + i) % (2 * period), min(k, period - k) % size] += math.sqrt(2) * tap
    return jnp.asarray(matrix, jnp.float32)


def _reducing(size: int) -> jax.Array:
    """[size, 2 size + 10]: the line of pixels that `_enlarging` has enlarged."""
    matrix = np.zeros((size, 2 * size + len(SYM6) - 2))
    for k in range(size):
        matrix[k, 2 * k : 2 * k + len(SYM6)] = SYM6 / math.sqrt(2)
    return jnp.asarray(matrix, jnp.float32)
