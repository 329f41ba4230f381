"""Samplers of diffusion models. They see only `denoise(x, t)`, an estimate of the clean image.

A sampler is a table of per-step numbers and a pure step, so one compiled step serves all of a run,
and a solver with memory or with several evaluations a step brings a carry and a step of its own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.diffusion.process import Process

SAMPLERS = ("ancestral", "ddim")
SPACINGS = ("leading", "trailing", "linspace", "quadratic")
VARIANCES = ("fixed_small", "fixed_large")

Denoise = Callable[[jax.Array, jax.Array], jax.Array]  # (x [n, ...], t scalar) -> x_0 [n, ...]


class Sampler(NamedTuple):
    """A way from noise to images in S steps.

    Attributes:
      table: {name: float64 [S]}, what each step needs; always holds "t", its time.
      step: (denoise, carry, row {name: scalar}, noise like x or None) -> (carry, x_0 estimate).
      init: x_T [n, ...] standard normal -> carry.
      image: carry -> x [n, ...].
      stochastic: whether steps draw noise.
    """

    table: dict[str, np.ndarray]
    step: Callable
    init: Callable = lambda x: x
    image: Callable = lambda carry: carry
    stochastic: bool = True


def timesteps(spacing: str, steps: int, total: int) -> np.ndarray:
    """`steps` of the times 0..total-1, descending, int [steps].

    "leading", "trailing" and "linspace" are Lin et al. 2024 (arXiv:2305.08891, table 2);
    "quadratic" is what DDIM uses for CIFAR-10 (Song et al. 2021, arXiv:2010.02502, D.3).
    """
    if not 1 <= steps <= total:
        raise ValueError(
            f"sampling.steps must lie in 1..{total} (diffusion.timesteps), not {steps}"
        )
    if spacing == "leading":
        t = np.arange(steps) * (total // steps)
    elif spacing == "trailing":
        t = np.round(np.arange(steps, 0, -1) * total / steps)[::-1] - 1
    elif spacing == "linspace":
        # One step must start from the noisiest time, not from the cleanest.
        t = np.round(np.linspace(0, total - 1, steps)) if steps > 1 else np.array([total - 1])
    elif spacing == "quadratic":
        # The published 0.8 T leaves out the noisiest fifth, where x_t is all but pure noise.
        t = np.floor(np.linspace(0, (0.8 * total) ** 0.5, steps) ** 2)
        t = np.maximum.accumulate(np.maximum(t, np.arange(steps)))  # distinct at any `steps`
        t = np.minimum(t, total - steps + np.arange(steps))
    else:
        raise ValueError(f"sampling.spacing is one of {', '.join(SPACINGS)}, not {spacing!r}")
    return t[::-1].astype(int)


def _linear_step(
    denoise: Denoise, x: jax.Array, row: dict[str, jax.Array], noise: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """x' = c_x0 denoise(x, t) + c_x x + std noise: the form of every single-step sampler here."""
    x0 = denoise(x, row["t"])
    new = row["c_x0"] * x0 + row["c_x"] * x
    return (new if noise is None else new + row["std"] * noise), x0


def _linear(t: np.ndarray, c_x0: np.ndarray, c_x: np.ndarray, std: np.ndarray) -> Sampler:
    table = {"t": np.asarray(t, np.float64), "c_x0": c_x0, "c_x": c_x, "std": std}
    return Sampler(table, _linear_step, stochastic=bool(np.any(std)))


