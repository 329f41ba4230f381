"""Writes a trained diffusion model as a folder that diffusers' pipelines load."""

import argparse
import pathlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax

from aigc_jax import files
from aigc_jax.errors import SettingError
from aigc_jax.runs import model as models
from aigc_jax.runs import weights
from aigc_jax.training import sharding

FLAGS: tuple[str, ...] = (
    "output",
    "step",
    "best",
    "ema",
)


def main(flags: argparse.Namespace) -> None:
    """Runs the command as its flags say."""
    run(
        flags.workdir,
        flags.output or flags.workdir / "diffusers",
        flags.config,
        step=flags.step,
        best=flags.best,
        ema=flags.ema,
    )


def run(
    workdir: str | pathlib.Path,
    output: str | pathlib.Path,
    config: Mapping[str, Any] | None = None,
    *,
    step: int | None = None,
    best: bool = False,
    ema: str | float = "",
) -> None:
    """Writes a run's model as a folder for diffusers, complete or not at all.

    Args:
      workdir, config, step, best, ema: see `runs.model.load`.
      output: the folder to write, which is not there yet, or empty.

    Raises:
      FileNotFoundError, ValueError: no such run, a model that diffusers has no pipeline for, or
        an output that is there already or cannot be written.
    """
    output, outline = files.expanded(output), models.outline(workdir, config)
    if outline.config["family"] != "diffusion":
        raise SettingError(f"diffusers has no pipeline for family {outline.config['family']!r}")
    params, _ = jax.eval_shape(outline.family.init, jax.random.key(0))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    sharding.check_on_first(partial(files.check, output, folders=True, size=size))
    model = models.load(workdir, config, step=step, best=best, ema=ema, family=outline.family)
    config = model.config
    weights.to_diffusers(
        output,
        model.variables.params,
        model.spec,
        network=config["network"],
        diffusion=config["diffusion"],
        sampling=config["sampling"],
    )
    if jax.process_index() == 0:
        print(
            f"{model.named} of {workdir} as a diffusers pipeline: {output}; sample it in a number "
            f"of steps that divides {config['diffusion']['process']['timesteps']}",
            flush=True,
        )
