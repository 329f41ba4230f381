"""What a denoising network is trained to minimise, per example, and which noise it is shown."""

import jax
import jax.numpy as jnp
import optax

from aigc_jax.diffusion.precondition import Prediction
from aigc_jax.diffusion.process import Level


def denoising(
    prediction: Prediction,
    output: jax.Array,
    x0: jax.Array,
    eps: jax.Array,
    level: Level,
    weight: jax.Array,
) -> jax.Array:
    """Weighted squared error of a network's output for x_t, [B], mean over an example's values.

    Ho et al. 2020 (arXiv:2006.11239), eq. 14, where eps is predicted and every weight is 1; flow
    matching (Lipman et al. 2023, arXiv:2210.02747), where the velocity is.

    Args:
      prediction: what `output` predicts.
      output, x0, eps: the network's output, the clean examples and the noise in x_t, [B, ...].
      level, weight: of each example's time, [B].
    """
    target = prediction.target_of(x0, eps, level)
    return weight * jnp.mean((output - target) ** 2, axis=tuple(range(1, output.ndim)))


def independent(x0: jax.Array, eps: jax.Array) -> jax.Array:
    """Each example keeps the noise drawn for it."""
    return eps


def optimal_transport(x0: jax.Array, eps: jax.Array) -> jax.Array:
    """The noise [B, ...] in the order in which the batch's squared distances to x0 sum to least.

    Minibatch optimal transport (Pooladian et al. 2023, arXiv:2304.14772; Tong et al. 2024,
    arXiv:2302.00482). Costs time in B^3.
    """
    rows, columns = x0.reshape(len(x0), -1), eps.reshape(len(eps), -1)
    # The squares do not depend on the pairing.
    cost = -jnp.matmul(rows, columns.T, precision="highest")
    i, j = optax.assignment.hungarian_algorithm(cost)
    return eps[jnp.zeros(len(x0), jnp.int32).at[i].set(j)]


# {config.diffusion.pairing: (examples, noise [B, ...]) -> noise, reordered}
PAIRINGS = {"independent": independent, "optimal_transport": optimal_transport}
