"""Guidance: estimates of x_0 made to depend more on what is asked for.

Each is a function of a denoise, or of two, to a denoise, so that they compose, where
denoise: (x [n, ...], level of [n], label int32 [n] or None) -> Estimate. They act on estimates that
are not clipped yet, where they are what they would be on the network's outputs, since an estimate
is affine in its output.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from aigc_jax.diffusion.process import Level, expand
from aigc_jax.diffusion.solvers.base import Estimate

Denoise = Callable[[jax.Array, Level, jax.Array | None], Estimate]


def classifier_free(denoise: Denoise, weight: float, none: int, rescale: float = 0.0) -> Denoise:
    """x_0(none) + weight (x_0(label) - x_0(none)), by one call on a double batch.

    Ho & Salimans 2022 (arXiv:2207.12598), whose w is `weight` - 1. A weight of 0 ignores the label,
    1 is the conditional model, above 1 exaggerates the label. Where no label is asked for there is
    nothing to guide.

    Args:
      none: the number that stands for "no label".
      rescale: share of the way back to the standard deviation that x_0(label) has over an example
        (Lin et al. 2024, arXiv:2305.08891, eq. 15 and 16, their phi): large weights widen it.
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
        x0 = without + weight * (with_label - without)
        if rescale:
            ratio = _std(with_label) / jnp.maximum(_std(x0), 1e-8)
            x0 = x0 * expand(1 + rescale * (ratio - 1), x0)
        return Estimate(x0, None if both.share is None else both.share[: len(x)])

    return denoise if weight == 1.0 else guided


def auto(denoise: Denoise, weak: Denoise, weight: float) -> Denoise:
    """weak + weight (denoise - weak): away from what a weaker model of the same kind does.

    Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself"
    (arXiv:2406.02507), eq. 3. The weaker model knows the label too, and `denoise` may be guided
    already: what `classifier_free` makes of the strong model is then led away from what the weak
    one says given the label. A weight of 1 is `denoise` itself.
    """

    def guided(x: jax.Array, level: Level, label: jax.Array | None) -> Estimate:
        strong, other = denoise(x, level, label), weak(x, level, label)
        return strong._replace(x0=other.x0 + weight * (strong.x0 - other.x0))

    return denoise if weight == 1.0 else guided


def within(guided: Denoise, denoise: Denoise, low: float, high: float) -> Denoise:
    """`guided` where sigma / alpha lies in [low, high], else `denoise`, which costs less.

    Kynkäänniemi et al. 2024 (arXiv:2404.07724). All of a batch is at one level, the first's.
    """

    def limited(x: jax.Array, level: Level, label: jax.Array | None) -> Estimate:
        inside = holds(level, low, high)[0]
        return jax.lax.cond(inside, guided, denoise, x, level, label)

    return limited


def holds(level: Level, low: float, high: float) -> jax.Array:
    """Whether sigma / alpha lies in [low, high] at each level; without a division by alpha = 0."""
    above = level.sigma >= low * level.alpha
    return above if high == float("inf") else above & (level.sigma <= high * level.alpha)


def _std(x: jax.Array) -> jax.Array:
    return jnp.std(x.reshape(len(x), -1), axis=1)
