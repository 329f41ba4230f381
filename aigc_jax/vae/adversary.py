"""A second player beside an autoencoder: it tells images from reconstructions.

Esser et al., "Taming Transformers for High-Resolution Image Synthesis", 2021 (arXiv:2012.09841),
section 3.1, as Rombach et al. 2022 (arXiv:2112.10752) train their autoencoders.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from aigc_jax.networks.cyclegan import Discriminator

MAX_WEIGHT = 1e4


class Opponent(NamedTuple):
    """Who judges reconstructions.

    Attributes:
      player: name of the player.
      init: key -> its parameters.
      loss: (its parameters, images, reconstructions [B, H, W, C]) -> what it minimises, [B].
      term: (its parameters, reconstructions) -> what it makes the autoencoder pay, [B].
      weight: of that term, times `balance`.
      start: step from which the two play; before, neither sees the other.
    """

    player: str
    init: Callable[[jax.Array], Any]
    loss: Callable[[Any, jax.Array, jax.Array], jax.Array]
    term: Callable[[Any, jax.Array], jax.Array]
    weight: float
    start: int


def balance(
    distortion: Callable[[jax.Array], jax.Array],
    term: Callable[[jax.Array], jax.Array],
    outputs: jax.Array,
) -> jax.Array:
    """A weight by which two losses [B] pull at the decoder's outputs equally hard, scalar.

    |grad distortion| / |grad term|, at most 1e4, itself without gradient. arXiv:2012.09841, eq. 7,
    takes the gradients at the decoder's last layer, which are these times its input; here they cost
    no second pass through it.
    """

    def pull(of: Callable[[jax.Array], jax.Array]) -> jax.Array:
        return jnp.linalg.norm(jax.grad(lambda o: jnp.sum(of(o)))(outputs).reshape(-1))

    outputs = jax.lax.stop_gradient(outputs)
    ratio = pull(distortion) / jnp.maximum(pull(term), 1e-8)
    return jax.lax.stop_gradient(jnp.clip(ratio, 0.0, MAX_WEIGHT))


def patch(
    image_shape: tuple[int, int, int], *, weight: float, start: int, width: int = 64
) -> Opponent:
    """The opponent of latent diffusion's autoencoders: patches, judged by the hinge loss.

    A PatchGAN (Isola et al. 2017, arXiv:1611.07004) with instance norm where the authors' has batch
    norm, so that an image is judged alone.

    Args:
      image_shape: (H, W, C).
      weight, start: see `Opponent`; 0.5 and 50,001 in CompVis/latent-diffusion.
      width: channels of its first layer.
    """
    if weight <= 0 or start < 0:
        raise ValueError("vae.adversary_weight is above 0 and vae.adversary_start at least 0")
    discriminator = Discriminator(image_shape=image_shape, width=width)

    def judged(params: Any, images: jax.Array) -> jax.Array:
        logits, _ = discriminator.apply({"params": params}, images)
        return logits.reshape(len(logits), -1)

    def init(key: jax.Array) -> Any:
        return dict(discriminator.init(key, jnp.zeros((1, *image_shape)))["params"])

    def loss(params: Any, real: jax.Array, fake: jax.Array) -> jax.Array:
        margins = jax.nn.relu(1 - judged(params, real)) + jax.nn.relu(1 + judged(params, fake))
        return 0.5 * jnp.mean(margins, axis=1)

    return Opponent(
        "discriminator",
        init,
        loss,
        lambda params, fake: -jnp.mean(judged(params, fake), axis=1),
        weight,
        start,
    )
