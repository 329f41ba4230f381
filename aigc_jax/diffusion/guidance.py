"""Guidance: estimates of x_0 made to depend more on what is asked for.

Each is a function denoise -> denoise, so that they compose, where
denoise: (x [n, ...], level of [n], label int32 [n] or None) -> Estimate. They act on estimates that
are not clipped yet, where they are what they would be on the network's outputs, since an estimate
is affine in its output.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from aigc_jax.diffusion.process import Level
from aigc_jax.diffusion.solvers.base import Estimate

Denoise = Callable[[jax.Array, Level, jax.Array | None], Estimate]


def classifier_free(denoise: Denoise, weight: float, none: int) -> Denoise:
    """x_0(none) + weight (x_0(label) - x_0(none)), by one call on a double batch.

    Ho & Salimans 2022 (arXiv:2207.12598), whose w is `weight` - 1. A weight of 0 ignores the label,
    1 is the conditional model, above 1 exaggerates the label. Where no label is asked for there is
    nothing to guide.

    Args:
      none: the number that stands for "no label".
    """

    def guided(x: jax.Array, level: Level, label: jax.Array | None) -> Estimate:
        if label is None:
            return denoise(x, level, None)
        both = denoise(
            jnp.concatenate([x, x]),
            Level(*(jnp.concatenate([a, a]) for a in level)),
            jnp.concatenate([label, jnp.full((len(x),), none, label.dtype)]),
        )
        with_label, without = jnp.split(both.x0, 2)
        share = None if both.share is None else both.share[: len(x)]
        return Estimate(without + weight * (with_label - without), share)

    return denoise if weight == 1.0 else guided
