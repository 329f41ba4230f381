"""The distance between two normal distributions, which several families compute."""

import jax
import jax.numpy as jnp


def normal_kl(
    mean1: jax.Array,
    logvar1: jax.Array,
    mean2: jax.Array | float = 0.0,
    logvar2: jax.Array | float = 0.0,
) -> jax.Array:
    """KL(N(mean1, e^logvar1) || N(mean2, e^logvar2)) of each element, nats.

    The second distribution is N(0, 1) where it is not given, as in Kingma & Welling 2014
    (arXiv:1312.6114), appendix B.
    """
    # expm1(d) - d keeps the digits that two nearly equal variances leave.
    d = logvar1 - logvar2
    return 0.5 * ((mean1 - mean2) ** 2 * jnp.exp(-logvar2) + jnp.expm1(d) - d)
