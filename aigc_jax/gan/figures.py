"""Figures of a generator's latent space."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from aigc_jax.gan.directions import sefa

COLUMNS, ROWS, REACH = 10, 8, 3.0


def of_latents(
    decode: Callable[[jax.Array], jax.Array], z: jax.Array, kernel: jax.Array
) -> dict[str, jax.Array]:
    """Ways along the directions that change the first layer most.

    Args:
      decode: latents [n, d] -> images [n, H, W, C].
      z: [d], drawn from the prior.
      kernel: [d, features] of the layer that z goes into; see `directions.sefa`.

    Returns:
      {caption: images [rows, columns, H, W, C]}.
    """
    directions = sefa(kernel)[0][:ROWS]
    steps = jnp.linspace(-REACH, REACH, COLUMNS).reshape(1, -1, 1)
    along = z[None, None] + steps * directions[:, None]
    images = decode(along.reshape(-1, len(z)))
    caption = "Directions: one sample moved by -3 to 3 along the first layer's, strongest first"
    return {caption: images.reshape(*along.shape[:2], *images.shape[1:])}
