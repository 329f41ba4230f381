"""VGG-16 as a source of maps that distances between images are taken in.

Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2014
(arXiv:1409.1556), configuration D.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.errors import SettingError
from aigc_jax.networks.judges.classifiers import MEAN, STD

WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
SIZE_MIN = 16  # four halvings leave a pixel


class VGG16(nn.Module):
    """The last map of each of the five resolutions, rectified.

    x: float32 [B, H, W, 3] of bytes 0..255, H and W at least 16, to five maps
    [B, H / 2^i, W / 2^i, 64..512]. Its modules are named as in torchvision.

    Attributes:
      precision: of the products: "highest" where values are compared with those of other devices,
        None where a network is trained by them, and faster ones do.
    """

    precision: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        if min(x.shape[1:3]) < SIZE_MIN:
            raise SettingError(
                f"VGG-16 takes images from {SIZE_MIN}x{SIZE_MIN}, not {x.shape[1:3]}"
            )
        mean, std = (jnp.asarray(a, jnp.float32).reshape(1, 1, 1, 3) for a in (MEAN, STD))
        x, maps, number = (x.astype(jnp.float32) / 255 - mean) / std, [], 0
        for widths in WIDTHS:
            if maps:
                x, number = nn.max_pool(x, (2, 2), (2, 2)), number + 1
            for width in widths:
                name = f"features.{number}"
                layer = nn.Conv(width, (3, 3), padding="VALID", precision=self.precision, name=name)
                x = nn.relu(layer(_padded(x)))
                number += 2  # torchvision counts the rectifiers
            maps.append(x)
        return maps


def _padded(x: jax.Array) -> jax.Array:
    """Maps [B, h, w, C] with a border of zeros."""
    border = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    if min(x.shape[1:3]) >= 3:
        return border
    # XLA would make the border part of the convolution, which on a CPU is fifty times slower where
    # the kernel is larger than the map: the last three of images of 32x32.
    return jax.lax.optimization_barrier(border)
