"""What a solver is: a table of numbers and a pure step that sees only `denoise`.

One compiled step serves the whole table; a solver with memory, or with several evaluations a step,
brings a carry and a step of its own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from aigc_jax.diffusion.process import Process

# (x [n, ...], number of a time of the process, scalar) -> x_0 [n, ...]
Denoise = Callable[[jax.Array, jax.Array], jax.Array]


class Solver(NamedTuple):
    """A way from noise to samples in S steps.

    Attributes:
      table: {name: float64 [S]}, what each step needs; always holds "index", the number of its
        time.
      step: (denoise, carry, row {name: scalar}, noise like x or None) -> (carry, x_0 estimate).
      start: x_T [n, ...] standard normal -> carry.
      finish: carry -> samples [n, ...].
      stochastic: whether steps draw noise.
    """

    table: dict[str, np.ndarray]
    step: Callable
    start: Callable = lambda x: x
    finish: Callable = lambda carry: carry
    stochastic: bool = True


def linear(index: np.ndarray, c_x0: np.ndarray, c_x: np.ndarray, std: np.ndarray) -> Solver:
    """A single-step solver whose steps are linear: `linear_step` over columns [S]."""
    table = {"index": np.asarray(index, np.float64), "c_x0": c_x0, "c_x": c_x, "std": std}
    return Solver(table, linear_step, stochastic=bool(np.any(std)))


def linear_step(
    denoise: Denoise, x: jax.Array, row: dict[str, jax.Array], noise: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """(c_x0 denoise(x, index) + c_x x + std noise, denoise(x, index))."""
    x0 = denoise(x, row["index"])
    new = row["c_x0"] * x0 + row["c_x"] * x
    return (new if noise is None else new + row["std"] * noise), x0


def from_to(process: Process, index: np.ndarray) -> tuple[np.ndarray, ...]:
    """alpha, sigma [S] where each step starts, alpha_s, sigma_s [S] where it ends.

    The last step ends at x_0 itself.
    """
    alpha, sigma = process.alpha[index], process.sigma[index]
    return alpha, sigma, np.append(alpha[1:], 1.0), np.append(sigma[1:], 0.0)


def noise_like(keys: jax.Array, shape: tuple[int, ...], salt: Any) -> jax.Array:
    """Standard normal [n, *shape] whose row i depends on keys[i] and `salt` only."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, salt), shape))(keys)
