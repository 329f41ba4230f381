"""Solvers of diffusion models, by name. They see only `denoise(x, index)`, an estimate of x_0.

A new solver is a file beside this one and a row of `SOLVERS`; a setting that only it has is one
more field of `Settings`.
"""

from typing import Annotated, Any, NamedTuple

from aigc_jax.checks import OneOf, Probability, Whole, one_of
from aigc_jax.diffusion.process import Process
from aigc_jax.diffusion.solvers import ancestral, ddim
from aigc_jax.diffusion.solvers.base import Solver
from aigc_jax.diffusion.solvers.spacing import SPACINGS, timesteps


class Settings(NamedTuple):
    """What solvers can be set to, each reading its own.

    Attributes:
      variance: of "ancestral", "fixed_small" or "fixed_large".
      eta: of "ddim", 0..1.
    """

    variance: Annotated[str, OneOf(ancestral.VARIANCES)] = "fixed_large"
    eta: Probability = 0.0


# {config.sampling.sampler: (process, times [S] descending, settings) -> solver}
SOLVERS = {
    "ancestral": lambda process, index, chosen: ancestral.solver(process, index, chosen.variance),
    "ddim": lambda process, index, chosen: ddim.solver(process, index, chosen.eta),
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
      steps: how many times of the process are visited; 0 takes every one.
      spacing: which times; see `spacing.timesteps`.
      settings: see `Settings`.
    """
    total = len(process.times)
    index = timesteps(spacing, steps or total, total)
    one_of("sampling.sampler", sampler, SOLVERS)
    return SOLVERS[sampler](process, index, Settings(**settings))
