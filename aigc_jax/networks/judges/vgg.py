"""VGG-16 as a source of maps that distances between images are taken in.

Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2014
(arXiv:1409.1556), configuration D.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.errors import SettingError
from aigc_jax.networks import torch_names
from aigc_jax.networks.judges.classifiers import MEAN, STD

WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
SIZE_MIN = 16  # four halvings leave a pixel


class VGG16(nn.Module):
    """The last map of each of the five resolutions, rectified.

    x: float32 [B, H, W, 3] of bytes 0..255, H and W at least 16, to five maps
    [B, H / 2^i, W / 2^i, 64..512]. Its modules are named as in torchvision.
    """

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
                x = nn.relu(nn.Conv(width, (3, 3), name=f"features.{number}")(x))
                number += 2  # torchvision counts the rectifiers
            maps.append(x)
        return maps


def vgg16_from(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The variables of VGG16 and, for each of its maps, a weight of every channel [C].

    From the state dict of torchvision's `vgg16`, whose channels then count alike, or of
    `lpips.LPIPS(net="vgg")`, which brings weights (Zhang et al. 2018, arXiv:1801.03924).
    ValueError that names the first tensors which are missing, unexpected or of another shape.
    """
    renamed, channels = {}, [np.ones(widths[-1], np.float32) for widths in WIDTHS]
    for name, value in tensors.items():
        parts = name.split(".")
        if parts[0] == "net" and len(parts) == 4:  # net.slice2.5.weight
            renamed[".".join(["features", *parts[2:]])] = value
        elif parts[0].startswith("lin") and parts[0][3:].isdigit():  # lin0.model.1.weight
            channels[int(parts[0][3:])] = np.asarray(value, np.float32).reshape(-1)
        elif parts[0] not in ("classifier", "scaling_layer", "lins"):
            renamed[name] = value
    variables = torch_names.fit(VGG16().init, (1, 16, 16, 3), renamed, what="VGG-16")
    return variables, channels
