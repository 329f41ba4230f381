"""The distance between images in the maps of a classifier, as a term of an autoencoder's loss.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", 2018
(arXiv:1801.03924), LPIPS.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.networks import classifiers, torch_file, vgg

# Where the weights of a network lie in $AIGC_WEIGHTS.
FILES = {"vgg16": "vgg16-397923af.pth", "resnet56": "cifar10_resnet56.npz"}


def distance(
    ours: Sequence[jax.Array], theirs: Sequence[jax.Array], channels: Sequence[np.ndarray]
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


def term(
    image_shape: tuple[int, int, int], *, network: str, weights: str | None, weight: float
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """(images, others [B, H, W, C] in [-1, 1]) -> `weight` x H W C x their distance, nats [B].

    Args:
      image_shape: (H, W, C); grey images are repeated to RGB.
      network: "vgg16", or "resnet56" (of CIFAR-10).
      weights: its file; None looks for the usual name in $AIGC_WEIGHTS. It is read when the term is
        first used: a trained model samples without it.

    Raises:
      ValueError: an unknown network, or a weight that is not above 0. When used: FileNotFoundError,
        and ValueError for weights of another network.
    """
    if network not in FILES:
        raise ValueError(f"vae.feature_network is one of {', '.join(FILES)}, not {network!r}")
    if weight <= 0:
        raise ValueError(f"vae.feature_weight must be above 0, not {weight}")
    nats = weight * float(np.prod(image_shape))

    def cost(x: jax.Array, other: jax.Array) -> jax.Array:
        maps, channels = _open(network, weights)

        def seen(images: jax.Array) -> list[jax.Array]:
            images = jnp.broadcast_to(images, (*images.shape[:3], 3))
            return maps((images + 1) * 127.5)

        return nats * distance(seen(x), seen(other), channels)

    return cost


@functools.cache
def _open(network: str, weights: str | None) -> tuple[Callable, Sequence[np.ndarray]]:
    """Images of bytes -> maps, and the weight of each map's channels."""
    path = torch_file.locate(
        weights,
        FILES[network],
        what=f"weights of feature network {network!r}",
        setting="vae.feature_weights (or train without: vae.feature_network='')",
    )
    tensors = torch_file.read(path)
    if network == "vgg16":
        variables, channels = vgg.vgg16_from(tensors)
        return functools.partial(vgg.VGG16().apply, variables), channels
    variables = classifiers.resnet56_from(tensors)

    def maps(images: jax.Array) -> list[jax.Array]:
        _, kept = classifiers.ResNet56().apply(variables, images, mutable=["intermediates"])
        return [kept["intermediates"][f"stage{i}"][0] for i in (1, 2, 3)]

    return maps, [np.ones(width, np.float32) for width in (16, 32, 64)]


def _unit(x: jax.Array) -> jax.Array:
    # Inside the root: where a place is zero in every channel, the gradient must be finite.
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-10)
