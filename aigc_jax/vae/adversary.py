"""A second player beside an autoencoder: it tells images from reconstructions.

Esser et al., "Taming Transformers for High-Resolution Image Synthesis", 2021 (arXiv:2012.09841),
section 3.1, as Rombach et al. 2022 (arXiv:2112.10752) train their autoencoders.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from aigc_jax.checks import NonNegative, Whole
from aigc_jax.networks.gan.cyclegan import Discriminator

MAX_WEIGHT = 1e4


class Adversary(NamedTuple):
    """A player that autoencoders are trained against.

    Attributes:
      player: name of the player.
      init: key -> its parameters.
      discriminator_loss: (its parameters, x, reconstructions [B, ...]) -> what it minimises, [B].
      generator_loss: (its parameters, reconstructions) -> what it costs the autoencoder, [B].
      weight: of that cost, times `balance`.
      start: step from which the two play; before, neither affects the other.
    """

    player: str
    init: Callable[[jax.Array], Any]
    discriminator_loss: Callable[[Any, jax.Array, jax.Array], jax.Array]
    generator_loss: Callable[[Any, jax.Array], jax.Array]
    weight: float
    start: int


def balance(
    distortion: Callable[[jax.Array], jax.Array],
    cost: Callable[[jax.Array], jax.Array],
    outputs: jax.Array,
) -> jax.Array:
    """A weight that makes the gradients of two losses [B] at the decoder's outputs equally long.

    |grad distortion| / |grad cost|, at most 1e4, a scalar without gradient. arXiv:2012.09841, eq.
    7, takes the gradients at the decoder's last layer, which are these times its input; here they
    cost no second pass through it.
    """

    def slope(of: Callable[[jax.Array], jax.Array]) -> jax.Array:
        return jnp.linalg.norm(jax.grad(lambda o: jnp.sum(of(o)))(outputs).reshape(-1))

    outputs = jax.lax.stop_gradient(outputs)
    ratio = slope(distortion) / jnp.maximum(slope(cost), 1e-8)
    return jax.lax.stop_gradient(jnp.clip(ratio, 0.0, MAX_WEIGHT))


def patch(
    shape: tuple[int, int, int], *, weight: NonNegative, start: Whole, width: int = 64
) -> Adversary:
    """The adversary of latent diffusion's autoencoders: logits of patches, with the hinge loss.

    A PatchGAN (Isola et al. 2017, arXiv:1611.07004) with instance norm where the authors' has batch
    norm, so that no image affects another's logits.

    Args:
      shape: (H, W, C) of the images.
      weight, start: see `Adversary`; 0.5 and 50,001 in CompVis/latent-diffusion.
      width: channels of its first layer.
    """
    network = Discriminator(image_shape=tuple(shape), width=width)

    def logits(params: Any, images: jax.Array) -> jax.Array:
        patches, _ = network.apply({"params": params}, images)
        return patches.reshape(len(patches), -1)

    def init(key: jax.Array) -> Any:
        return dict(network.init(key, jnp.zeros((1, *shape)))["params"])

    def discriminator_loss(params: Any, real: jax.Array, fake: jax.Array) -> jax.Array:
        margins = jax.nn.relu(1 - logits(params, real)) + jax.nn.relu(1 + logits(params, fake))
        return 0.5 * jnp.mean(margins, axis=1)

    def generator_loss(params: Any, fake: jax.Array) -> jax.Array:
        return -jnp.mean(logits(params, fake), axis=1)

    return Adversary("discriminator", init, discriminator_loss, generator_loss, weight, start)
