"""What a denoising network is trained to minimise, per example."""

import jax
import jax.numpy as jnp

from aigc_jax.diffusion import precondition


def denoising(
    prediction: str,
    output: jax.Array,
    x0: jax.Array,
    eps: jax.Array,
    alpha: jax.Array,
    sigma: jax.Array,
    weight: jax.Array,
) -> jax.Array:
    """Weighted squared error of a network's output for x_t, [B], mean over an example's values.

    Ho et al. 2020 (arXiv:2006.11239), eq. 14, where eps is predicted and every weight is 1.

    Args:
      prediction: what `output` predicts, a name of `precondition.PREDICTIONS`.
      output, x0, eps: the network's output, the clean examples and the noise in x_t, [B, ...].
      alpha, sigma, weight: of each example's time, [B].
    """
    target = precondition.target(prediction, x0, eps, alpha, sigma)
    return weight * jnp.mean((output - target) ** 2, axis=tuple(range(1, output.ndim)))
