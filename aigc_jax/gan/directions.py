"""Ways through a generator's latent space."""

import jax
import jax.numpy as jnp

from aigc_jax.errors import SettingError


def sefa(kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Latent directions that change the first layer most, and by how much.

    Shen & Zhou 2021 (arXiv:2007.06600), sec. 3: with y = A z + b, the unit n that make |A n|^2
    stationary are the eigenvectors of A^T A.

    Args:
      kernel: A^T [latent, features], as a dense layer on z has it; of a transposed convolution, its
        kernel with the latent axis moved first and the others flattened.

    Returns:
      Directions [latent, latent], a unit row each, and eigenvalues |A n|^2 [latent], largest first.
      A direction's largest component is positive: an eigenvector's sign is arbitrary.
    """
    gram = jnp.matmul(kernel, kernel.T, precision="highest")
    values, vectors = jnp.linalg.eigh(gram)
    rows = vectors.T[::-1]
    largest = jnp.argmax(jnp.abs(rows), axis=1)[:, None]
    return rows * jnp.sign(jnp.take_along_axis(rows, largest, axis=1)), values[::-1]


def slerp(a: jax.Array, b: jax.Array, t: float | jax.Array) -> jax.Array:
    """From a at t = 0 to b at t = 1 along the great circle between them (Shoemake 1985).

    Where |a| = |b| that is the length all the way: a straight line between two draws of a normal
    prior passes through lengths that the prior never has (White 2016, arXiv:1609.04468). Between
    (anti)parallel vectors, where there is no one circle, it is the straight line.

    Args:
      a, b: [..., d].
      t: a scalar or [..., 1]; the three are broadcast.
    """
    t = jnp.asarray(t, a.dtype)
    if t.ndim and t.shape[-1] != 1:
        raise SettingError(f"t is a scalar or [..., 1], not {t.shape}")
    shape = jnp.broadcast_shapes(a.shape, b.shape, t.shape)
    a, b = jnp.broadcast_to(a, shape), jnp.broadcast_to(b, shape)
    t = jnp.broadcast_to(t, (*shape[:-1], 1))
    # Kahan's angle: a small one loses no digits, and no rounding takes it out of arccos's domain.
    u, v = _unit(a), _unit(b)
    angle = 2.0 * jnp.arctan2(_norm(u - v), _norm(u + v))
    sine = jnp.sin(angle)
    straight = sine < 1e-3  # nearer pi than that, rounding decides which way round it goes
    sine = jnp.where(straight, 1.0, sine)
    of_a = jnp.where(straight, 1.0 - t, jnp.sin((1.0 - t) * angle) / sine)
    of_b = jnp.where(straight, t, jnp.sin(t * angle) / sine)
    return of_a * a + of_b * b


def _norm(x: jax.Array) -> jax.Array:
    return jnp.linalg.norm(x, axis=-1, keepdims=True)


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(_norm(x), jnp.finfo(x.dtype).tiny)
