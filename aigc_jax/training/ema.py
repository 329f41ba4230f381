"""Averages of parameters: by half-life, and by power functions whose length is chosen afterwards.

Post-hoc EMA (Karras et al. 2024, arXiv:2312.02696, section 3 and appendix C): two averages with
power-function profiles are tracked while training and stored now and then; a sum of what was
stored is, to a small error, the average of any other length. Times are in steps done: only ratios
of times matter.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.checks import OR_EMPTY, NonNegative, Positive, Range, Whole, arguments

WIDEST = 0.288  # relative width; at 12 ** -0.5 all steps would count alike
Width = Annotated[float, Range(0, WIDEST, above=True)]


class Settings(NamedTuple):
    """The section `ema`.

    Attributes:
      half_life: of the run's own average, in images after which a weight counts half; 0 keeps the
        newest parameters.
      ramp: half-lives are at most `ramp` times the images seen so far; 0 switches this off.
      others: half-lives of further averages, each of which takes the memory of the parameters.
      snapshot_every: steps between snapshots for post-hoc EMA; 0 tracks and stores none.
      sigma_rels: relative widths of the profiles that are tracked for it.
      snapshots: most snapshots that are kept.
    """

    half_life: NonNegative
    ramp: NonNegative = 0.0
    others: Annotated[tuple[Positive, ...], OR_EMPTY] = ()
    snapshot_every: Whole = 0
    sigma_rels: tuple[Width, ...] = (0.05, 0.1)
    snapshots: Annotated[int, Range(4, 2**31, below=True)] = 32


def settings_of(section: Mapping[str, Any]) -> Settings:
    """The section `ema` of a config; ValueError for a key or a value that cannot be."""
    return Settings(**arguments("ema", Settings, section))


def half_life_name(half_life: float) -> str:
    """Name of the average with a half-life in images, within a state."""
    return f"half_life_{half_life:.12g}"


def sigma_rel_name(sigma_rel: float) -> str:
    """Name of the average with a power-function profile, within a state."""
    return f"sigma_rel_{sigma_rel:.12g}"


def tracked(given: Settings) -> dict[str, float]:
    """{name: relative width} of the averages that are tracked for post-hoc EMA."""
    widths = given.sigma_rels if given.snapshot_every else ()
    return {sigma_rel_name(sigma_rel): sigma_rel for sigma_rel in widths}


def shares(given: Settings, batch_size: int) -> dict[str, Callable[[jax.Array], jax.Array]]:
    """{name of an average beside the run's own: step -> share of the new parameters in it}."""

    def of_half_life(step: jax.Array, half_life: float) -> jax.Array:
        return 1 - ema_decay(step, batch_size=batch_size, half_life=half_life, ramp=given.ramp)

    found = {half_life_name(x): partial(of_half_life, half_life=x) for x in given.others}
    powers = {n: partial(power_share, sigma_rel=x) for n, x in tracked(given).items()}
    return found | powers


def ema_decay(
    step: jax.Array, *, batch_size: int, half_life: float, ramp: float = 0.0
) -> jax.Array:
    """EMA decay from a half-life in images (EDM, Karras et al. 2022, appendix F).

    Args:
      step: steps done.
      batch_size: global batch size.
      half_life: images after which a weight counts half; 0 keeps no average (decay 0).
      ramp: the half-life is at most `ramp` times the images seen so far; 0 switches this off.
    """
    images = batch_size * (step + 1.0)
    life = jnp.minimum(half_life, ramp * images) if ramp else jnp.float32(half_life)
    return jnp.where(life > 0, jnp.exp2(-batch_size / jnp.maximum(life, 1e-8)), 0.0)


def exponent(sigma_rel: float) -> float:
    """gamma of the profile t^gamma on [0, 1] whose standard deviation is `sigma_rel`.

    The density (gamma + 1) t^gamma has the variance (gamma + 1) / ((gamma + 2)^2 (gamma + 3)): a
    cubic equation with one root above 0.
    """
    precision = sigma_rel**-2
    roots = np.roots([1.0, 7.0, 16.0 - precision, 12.0 - precision])
    return float(roots.real.max())


def power_share(step: jax.Array, *, sigma_rel: float) -> jax.Array:
    """Share of the new parameters in an average with a power-function profile.

    One less ((t - 1) / t)^(gamma + 1) with t = step + 1: what the profile up to t has beyond t - 1.

    Args:
      step: steps done before this one.
    """
    return -jnp.expm1((exponent(sigma_rel) + 1) * jnp.log1p(-1 / (step + 1.0)))


def inner_products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Integrals of products of profiles, each (gamma + 1) t^gamma / end^(gamma + 1) on [0, end].

    Args:
      a: [n, 2] and b: [m, 2], float64, of (gamma, end).

    Returns:
      [n, m].
    """
    gamma_a, end_a = a.T[:, :, None]
    gamma_b, end_b = b.T[:, None, :]
    first, last = np.minimum(end_a, end_b), np.maximum(end_a, end_b)
    of_last = np.where(end_a < end_b, gamma_b, gamma_a)
    scale = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    return scale * (first / last) ** of_last / last


def coefficients(
    stored: Sequence[tuple[float, float]], sigma_rel: float, end: float
) -> tuple[np.ndarray, float]:
    """How the stored averages add up to one of another length.

    The least-squares fit of its profile by theirs, with a sum of 1, so that it is an average too.

    Args:
      stored: (relative width, steps done) of each.
      sigma_rel, end: of the average that is wanted.

    Returns:
      (coefficients [n] in float64, root mean square of what is left of the profile, as a share of
      the profile's own).
    """
    profiles = np.array([(exponent(width), step / end) for width, step in stored])
    wanted = np.array([(exponent(sigma_rel), 1.0)])
    products, towards = inner_products(profiles, profiles), inner_products(profiles, wanted)[:, 0]
    size = inner_products(wanted, wanted)[0, 0]
    n = len(stored)
    system = np.ones((n + 1, n + 1))  # the last row and column hold the sum to 1
    system[:n, :n], system[n, n] = products, 0
    norms = np.append(1 / np.sqrt(np.diag(products)), 1.0)
    scaled = system * norms[:, None] * norms[None]
    right = np.append(towards, 1.0) * norms
    found = (np.linalg.lstsq(scaled, right, rcond=1e-13)[0] * norms)[:n]
    left = 1 - (2 * found @ towards - found @ products @ found) / size
    return found, math.sqrt(max(left, 0.0))


def kept(steps: Sequence[int], every: int, most: int) -> list[int]:
    """Which snapshots stay: so that there are never more than `most`, every second one goes.

    What stays is spread over the whole run, and depends on the newest step alone, as it must for a
    run that was killed and resumed to keep the same.
    """
    spacing = every
    while max(steps, default=0) // spacing > most:
        spacing *= 2
    return [step for step in steps if step % spacing == 0]
