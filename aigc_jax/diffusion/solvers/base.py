"""What a solver is: a table of numbers and a pure step that sees only `denoise`.

A row of the table is one network call, so that a run calls the network as often as its table has
rows. Nearly all solvers are linear in what they keep, in the estimate of x_0 and in noise: `linear`
has their one step, and a solver is then a matrix for each call, made once on the host in float64.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from aigc_jax.diffusion.process import Level, Process


class Estimate(NamedTuple):
    """What a network says of x_t.

    Attributes:
      x0: the estimate of x_0 [n, ...].
      share: of a network that learns its variance, where ln(variance) lies between the smallest (0)
        and the largest (1) that a step may have, [n, ...]; else None.
    """

    x0: jax.Array
    share: jax.Array | None = None


# (x [n, ...], level of scalars) -> estimate
Denoise = Callable[[jax.Array, Level], Estimate]


class Solver(NamedTuple):
    """A way from noise to samples.

    Attributes:
      table: {name: tree of float64 [calls, ...]}, what each network call needs; "at" is its Level.
      step: (denoise, carry, row, noise like x or None) -> (carry, x_0 estimate): one network call.
      start: x [n, ...] at the first level -> carry.
      finish: carry -> samples [n, ...].
      std: standard deviation of the x [n, ...] that samples start from, at the first level of the
        table: one that starts from an image diffuses it to that level.
      stochastic: whether steps use noise.
      grid: the levels [S + 1] that steps lead from and to, noisiest first.
      over: (levels like `grid`, settings that shall be others) -> the same solver over these.
    """

    table: Mapping[str, Any]
    step: Callable
    start: Callable = lambda x: x
    finish: Callable = lambda carry: carry
    std: float = 1.0
    stochastic: bool = False
    grid: Level | None = None
    over: Callable[..., "Solver"] | None = None

    @property
    def calls(self) -> int:
        """How often a run calls the network."""
        return len(self.table["at"].t)


def linear(
    at: Level,
    keep: np.ndarray,
    x0: np.ndarray,
    noise: np.ndarray | None = None,
    *,
    std: float = 1.0,
) -> Solver:
    """A solver that is linear in what it keeps, k arrays z_0..z_{k-1} like x.

    A call is at z_0, and then z <- keep z + x0 denoise(z_0) + noise eps. Samples are the last z_0.

    Args:
      at: the level of each call, [calls].
      keep: [calls, k, k]; x0: [calls, k]; noise: [calls, k], None where steps have none.
      std: see `Solver`.
    """
    k = keep.shape[-1]
    if noise is not None and not noise.any():
        noise = None
    table = {"at": at, "keep": keep, "x0": x0} | ({} if noise is None else {"noise": noise})
    # What no call uses is left out of the program.
    used = [[j for j in range(k) if keep[:, i, j].any()] for i in range(k)]
    shifted = noise is not None and noise.any(axis=0)

    def step(
        denoise: Denoise, carry: tuple[jax.Array, ...], row: Mapping[str, Any], eps: Any
    ) -> tuple[tuple[jax.Array, ...], jax.Array]:
        estimate = denoise(carry[0], row["at"]).x0

        def new(i: int) -> jax.Array:
            z = row["x0"][i] * estimate
            for j in used[i]:
                z = z + row["keep"][i, j] * carry[j]
            return z + row["noise"][i] * eps if noise is not None and shifted[i] else z

        return tuple(new(i) for i in range(k)), estimate

    return Solver(
        table,
        step,
        start=lambda x: (x, *[0 * x] * (k - 1)),
        finish=lambda carry: carry[0],
        std=std,
        stochastic=noise is not None,
    )


def single_step(
    at: Level, c_x: np.ndarray, c_x0: np.ndarray, std: np.ndarray | None = None, *, start: float
) -> Solver:
    """A `linear` solver that keeps x alone: x <- c_x x + c_x0 denoise(x) + std eps, columns [S]."""
    noise = None if std is None else std[:, None]
    return linear(at, c_x[:, None, None], c_x0[:, None], noise, std=start)


def start_std(process: Process, grid: Level) -> float:
    """Standard deviation of the noise that stands for x at the first level of a grid.

    Where alpha^2 + sigma^2 = 1 it is 1 at every level, as of data of variance 1.
    """
    if np.isclose(np.hypot(grid.alpha[0], grid.sigma[0]), 1):
        return process.start_std
    return float(process.start_std * grid.sigma[0] / process.ends.sigma[1])


def steps_of(grid: Level) -> tuple[Level, Level]:
    """Where each of S steps starts and where it ends, [S], of a grid [S + 1]."""
    return Level(*(a[:-1] for a in grid)), Level(*(a[1:] for a in grid))


def noise_like(keys: jax.Array, shape: tuple[int, ...], salt: Any) -> jax.Array:
    """Standard normal [n, *shape] whose row i depends on keys[i] and `salt` only."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, salt), shape))(keys)
