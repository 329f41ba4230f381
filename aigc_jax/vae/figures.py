"""Figures of how codes and samples go together."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

COLUMNS, ROWS, SIDE = 10, 10, 15  # of the figures, and of the plane of two-dimensional codes


def of_codes(decode: Callable[[jax.Array], jax.Array], z: jax.Array) -> dict[str, jax.Array]:
    """What each number of a code does; all codes, where they have two numbers.

    In a traversal row j shows what the number that changes the sample j-th most does from -3 to 3,
    the rest staying as they are.

    Args:
      decode: codes [n, *shape] -> samples [n, ...].
      z: [*shape], drawn from the prior.

    Returns:
      {caption: samples [rows, columns, ...]}; {} of codes that are maps.
    """
    figures, shape = {}, z.shape

    def decoded(codes: jax.Array) -> jax.Array:
        """Samples [rows, columns, ...] of codes [rows, columns, *shape]."""
        samples = decode(codes.reshape(-1, *shape))
        return samples.reshape(*codes.shape[:2], *samples.shape[1:])

    if len(shape) == 1:
        numbers = jnp.arange(shape[0])
        changed = jnp.tile(z, (shape[0], COLUMNS, 1))
        changed = changed.at[numbers, :, numbers].set(jnp.linspace(-3.0, 3.0, COLUMNS)[None])
        samples = decoded(changed)
        effect = jnp.abs(samples[:, -1] - samples[:, 0]).sum(tuple(range(1, samples.ndim - 1)))
        figures["Traversals: one number of a code from -3 to 3, the most visible first"] = samples[
            jnp.argsort(-effect)[:ROWS]
        ]
    if shape == (2,):
        at = jax.scipy.stats.norm.ppf((jnp.arange(SIDE) + 0.5) / SIDE)
        plane = jnp.stack(jnp.meshgrid(at, -at), axis=-1)
        figures["Manifold: the whole plane of codes, by quantiles of the prior"] = decoded(plane)
    return figures