def ddim(process: Process, index: np.ndarray, eta: float = 0.0) -> Sampler:
    """DDIM (Song et al. 2021, eq. 12) over the times `index` [S], descending; it ends at x_0.

    eta = 0 is deterministic; eta = 1 is ancestral sampling with the posterior's variance.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"sampling.eta must lie in 0..1, not {eta}")
    alpha, sigma, alpha_s, sigma_s = _from_to(process, index)
    # The posterior q(x_s | x_t, x_0) has this std at eta = 1, for any alpha and sigma.
    std = eta * sigma_s * np.sqrt(np.maximum(1 - (alpha * sigma_s / (alpha_s * sigma)) ** 2, 0))
    c_x = np.sqrt(np.maximum(sigma_s**2 - std**2, 0)) / sigma
    return _linear(process.times[index], alpha_s - c_x * alpha, c_x, std)


def ancestral(process: Process, index: np.ndarray, variance: str = "fixed_large") -> Sampler:
    """Ancestral sampling (Ho et al. 2020, algorithm 2) over the times `index` [S], descending.

    With fewer steps than T the betas are those of the process between the chosen times (Nichol &
    Dhariwal 2021). The variance is the posterior's ("fixed_small") or beta ("fixed_large"); the
    step that reaches x_0 adds no noise.
    """
    if variance not in VARIANCES:
        raise ValueError(f"sampling.variance is one of {', '.join(VARIANCES)}, not {variance!r}")
    small = ddim(process, index, eta=1.0)
    if variance == "fixed_small":
        return small
    alpha, sigma, alpha_s, sigma_s = _from_to(process, index)
    beta = sigma**2 - (alpha / alpha_s * sigma_s) ** 2
    std = np.append(np.sqrt(beta[:-1]), 0.0)
    return small._replace(table=small.table | {"std": std})


def _from_to(process: Process, index: np.ndarray) -> tuple[np.ndarray, ...]:
    """alpha, sigma [S] where each step starts, alpha_s, sigma_s [S] where it ends."""
    alpha, sigma = process.alpha[index], process.sigma[index]
    return alpha, sigma, np.append(alpha[1:], 1.0), np.append(sigma[1:], 0.0)


def build(
    process: Process,
    *,
    sampler: str,
    steps: int,
    spacing: str = "leading",
    variance: str = "fixed_large",
    eta: float = 0.0,
) -> Sampler:
    """A sampler by name; `steps` 0 takes every time of the process."""
    total = len(process.times)
    index = timesteps(spacing, steps or total, total)
    if sampler == "ancestral":
        return ancestral(process, index, variance)
    if sampler == "ddim":
        return ddim(process, index, eta)
    raise ValueError(f"sampling.sampler is one of {', '.join(SAMPLERS)}, not {sampler!r}")


def noise_like(keys: jax.Array, shape: tuple[int, ...], salt: Any) -> jax.Array:
    """Standard normal [n, *shape] whose row i depends on keys[i] and `salt` only."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, salt), shape))(keys)


def compiled(
    sampler: Sampler, advance: Callable[[Any, Any, dict[str, jax.Array], jax.Array], tuple]
) -> Callable[..., tuple[Any, list[jax.Array]]]:
    """A runner of the whole table that compiles once.

    Args:
      sampler: whose table is walked.
      advance: (context, carry, row, step number) -> (carry, x_0 estimate); the context holds
        whatever stays the same over the steps, such as parameters and keys.

    Returns:
      (context, carry, frames=0, unrolled=None) -> (carry, x_0 estimates), with `frames` estimates
      kept, evenly spread and ending with the last. `unrolled` True runs a host loop over one
      compiled step, False one `lax.scan`; None chooses by backend: on a CPU a convolution inside
      `lax.scan` is several times slower (jax-ml/jax#12868), elsewhere one dispatch beats S.
    """
    steps = len(sampler.table["t"])
    table = {name: np.asarray(column, np.float32) for name, column in sampler.table.items()}

    def at(context: Any, carry: Any, i: jax.Array) -> tuple[Any, jax.Array]:
        row = {name: jnp.asarray(column)[i] for name, column in table.items()}
        return advance(context, carry, row, i)

    step = jax.jit(at)

    @jax.jit
    def scan(context: Any, carry: Any) -> Any:
        return jax.lax.scan(
            lambda c, i: (at(context, c, i)[0], None), carry, jnp.arange(steps, dtype=jnp.int32)
        )[0]

    def run(
        context: Any, carry: Any, frames: int = 0, unrolled: bool | None = None
    ) -> tuple[Any, list[jax.Array]]:
        if unrolled is None:
            unrolled = jax.default_backend() == "cpu"
        if not unrolled and not frames:
            return scan(context, carry), []
        # From the end backwards, so that a single frame is the last.
        kept = np.round(np.linspace(steps - 1, 0, frames)).astype(int)
        estimates = []
        for i in range(steps):
            carry, x0 = step(context, carry, np.int32(i))
            estimates += [x0] * int(np.sum(np.equal(kept, i)))
        return carry, estimates

    return run
