"""Figures of a generator's latent space."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from aigc_jax.gan.directions import sefa

COLUMNS, ROWS, REACH = 10, 8, 3.0


def of_latents(
    decode: Callable[[jax.Array], jax.Array],
    z: jax.Array,
    kernel: jax.Array,
    between: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
) -> dict[str, jax.Array]:
    """Ways from sample to sample, and along the directions that change the first layer most.

    Args:
      decode: latents [n, d] -> images [n, H, W, C].
      z: [n, d], drawn from the prior.
      kernel: [d, features] of the layer that z goes into; see `directions.sefa`.
      between: (a, b, share) -> the latents a share of the way from a to b.

    Returns:
      {caption: images [rows, columns, H, W, C]}.
    """
    n, d = z.shape

    def decoded(latents: jax.Array) -> jax.Array:
        """Images of latents [rows, columns, d]."""
        images = decode(latents.reshape(-1, d))
        return images.reshape(*latents.shape[:2], *images.shape[1:])

    found: dict[str, jax.Array] = {}
    rows = min(n // 2, ROWS)
    if rows:
        shares = jnp.linspace(0.0, 1.0, COLUMNS).reshape(1, -1, 1)
        path = between(z[:rows, None], z[rows : 2 * rows, None], shares)
        found["Interpolations: latents on the way from one sample to another"] = decoded(path)
    directions, _ = sefa(kernel)
    steps = jnp.linspace(-REACH, REACH, COLUMNS).reshape(1, -1, 1)
    along = z[:1, None] + steps * directions[: min(ROWS, d), None]
    found["Directions: one sample moved by -3 to 3 along the first layer's, strongest first"] = (
        decoded(along)
    )
    return found
