"""Solvers of diffusion models, by name. They see only `denoise(x, level)`, an estimate of x_0.

A new solver is a file beside this one and a row of `SOLVERS`; a setting that only it has is one
more field of `Settings`.
"""

from functools import partial
from typing import Annotated, Any, NamedTuple

from aigc_jax.checks import OneOf, Probability, Whole, one_of
from aigc_jax.diffusion.process import Level, Process
from aigc_jax.diffusion.solvers import ancestral, ddim
from aigc_jax.diffusion.solvers.base import Solver
from aigc_jax.diffusion.solvers.spacing import SPACINGS, grid


class Settings(NamedTuple):
    """What solvers can be set to, each reading its own.

    Attributes:
      variance: of "ancestral", "fixed_small", "fixed_large" or "learned".
      eta: of "ddim", 0..1.
    """

    variance: Annotated[str, OneOf(ancestral.VARIANCES)] = "fixed_large"
    eta: Probability = 0.0


# {config.sampling.sampler: (process, levels [S + 1] noisiest first, settings) -> solver}
SOLVERS = {
    "ancestral": lambda process, levels, chosen: ancestral.solver(
        levels, process.start_std, chosen.variance
    ),
    "ddim": lambda process, levels, chosen: ddim.solver(levels, process.start_std, chosen.eta),
}


def build(
    process: Process,
    *,
    sampler: Annotated[str, OneOf(SOLVERS)],
    steps: Whole,
    spacing: Annotated[str, OneOf(SPACINGS)] = "leading",
    **settings: Any,
) -> Solver:
    """A solver by name.

    Args:
      sampler: a name of `SOLVERS`; ValueError for any other.
      steps: how many steps a run makes; 0 takes every time of a discrete process.
      spacing: which levels of noise it visits; see `spacing.grid`.
      settings: see `Settings`.
    """
    return on(process, grid(process, spacing, steps), sampler=sampler, **settings)


def on(process: Process, levels: Level, *, sampler: str, **settings: Any) -> Solver:
    """A solver by name over levels [S + 1] at hand, noisiest first."""
    one_of("sampling.sampler", sampler, SOLVERS)
    made = SOLVERS[sampler](process, levels, Settings(**settings))
    again = partial(on, process, sampler=sampler, **settings)
    return made._replace(grid=levels, over=again)
