"""Solvers of diffusion models, by name. They see only `denoise(x, level)`, an estimate of x_0.

A new solver is a file beside this one and a row of `SOLVERS`; a setting that only it has is one
more field of `Settings`.
"""

from collections.abc import Collection, Iterable
from functools import partial
from typing import Annotated, Any

from aigc_jax.checks import OneOf, Whole, arguments, one_of
from aigc_jax.diffusion.process import PROCESSES, Flow, Level, Process
from aigc_jax.diffusion.solvers import (
    ancestral,
    ddim,
    heun,
    multistep,
    predictor_corrector,
    unipc,
)
from aigc_jax.diffusion.solvers.base import Solver, start_std
from aigc_jax.diffusion.solvers.settings import Settings
from aigc_jax.diffusion.solvers.spacing import SPACINGS, grid, warn_of_start
from aigc_jax.errors import SettingError


def _eta(chosen: Settings, default: float) -> float:
    return default if chosen.eta is None else chosen.eta


# {config.sampling.sampler: (process, levels [S + 1] noisiest first, std of x there, settings) ->
# solver}
SOLVERS = {
    "ancestral": lambda process, levels, std, chosen: ancestral.solver(
        levels, std, chosen.variance
    ),
    "ddim": lambda process, levels, std, chosen: ddim.solver(levels, std, _eta(chosen, 0.0)),
    "euler": lambda process, levels, std, chosen: ddim.solver(levels, std),
    "euler_ancestral": lambda process, levels, std, chosen: ddim.solver(
        levels, std, _eta(chosen, 1.0)
    ),
    "heun": lambda process, levels, std, chosen: heun.solver(process, levels, chosen),
    "flow_heun": lambda process, levels, std, chosen: heun.in_time(process, levels),
    "dpmpp_2m": lambda process, levels, std, chosen: multistep.dpmpp(levels, std, 2),
    "dpmpp_3m": lambda process, levels, std, chosen: multistep.dpmpp(levels, std, 3),
    "dpmpp_2m_sde": lambda process, levels, std, chosen: multistep.dpmpp(
        levels, std, 2, _eta(chosen, 1.0)
    ),
    "dpmpp_3m_sde": lambda process, levels, std, chosen: multistep.dpmpp(
        levels, std, 3, _eta(chosen, 1.0)
    ),
    "deis": lambda process, levels, std, chosen: multistep.deis(levels, std, chosen.order),
    "unipc": lambda process, levels, std, chosen: unipc.solver(levels, std, chosen.order),
    "predictor_corrector": lambda process, levels, std, chosen: predictor_corrector.solver(
        levels, std, chosen.predictor, chosen.snr
    ),
}
# Solvers whose steps from nearly noise alone are the worse the larger they are.
BEGIN_LATE = ("heun",)
ONLY = {"flow_heun": Flow}  # {solver: the one kind of process that it can serve}
# {solver: the processes that it can serve, names of `PROCESSES`}
SERVES = {
    name: tuple(p for p, made in PROCESSES.items() if made is ONLY.get(name, made))
    for name in SOLVERS
}
# {setting: the solvers that read it}. Not `variance`, by which bounds are computed too.
READ_BY = {
    "eta": ("ddim", "euler_ancestral", "dpmpp_2m_sde", "dpmpp_3m_sde"),
    "order": ("deis", "unipc"),
    "predictor": ("predictor_corrector",),
    "snr": ("predictor_corrector",),
    **dict.fromkeys(("churn", "churn_min", "churn_max", "churn_noise"), ("heun",)),
}


def check_read(samplers: Collection[str], given: Iterable[str]) -> None:
    """Raises SettingError where a setting was given for samplers of which none reads it.

    What a config holds beside that waits for another sampler, as --sampler may name one.
    """
    for sampler in samplers:
        one_of("sampling.sampler", sampler, SOLVERS)
    for name in given:
        readers = READ_BY.get(name)
        if readers and not set(readers) & set(samplers):
            raise SettingError(
                f"sampling.{name} is of sampler={', '.join(readers)} alone, and "
                f"{', '.join(samplers)} would ignore it: name one of these, or leave it out"
            )


def build(
    process: Process,
    *,
    sampler: Annotated[str, OneOf(SOLVERS)],
    steps: Whole,
    spacing: Annotated[str, OneOf(SPACINGS)] = "",
    **settings: Any,
) -> Solver:
    """A solver by name.

    Args:
      sampler: a name of `SOLVERS`; ValueError for any other.
      steps: how many steps a run makes; 0 takes every time of a discrete process.
      spacing: which levels of noise it visits; see `spacing.grid`.
      settings: see `Settings`.
    """
    one_of("sampling.sampler", sampler, SOLVERS)
    chosen = Settings(**arguments("sampling", Settings, settings))
    levels = grid(process, spacing, steps, chosen)
    if sampler not in BEGIN_LATE and not chosen.sigmas:
        warn_of_start(process, spacing, levels)
    return on(process, levels, sampler=sampler, **settings)


def on(process: Process, levels: Level, *, sampler: str, **settings: Any) -> Solver:
    """A solver by name over levels [S + 1] at hand, noisiest first; they may end before x_0.

    Raises:
      ValueError: a solver that there is not, or that cannot serve the process, or a setting.
    """
    one_of("sampling.sampler", sampler, SOLVERS)
    if not isinstance(process, ONLY.get(sampler, Process)):
        raise SettingError(
            f"sampling.sampler={sampler} is of diffusion.process.name={', '.join(SERVES[sampler])} "
            "alone: take heun, which serves every process"
        )
    chosen = Settings(**arguments("sampling", Settings, settings))
    made = SOLVERS[sampler](process, levels, start_std(process, levels), chosen)
    again = partial(on, process, sampler=sampler, **settings)
    return made._replace(grid=levels, over=again)
