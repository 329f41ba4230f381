"""Images: uint8 [N, H, W, C] as stored, float32 [N, H, W, C] in [-1, 1] in the model."""

import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from aigc_jax import files
from aigc_jax.modalities.augment import augment
from aigc_jax.modalities.base import Modality


def to_float(x: Any) -> Any:
    """uint8 0..255 -> float32 [-1, 1], of NumPy or JAX; floats are in that range already."""
    if x.dtype != np.uint8:
        return x
    return x.astype(np.float32) / 127.5 - 1.0


def to_uint8(images: np.ndarray) -> np.ndarray:
    """[-1, 1] floats -> uint8, clipped and rounded to nearest."""
    return np.round(np.clip((np.asarray(images, np.float32) + 1) * 127.5, 0, 255)).astype(np.uint8)


def clip(images: jax.Array) -> jax.Array:
    """Limits values to [-1, 1]."""
    return jnp.clip(images, -1.0, 1.0)


def to_pil(pixels: np.ndarray) -> Image.Image:
    """One image, uint8 [H, W, C] with C 1 (greyscale) or 3, as Pillow has it."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def grid(images: np.ndarray, columns: int = 0, enlarge_to: int = 64) -> Image.Image:
    """Images [n, H, W, C] in [-1, 1], row by row, as one picture with a thin margin.

    Args:
      images: C is 1 (greyscale) or 3.
      columns: images a row; 0 makes the grid about square.
      enlarge_to: images smaller than this are enlarged by a whole factor, smoothly: people read an
        8x8 digit by its strokes, not by its pixels.
    """
    n, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    factor = max(1, enlarge_to // max(height, width))
    height, width, gap = height * factor, width * factor, 2
    size = (columns * (width + gap) + gap, rows * (height + gap) + gap)
    sheet = Image.new("L" if channels == 1 else "RGB", size, 128 if channels == 1 else (128,) * 3)
    for i, pixels in enumerate(to_uint8(images)):
        place = (gap + i % columns * (width + gap), gap + i // columns * (height + gap))
        sheet.paste(to_pil(pixels).resize((width, height), Image.Resampling.BICUBIC), place)
    return sheet


def grid_columns(count: int, classes: int) -> int:
    """Columns of a grid: one a class where that makes at least two rows, else about square."""
    return classes if 2 <= classes <= 20 and count >= 2 * classes else 0


def picture(
    samples: np.ndarray, *, real: np.ndarray | None = None, columns: int = 0
) -> Image.Image:
    """A `grid` of the samples; `real` images are not shown in it."""
    del real
    return grid(samples, columns)


def save_image(image: Image.Image, path: pathlib.Path) -> None:
    """Writes a picture whole or not at all, in the format that its suffix names.

    Raises:
      OSError: it could not be written; the message names the file.
    """
    with files.replacing(path) as partial:
        image.save(partial, format=path.suffix.lstrip(".").upper())


def save(images: np.ndarray, folder: pathlib.Path) -> None:
    """Writes images, uint8 [n, H, W, C], as 000000.png and so on."""
    for i, pixels in enumerate(images):
        save_image(to_pil(pixels), folder / f"{i:06d}.png")


IMAGE = Modality(
    kind="image",
    bounded=True,
    judged_in_features=True,
    to_model=to_float,
    to_stored=to_uint8,
    clip=clip,
    augment=augment,
    picture=picture,
    save=save,
)
