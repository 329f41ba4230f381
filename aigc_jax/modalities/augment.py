"""Augmentation of images: pure functions of (key, images [B, H, W, C] in [-1, 1]), jit or not.

Each draws its randomness per example from one key, as arrays of shape [B]: how the batch is laid
out over devices changes nothing.
"""

from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp

from aigc_jax.checks import NonNegative, Range, Whole
from aigc_jax.errors import SettingError


def enlarge_crop(key: jax.Array, x: jax.Array, pixels: int) -> jax.Array:
    """Enlarges each image by `pixels` on either axis and cuts a random window of its size."""
    if pixels == 0:
        return x
    batch, height, width, channels = x.shape
    size = (batch, height + pixels, width + pixels, channels)
    x = jax.image.resize(x, size, "cubic", antialias=False)
    starts = jax.random.randint(key, (batch, 2), 0, pixels + 1)

    def one(image: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (*start, 0), (height, width, channels))

    return jnp.clip(jax.vmap(one)(x, starts), -1.0, 1.0)  # cubics overshoot


def shift_crop(key: jax.Array, x: jax.Array, pixels: int) -> jax.Array:
    """Moves each image by up to `pixels` whole pixels either way; the border is its reflection."""
    if pixels == 0:
        return x
    offsets = jax.random.randint(key, (x.shape[0], 2), -pixels, pixels + 1)
    return translate(x, offsets, pixels)


def augment(
    key: jax.Array,
    x: jax.Array,
    *,
    flip: bool = False,
    shift: Whole = 0,
    jitter: Whole = 0,
    rotation: Annotated[float, Range(0, 180)] = 0.0,
    scale: NonNegative = 0.0,
) -> jax.Array:
    """What a config chooses, each 0 or False for none; rotation and zoom share one resampling.

    `shift` is in pixels, as is `jitter`, what `enlarge_crop` adds; `rotation` is in degrees,
    `scale` the largest zoom less one. What one of them draws does not depend on which others are
    on. ValueError for a shift by the whole image.
    """
    side = min(x.shape[1:3])
    if shift >= side:
        raise SettingError(f"config.augment.shift is below {side}, the images' side, not {shift}")
    flip_key, shift_key, rotation_key, scale_key = jax.random.split(key, 4)
    if flip:
        x = mirror(x, jax.random.bernoulli(flip_key, 0.5, (x.shape[0],)))
    x = shift_crop(shift_key, x, shift)
    x = enlarge_crop(jax.random.fold_in(shift_key, 1), x, jitter)
    if rotation or scale:
        angles = _angles(rotation_key, x.shape[0], rotation)
        x = affine(x, angles, _zooms(scale_key, x.shape[0], scale))
    return x


def mirror(x: jax.Array, which: jax.Array) -> jax.Array:
    """Mirrors left to right the images where the boolean `which` [B] is true."""
    return jnp.where(which[:, None, None, None], x[:, :, ::-1, :], x)


def translate(x: jax.Array, offsets: jax.Array, margin: int) -> jax.Array:
    """Reads each image `offsets` int [B, 2] pixels down and right of its place.

    The border is reflected: `margin` bounds the offsets and is less than both sides of the image.
    """
    padded = jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)), mode="reflect")

    def one(image: jax.Array, offset: jax.Array) -> jax.Array:
        start = (margin + offset[0], margin + offset[1], 0)
        return jax.lax.dynamic_slice(image, start, x.shape[1:])

    return jax.vmap(one)(padded, offsets)


def affine(x: jax.Array, angles: jax.Array, zooms: jax.Array) -> jax.Array:
    """Turns counterclockwise by `angles` [B] radians and magnifies by `zooms` [B] about the centre.

    Bilinear; what comes in from outside is the image reflected at its border.
    """
    height, width = x.shape[1:3]
    down = jnp.arange(height, dtype=jnp.float32) - (height - 1) / 2
    right = jnp.arange(width, dtype=jnp.float32) - (width - 1) / 2
    down, right = jnp.meshgrid(down, right, indexing="ij")

    def one(image: jax.Array, angle: jax.Array, zoom: jax.Array) -> jax.Array:
        cos, sin = jnp.cos(angle) / zoom, jnp.sin(angle) / zoom
        rows = cos * down + sin * right + (height - 1) / 2
        columns = cos * right - sin * down + (width - 1) / 2
        return bilinear(image, rows, columns)

    # A weighted mean can leave [-1, 1] by rounding alone.
    return jnp.clip(jax.vmap(one)(x, angles, zooms), -1.0, 1.0)


def _reflect(index: jax.Array, size: int) -> jax.Array:
    """..., 2, 1, 0, 1, 2, ..., size - 1, size - 2, ...: a mirror on the outermost pixel."""
    period = max(2 * (size - 1), 1)
    index = jnp.mod(index, period)
    return jnp.minimum(index, period - index) if size > 1 else jnp.zeros_like(index)


def bilinear(
    image: jax.Array,
    rows: jax.Array,
    columns: jax.Array,
    within: Callable[[jax.Array, int], jax.Array] = _reflect,
) -> jax.Array:
    """Samples [H, W, C] at fractional positions [H', W'], by default reflected at the border.

    within: (index, size) -> the index in [0, size) that stands for one beyond the border.
    """
    top, left = jnp.floor(rows), jnp.floor(columns)
    below, right = (rows - top)[..., None], (columns - left)[..., None]
    top, left = top.astype(jnp.int32), left.astype(jnp.int32)

    def at(row: jax.Array, column: jax.Array) -> jax.Array:
        return image[within(row, image.shape[0]), within(column, image.shape[1])]

    upper = (1 - right) * at(top, left) + right * at(top, left + 1)
    lower = (1 - right) * at(top + 1, left) + right * at(top + 1, left + 1)
    return (1 - below) * upper + below * lower


def _angles(key: jax.Array, batch: int, degrees: float) -> jax.Array:
    return jnp.deg2rad(jax.random.uniform(key, (batch,), minval=-degrees, maxval=degrees))


def _zooms(key: jax.Array, batch: int, amount: float) -> jax.Array:
    return jnp.power(1.0 + amount, jax.random.uniform(key, (batch,), minval=-1.0))
