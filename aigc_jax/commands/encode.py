"""Writes the codes of the training and test data as .npz, with their shift and scale."""

import argparse
import contextlib
import pathlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from aigc_jax import files
from aigc_jax.commands import common
from aigc_jax.runs import apply
from aigc_jax.runs import model as models
from aigc_jax.training import sharding

FLAGS: tuple[str, ...] = (
    "output",
    "step",
    "best",
    "raw",
    "ema",
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
        ema=flags.ema,
    )


def run(
    workdir: str | pathlib.Path,
    config: Mapping[str, Any] | None = None,
    *,
    output: str | pathlib.Path | None = None,
    step: int | None = None,
    best: bool = False,
    raw: bool = False,
    ema: str | float = "",
) -> list[pathlib.Path]:
    """Writes the codes of both splits as .npz, as `runs.apply.encode_split` gives them.

    Args:
      workdir, config, step, best, raw, ema: see `runs.model.load`.
      output: folder to write to, which holds no such files yet; None takes codes/ in the workdir.

    Returns:
      The paths of the files, one a split.

    Raises:
      FileNotFoundError, ValueError: no such run, a model without an encoder, or data of another
        shape, or files that are there already.
    """
    outline = models.outline(workdir, config)
    apply.check_codec(outline)
    folder = files.expanded(output or pathlib.Path(workdir) / "codes")
    splits = (outline.config["data"][key] for key in ("train_split", "test_split"))
    paths = {split: folder / f"{split}.npz" for split in splits}
    sharding.check_on_first(partial(files.check, *paths.values()))
    data = common.open_data(outline.config)
    model = models.load(
        workdir, config, step=step, best=best, raw=raw, ema=ema, family=outline.family
    )
    writes, said = jax.process_index() == 0, []  # the first process writes for all
    with files.folder(folder) if writes else contextlib.nullcontext(folder) as place:
        for split, path in paths.items():
            found = apply.encode_split(model, data, split)
            if writes:
                files.write_arrays(place / path.name, found)
                said.append(f"codes of {split}, {described(found)}: {path}")
    if writes:
        print("\n".join(said), flush=True)
    return list(paths.values())


def described(found: Mapping[str, np.ndarray]) -> str:
    """Codes in words: "mean [296, 4], logvar [296, 4], shift 0.1, scale 0.9"."""
    return ", ".join(
        f"{name} {list(value.shape)}" if value.ndim else f"{name} {value:.4g}"
        for name, value in found.items()
    )
