"""Guidance: a network's prediction made to depend more on what is asked for.

Each is a function predict -> predict, so that they compose, where
predict: (x [n, ...], t [n], label int32 [n] or None) -> output [n, ...]. They act on what the
network puts out, before it becomes an estimate of x_0 and is clipped.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Predict = Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]


def classifier_free(predict: Predict, weight: float, none: int) -> Predict:
    """predict(none) + weight (predict(label) - predict(none)), by one call on a double batch.

    Ho & Salimans 2022 (arXiv:2207.12598), whose w is `weight` - 1. A weight of 0 ignores the label,
    1 is the conditional model, above 1 exaggerates the label. Where no label is asked for there is
    nothing to guide.

    Args:
      none: the number that stands for "no label".
    """

    def guided(x: jax.Array, t: jax.Array, label: jax.Array | None) -> jax.Array:
        if label is None:
            return predict(x, t, None)
        both = predict(
            jnp.concatenate([x, x]),
            jnp.concatenate([t, t]),
            jnp.concatenate([label, jnp.full((len(x),), none, label.dtype)]),
        )
        with_label, without = jnp.split(both, 2)
        return without + weight * (with_label - without)

    return predict if weight == 1.0 else guided
