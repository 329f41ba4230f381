"""Takes the images of a folder or .zip to the other domain, with a trained CycleGAN."""

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
    "direction",
    "resize",
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
        raise SettingError("name the images to translate, as in --input=FOLDER")
    run(
        flags.workdir,
        flags.input,
        flags.config,
        direction=flags.direction,
        resize=flags.resize,
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
    direction: str = "a2b",
    resize: bool = False,
    output: str | pathlib.Path | None = None,
    batch_size: int = 64,
    step: int | None = None,
    best: bool = False,
    raw: bool = False,
    ema: str | float = "",
) -> pathlib.Path:
    """Takes every image of a folder or .zip to the other domain, each to a PNG of its own size.

    Args:
      workdir, config, step, best, raw, ema: see `runs.model.load`.
      input: the folder or .zip.
      direction: "a2b" or "b2a".
      resize: brings images to the size of training first, and the results back.
      output: new folder to write to; None takes translated/DIRECTION in the workdir.
      batch_size: images at a time.

    Returns:
      The path of a picture of some images above what became of them, beside the folder.

    Raises:
      FileNotFoundError, ValueError: no such run, a model of one domain, or images that
        `runs.apply.translate_folder` refuses.
    """
    output = output or pathlib.Path(workdir) / "translated" / direction
    outline = models.outline(workdir, config)
    apply.check_translates(outline, direction)
    check_output(input, output)
    model = models.load(
        workdir, config, step=step, best=best, raw=raw, ema=ema, family=outline.family
    )
    path = apply.translate_folder(
        model, input, output, direction, batch_size=batch_size, resize=resize
    )
    if jax.process_index() == 0:
        said = f"translated {direction} by {model.named}: {output}, compared in {path}"
        print(said, flush=True)
    return path
