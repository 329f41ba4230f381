"""What a run shows: a progress bar, metrics as JSON lines and in TensorBoard, pictures as PNG."""

import json
import math
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter
from tqdm import tqdm


def to_uint8(images: np.ndarray) -> np.ndarray:
    """[-1, 1] floats -> uint8, clipped and rounded to nearest."""
    return np.round(np.clip((np.asarray(images, np.float32) + 1) * 127.5, 0, 255)).astype(np.uint8)


def grid(images: np.ndarray, columns: int = 0, enlarge_to: int = 64) -> Image.Image:
    """Images [n, H, W, C] in [-1, 1], row by row, as one picture with a thin margin.

    Args:
      images: C is 1 (greyscale) or 3.
      columns: images a row; 0 makes the grid about square.
      enlarge_to: images smaller than this are enlarged by a whole factor, smoothly: an eye reads an
        8x8 digit by its strokes, not by its pixels.
    """
    n, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    factor = max(1, enlarge_to // max(height, width))
    height, width, gap = height * factor, width * factor, 2
    size = (columns * (width + gap) + gap, rows * (height + gap) + gap)
    sheet = Image.new("L" if channels == 1 else "RGB", size, 128 if channels == 1 else (128,) * 3)
    for i, pixels in enumerate(to_uint8(images)):
        image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
        place = (gap + i % columns * (width + gap), gap + i // columns * (height + gap))
        sheet.paste(image.resize((width, height), Image.Resampling.BICUBIC), place)
    return sheet


def grid_columns(count: int, classes: int) -> int:
    """Columns of a grid: one a class where that makes at least two rows, else about square."""
    return classes if 2 <= classes <= 20 and count >= 2 * classes else 0


def save_image(image: Image.Image, path: pathlib.Path) -> None:
    """Writes a picture whole or not at all, so that no half picture is left by a kill."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        image.save(partial, format=path.suffix.lstrip(".").upper())
        partial.replace(path)
    except OSError as error:  # Pillow's names no file
        partial.unlink(missing_ok=True)
        raise OSError(f"could not write {path}: {error}") from error


class Writer:
    """Metrics of one run, from the first process only.

    `metrics.jsonl` holds one object a line: {"step": ..., name: value, ...}. Rows beyond `start`,
    which a killed run may have left, are dropped: they are about to be made again.
    """

    def __init__(self, workdir: pathlib.Path, start: int, steps: int, batch_size: int) -> None:
        self._on = jax.process_index() == 0
        self._total, self._batch_size = steps, batch_size
        if not self._on:
            return
        path = workdir / "metrics.jsonl"
        if path.exists():
            rows = [line for line in path.read_text().splitlines() if _step(line) <= start]
            partial = path.with_name(path.name + ".partial")
            partial.write_text("".join(f"{row}\n" for row in rows))
            partial.replace(path)
        self._jsonl = path.open("a")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1)
        # A bar belongs on a screen; a log file gets a line per row instead.
        self._bar = tqdm(
            total=steps * batch_size,
            initial=start * batch_size,
            unit="img",
            unit_scale=True,
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
        )
        self._started, self._first = time.monotonic(), start

    def advance(self, steps: int = 1) -> None:
        """Moves the progress bar."""
        if self._on:
            self._bar.update(steps * self._batch_size)

    def say(self, message: str) -> None:
        """A line for the reader, above the bar."""
        if self._on:
            with tqdm.external_write_mode():
                print(message, flush=True)

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """One row of metrics at `step`."""
        if not self._on:
            return
        values = {name: float(value) for name, value in values.items()}
        row = {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._jsonl.write(json.dumps({"step": step} | row) + "\n")
        self._jsonl.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        text = "  ".join(f"{k} {v:.4g}" for k, v in values.items() if k != "time/data_wait")
        if self._bar.disable:
            left = (self._total - step) * (time.monotonic() - self._started)
            left = left / max(step - self._first, 1)
            print(f"step {step}/{self._total}  {text}  left {_duration(left)}", flush=True)
        else:
            shown = [k for k in values if k.endswith("/loss")] or list(values)[:1]
            note = "  ".join(f"{k} {values[k]:.4g}" for k in shown)
            self._bar.set_postfix_str(f"step {step}  {note}", refresh=False)

    def image(self, step: int, name: str, picture: Image.Image) -> None:
        """Shows a picture in TensorBoard."""
        if self._on:
            array = np.asarray(picture)
            self._board.add_image(name, array, step, dataformats="HW" if array.ndim == 2 else "HWC")

    def close(self) -> None:
        """Flushes and closes everything."""
        if self._on:
            self._bar.close()
            self._board.close()
            self._jsonl.close()


def _step(line: str) -> float:
    """The step of a row; infinite for a line that a kill cut short."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
