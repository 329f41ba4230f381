"""Writes the codes of the training and test data as .npz, with their shift and scale."""

import argparse
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from aigc_jax import files
from aigc_jax.commands import common
from aigc_jax.runs import apply
from aigc_jax.runs import model as models

FLAGS: tuple[str, ...] = (
    "output",
    "step",
    "best",
    "raw",
    "distributed",
    "coordinator",
    "processes",
    "process",
    "join_timeout",
)


def main(flags: argparse.Namespace) -> None:
    """Runs the command as its flags say."""
    run(
        flags.workdir,
        flags.config,
        output=flags.output,
        step=flags.step,
        best=flags.best,
        raw=flags.raw,
    )


def run(
    workdir: str | pathlib.Path,
    config: Mapping[str, Any] | None = None,
    *,
    output: str | pathlib.Path | None = None,
    step: int | None = None,
    best: bool = False,
    raw: bool = False,
) -> list[pathlib.Path]:
    """Writes the codes of both splits as .npz, as `runs.apply.encode_split` gives them.

    Args:
      workdir, config, step, best, raw: see `runs.model.load`.
      output: folder to write to; None takes codes/ in the workdir.

    Returns:
      The paths of the files, one a split.

    Raises:
      FileNotFoundError, ValueError: no such run, a model without an encoder, or data of another
        shape.
    """
    model = models.load(workdir, config, step=step, best=best, raw=raw)
    folder, paths = pathlib.Path(output or pathlib.Path(workdir) / "codes"), []
    data = common.open_data(model.config)
    for split in dict.fromkeys((data.train_split, data.test_split)):
        found = apply.encode_split(model, data, split)
        paths.append(folder / f"{split}.npz")
        if jax.process_index() > 0:  # the first process writes for all
            continue
        with files.replacing(paths[-1]) as partial, partial.open("wb") as file:
            np.savez(file, **found)  # given a name, it would add a suffix of its own
        print(f"codes of {split}, {described(found)}: {paths[-1]}", flush=True)
    return paths


def described(found: Mapping[str, np.ndarray]) -> str:
    """Codes in words: "mean [296, 4], logvar [296, 4], shift 0.1, scale 0.9"."""
    return ", ".join(
        f"{name} {list(value.shape)}" if value.ndim else f"{name} {value:.4g}"
        for name, value in found.items()
    )
