"""The distance between images in the maps of a classifier, as a term of an autoencoder's loss.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", 2018
(arXiv:1801.03924), LPIPS.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.checks import OneOf, Positive, one_of
from aigc_jax.formats import lpips as lpips_files
from aigc_jax.formats import torch_file
from aigc_jax.networks.judges import classifiers, lpips

NETWORKS = ("vgg16", "resnet56")
RESNET_FILE = "cifar10_resnet56.npz"  # the usual name of its weights in $AIGC_WEIGHTS
RESNET_WIDTHS = (16, 32, 64)  # channels of the maps of ResNet-56


@dataclass(frozen=True)
class Perceptual:
    """(variables, x, other [B, H, W, C] in [-1, 1]) -> `weight` x H W C x their distance, nats [B].

    Attributes:
      shape: (H, W, C) of the images; grey ones are repeated to RGB.
      network: "vgg16", or "resnet56" (of CIFAR-10).
      weights: its file; None looks for the usual names, of "vgg16" as `formats.lpips.read` does.
      weight: nats for each value of an image.
    """

    shape: tuple[int, int, int]
    network: Annotated[str, OneOf(("", *NETWORKS))]
    weights: str | None = None
    weight: Positive = 1.0

    def __post_init__(self) -> None:
        one_of("vae.perceptual.network", self.network, NETWORKS)

    def variables(self) -> dict[str, Any]:
        """{"network": variables, "channels": [C] of each map}, read from the file of weights.

        The channels count as in LPIPS where the file has its weights of them, else alike. Only
        training needs them: a trained model samples without the file.

        Raises:
          FileNotFoundError: no such file. ValueError: weights of another network.
        """
        where = {
            "what": f"weights of the perceptual network {self.network!r}",
            "setting": "vae.perceptual.weights (or train without: vae.perceptual.network='')",
        }
        if self.network == "vgg16":
            variables, channels = lpips_files.read("vgg16", self.weights, **where)
            widths = lpips.TRUNKS["vgg16"].widths
        else:
            path = torch_file.locate(self.weights, RESNET_FILE, **where)
            variables = classifiers.resnet56_from(torch_file.read(path))
            channels, widths = None, RESNET_WIDTHS
        alike = [np.ones(width, np.float32) for width in widths]
        return {"network": variables, "channels": channels or alike}

    def __call__(self, variables: Mapping[str, Any], x: jax.Array, other: jax.Array) -> jax.Array:
        ours, theirs = (self._maps(variables["network"], images) for images in (x, other))
        apart = lpips.distance(ours, theirs, variables["channels"])
        return self.weight * math.prod(self.shape) * apart

    def _maps(self, variables: Mapping[str, Any], images: jax.Array) -> list[jax.Array]:
        images = (images + 1) * 127.5
        if self.network == "vgg16":
            return lpips.maps("vgg16", variables, images)
        images = jnp.broadcast_to(images, (*images.shape[:3], 3))
        _, kept = classifiers.ResNet56().apply(variables, images, mutable=["intermediates"])
        return [kept["intermediates"][f"stage{i}"][0] for i in (1, 2, 3)]
