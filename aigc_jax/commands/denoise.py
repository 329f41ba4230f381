"""Denoises the images of a folder or .zip with a trained autoencoder."""

import argparse
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from aigc_jax.errors import SettingError
from aigc_jax.runs import apply
from aigc_jax.runs import model as models
from aigc_jax.runs.image_folder import check_output

FLAGS: tuple[str, ...] = (
    "input",
    "output",
    "batch",
    "step",
    "best",
    "raw",
    "ema",
)


def main(flags: argparse.Namespace) -> None:
    """Runs the command as its flags say."""
    if not flags.input:
        raise SettingError("name the images to denoise, as in --input=FOLDER")
    run(
        flags.workdir,
        flags.input,
        flags.config,
        output=flags.output,
        batch_size=flags.batch,
        step=flags.step,
        best=flags.best,
        raw=flags.raw,
        ema=flags.ema,
    )


def run(
    workdir: str | pathlib.Path,
    input: str | pathlib.Path,
    config: Mapping[str, Any] | None = None,
    *,
    output: str | pathlib.Path | None = None,
    batch_size: int = 64,
    step: int | None = None,
    best: bool = False,
    raw: bool = False,
    ema: str | float = "",
) -> pathlib.Path:
    """Decodes the code of every image of a folder or .zip, each to a PNG of its own size.

    Args:
      workdir, config, step, best, raw, ema: see `runs.model.load`.
      input: the folder or .zip.
      output: new folder to write to; None takes denoised/ in the workdir.
      batch_size: images at a time.

    Returns:
      The path of a picture of some images above what became of them, beside the folder.

    Raises:
      FileNotFoundError, ValueError: no such run, a model without an encoder, or images that
        `runs.apply.denoise_folder` refuses.
    """
    output = output or pathlib.Path(workdir) / "denoised"
    outline = models.outline(workdir, config)
    apply.check_denoises(outline)
    check_output(input, output)
    model = models.load(
        workdir, config, step=step, best=best, raw=raw, ema=ema, family=outline.family
    )
    path = apply.denoise_folder(model, input, output, batch_size=batch_size)
    if jax.process_index() == 0:
        print(f"denoised by {model.named}: {output}, compared in {path}", flush=True)
    return path
