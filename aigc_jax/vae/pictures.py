"""Pictures of how codes and images go together."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

COLUMNS, ROWS, SIDE = 10, 10, 15  # of the pictures, and of the plane of two-dimensional codes


def of_codes(decode: Callable[[jax.Array], jax.Array], z: jax.Array) -> dict[str, jax.Array]:
    """Paths between codes; what each number of a code does; all codes, where they have two numbers.

    In a traversal row j shows what the number that changes the image j-th most does from -3 to 3,
    the rest staying as in the first code.

    Args:
      decode: codes [n, *shape] -> images [n, H, W, C].
      z: [n, *shape], drawn from the prior.

    Returns:
      {caption: images [rows, columns, H, W, C]}.
    """
    n, shape = len(z), z.shape[1:]

    def decoded(codes: jax.Array) -> jax.Array:
        """Images of codes [rows, columns, *shape]."""
        images = decode(codes.reshape(-1, *shape))
        return images.reshape(*codes.shape[:2], *images.shape[1:])

    found, rows = {}, min(n // 2, 8)
    if rows:
        shares = jnp.linspace(0.0, 1.0, COLUMNS).reshape(1, -1, *(1 for _ in shape))
        path = z[:rows, None] * (1 - shares) + z[rows : 2 * rows, None] * shares
        found["Interpolations: codes on straight lines between two samples"] = decoded(path)
    if len(shape) == 1:
        numbers = jnp.arange(shape[0])
        moved = jnp.tile(z[0], (shape[0], COLUMNS, 1))
        moved = moved.at[numbers, :, numbers].set(jnp.linspace(-3.0, 3.0, COLUMNS)[None])
        images = decoded(moved)
        effect = jnp.abs(images[:, -1] - images[:, 0]).sum((1, 2, 3))
        found["Traversals: one number of a code from -3 to 3, the most visible first"] = images[
            jnp.argsort(-effect)[:ROWS]
        ]
    if shape == (2,):
        at = jax.scipy.stats.norm.ppf((jnp.arange(SIDE) + 0.5) / SIDE)
        plane = jnp.stack(jnp.meshgrid(at, -at), axis=-1)
        found["Manifold: the whole plane of codes, by quantiles of the prior"] = decoded(plane)
    return found
