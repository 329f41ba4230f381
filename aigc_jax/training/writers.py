"""What a run reports: a progress bar, metrics as JSON lines and in TensorBoard."""

import contextlib
import json
import math
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image
from tqdm import tqdm

from aigc_jax import files
from aigc_jax.training.trackers import Tracker, Trackers

# tensorboardX imports torch, where there is one, to take tensors that it is never given here: two
# seconds of each start.
_hidden = {} if "torch" in sys.modules else {"torch": None}
sys.modules.update(_hidden)
try:
    from tensorboardX import SummaryWriter
finally:
    for _name in _hidden:
        del sys.modules[_name]


OnRow = Callable[[int, Mapping[str, float]], bool | None]


class Watch(NamedTuple):
    """Who follows a run beside the files in its folder.

    Attributes:
      rows: whether a terminal shows them and a progress bar; of several runs at once one does.
      on_row: called with each row, its step and values; a true result asks the run to stop.
      trackers: names of experiment trackers, of `trackers.TRACKERS`.
    """

    rows: bool = True
    on_row: OnRow | None = None
    trackers: Sequence[str] = ()


WATCH = Watch()


class Writer:
    """Metrics of one run, from the first process only.

    `metrics.jsonl` holds one object a line: {"step": ..., name: value, ...}. Rows beyond `start`,
    which a killed run may have left, are dropped: they are about to be made again.

    Args:
      watch: who is told beside.
      trackers: of those that it names, open; closed with the writer.

    Attributes:
      stopping: whether it has asked.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        start: int,
        steps: int,
        batch_size: int,
        watch: Watch = WATCH,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self._watch, self.stopping = watch, False
        self._trackers = Trackers(trackers, say)
        self._on = jax.process_index() == 0
        self._total, self._batch_size = steps, batch_size
        if not self._on:
            return
        path = workdir / "metrics.jsonl"
        if path.exists():
            lines = path.read_text(errors="replace").splitlines()
            rows = [line for line in lines if _step(line) <= start]
            lost = sum(_step(line) == math.inf for line in lines[:-1])  # a kill cuts the last short
            if lost:
                _print(f"{path}: {lost} lines are no rows of metrics and are left out")
            files.write_text(path, "".join(f"{row}\n" for row in rows))
        self._jsonl = path.open("a")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1)
        # A bar belongs on a screen; a log file gets a line per row instead.
        self._bar = tqdm(
            total=steps * batch_size,
            initial=start * batch_size,
            unit="img",
            unit_scale=True,
            disable=not (watch.rows and sys.stderr.isatty()),
            dynamic_ncols=True,
        )
        self._started, self._first = time.monotonic(), start

    def advance(self, steps: int) -> None:
        """Moves the progress bar by so many steps."""
        if self._on:
            with contextlib.suppress(OSError):  # the terminal was closed
                self._bar.update(steps * self._batch_size)

    def say(self, message: str) -> None:
        """A line for the reader, above the bar."""
        if self._on:
            say(message)

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """One row of metrics at `step`."""
        if not self._on:
            return
        values = {name: float(value) for name, value in values.items()}
        row = {k: v if math.isfinite(v) else None for k, v in values.items()}
        try:
            self._jsonl.write(json.dumps({"step": step} | row) + "\n")
            self._jsonl.flush()
        except OSError as error:
            error.filename = self._jsonl.name  # which a full disk's own error leaves out
            raise
        for name, value in row.items():
            if value is not None:  # TensorBoard warns of what is not finite, each time
                self._board.add_scalar(name, value, step)
        self._trackers.scalars(step, values)
        if self._watch.on_row and self._watch.on_row(step, values):
            self.stopping = True
        if not self._watch.rows:
            return
        text = "  ".join(f"{k} {v:.4g}" for k, v in values.items() if k != "time/data_wait")
        if self._bar.disable:
            left = (self._total - step) * (time.monotonic() - self._started)
            left = left / max(step - self._first, 1)
            _print(f"step {step}/{self._total}  {text}  left {_duration(left)}")
        else:
            shown = [k for k in values if k.endswith("/loss")] or list(values)[:1]
            note = "  ".join(f"{k} {values[k]:.4g}" for k in shown)
            self._bar.set_postfix_str(f"step {step}  {note}", refresh=False)

    def image(self, step: int, name: str, picture: Image.Image) -> None:
        """Shows a picture in TensorBoard."""
        if self._on:
            array = np.asarray(picture)
            self._board.add_image(name, array, step, dataformats="HW" if array.ndim == 2 else "HWC")
            self._trackers.image(step, name, picture)

    def close(self) -> None:
        """Flushes and closes everything."""
        if self._on:
            self._trackers.close()
            with contextlib.suppress(OSError):
                self._bar.close()
            with contextlib.suppress(OSError):  # a full disk is told where a row is written
                self._board.close()
                self._jsonl.close()


def say(message: str) -> None:
    """Prints a line above any bar."""
    with contextlib.suppress(OSError), tqdm.external_write_mode():
        print(message, flush=True)


def _print(text: str) -> None:
    """Prints; a terminal that was closed, or a full disk below a log, does not end a run."""
    with contextlib.suppress(OSError):
        print(text, flush=True)


def _step(line: str) -> float:
    """The step of a row; infinite for a line that is none, such as one that a kill cut short."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, LookupError, TypeError):
        return math.inf


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
