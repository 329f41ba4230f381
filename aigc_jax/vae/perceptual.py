"""The distance between images in the maps of a classifier, as a term of an autoencoder's loss.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", 2018
(arXiv:1801.03924), LPIPS.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.checks import OneOf, Positive, one_of
from aigc_jax.formats import torch_file
from aigc_jax.networks.judges import classifiers, vgg

# The usual name of a network's weights in $AIGC_WEIGHTS.
FILES = {"vgg16": "vgg16-397923af.pth", "resnet56": "cifar10_resnet56.npz"}
RESNET_WIDTHS = (16, 32, 64)  # channels of the maps of ResNet-56


def distance(
    ours: Sequence[jax.Array], theirs: Sequence[jax.Array], channels: Sequence[jax.Array]
) -> jax.Array:
    """LPIPS of two images' maps [B, h, w, C], [B] (arXiv:1801.03924, eq. 1).

    The vectors at each place of each map are scaled to length 1; their squared differences are
    summed with weights `channels` [C], averaged over the places and summed over the maps.
    """
    total = jnp.zeros(len(ours[0]))
    for a, b, weight in zip(ours, theirs, channels, strict=True):
        apart = jnp.square(_unit(a) - _unit(b)) * jnp.asarray(weight).reshape(1, 1, 1, -1)
        total += jnp.mean(jnp.sum(apart, axis=-1), axis=(1, 2))
    return total


@dataclass(frozen=True)
class Perceptual:
    """(variables, x, other [B, H, W, C] in [-1, 1]) -> `weight` x H W C x their distance, nats [B].

    Attributes:
      shape: (H, W, C) of the images; grey ones are repeated to RGB.
      network: "vgg16", or "resnet56" (of CIFAR-10).
      weights: its file; None looks for the usual name in $AIGC_WEIGHTS.
      weight: nats for each value of an image.
    """

    shape: tuple[int, int, int]
    network: Annotated[str, OneOf(("", *FILES))]
    weights: str | None = None
    weight: Positive = 1.0

    def __post_init__(self) -> None:
        one_of("vae.perceptual.network", self.network, FILES)

    def variables(self) -> dict[str, Any]:
        """{"network": variables, "channels": [C] of each map}, read from the file of weights.

        Only training needs them: a trained model samples without the file.

        Raises:
          FileNotFoundError: no such file. ValueError: weights of another network.
        """
        path = torch_file.locate(
            self.weights,
            FILES[self.network],
            what=f"weights of the perceptual network {self.network!r}",
            setting="vae.perceptual.weights (or train without: vae.perceptual.network='')",
        )
        tensors = torch_file.read(path)
        if self.network == "vgg16":
            variables, channels = vgg.vgg16_from(tensors)
        else:
            variables = classifiers.resnet56_from(tensors)
            channels = [np.ones(width, np.float32) for width in RESNET_WIDTHS]
        return {"network": variables, "channels": channels}

    def __call__(self, variables: Mapping[str, Any], x: jax.Array, other: jax.Array) -> jax.Array:
        ours, theirs = (self._maps(variables["network"], images) for images in (x, other))
        return self.weight * math.prod(self.shape) * distance(ours, theirs, variables["channels"])

    def _maps(self, variables: Mapping[str, Any], images: jax.Array) -> list[jax.Array]:
        images = (jnp.broadcast_to(images, (*images.shape[:3], 3)) + 1) * 127.5
        if self.network == "vgg16":
            return vgg.VGG16().apply(variables, images)
        _, kept = classifiers.ResNet56().apply(variables, images, mutable=["intermediates"])
        return [kept["intermediates"][f"stage{i}"][0] for i in (1, 2, 3)]


def _unit(x: jax.Array) -> jax.Array:
    # Inside the root: where a place is zero in every channel, the gradient must be finite.
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-10)
