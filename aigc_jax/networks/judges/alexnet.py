"""AlexNet as a source of maps that distances between images are taken in.

Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014
(arXiv:1404.5997), as torchvision has it.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.errors import SettingError
from aigc_jax.networks.judges.classifiers import MEAN, STD

# (torchvision's number, channels, side of the kernel, whether a pool comes before) of each.
LAYERS = (
    (0, 64, 11, False),
    (3, 192, 5, True),
    (6, 384, 3, True),
    (8, 256, 3, False),
    (10, 256, 3, False),
)
SIZE_MIN = 31  # a stride of four and two pools leave a pixel


class AlexNet(nn.Module):
    """The map of each of the five convolutions, rectified.

    x: float32 [B, H, W, 3] of bytes 0..255, H and W at least 31, to maps [B, h, w, 64..384], of
    56x56 to 13x13 for 227x227. Its modules are named as in torchvision.

    Attributes:
      precision: as for `vgg.VGG16`.
    """

    precision: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        if min(x.shape[1:3]) < SIZE_MIN:
            raise SettingError(
                f"AlexNet takes images from {SIZE_MIN}x{SIZE_MIN}, not {x.shape[1:3]}"
            )
        mean, std = (jnp.asarray(a, jnp.float32).reshape(1, 1, 1, 3) for a in (MEAN, STD))
        x, maps = (x.astype(jnp.float32) / 255 - mean) / std, []
        for number, width, side, pooled in LAYERS:
            x = nn.max_pool(x, (3, 3), (2, 2)) if pooled else x
            stride, padding = (1, side // 2) if maps else (4, 2)
            layer = nn.Conv(
                width,
                (side, side),
                stride,
                padding,
                precision=self.precision,
                name=f"features.{number}",
            )
            x = nn.relu(layer(x))
            maps.append(x)
        return maps
