"""What steps report, averaged; and the end of a run whose numbers are no longer finite."""

import math
import time
from collections.abc import Mapping

import jax

from aigc_jax.training.checkpoint import Checkpoints
from aigc_jax.training.writers import Writer


class NonFiniteError(RuntimeError):
    """Too many steps in a row had a loss or gradient that was not finite."""


class Meter:
    """Averages what steps report, one step late, so that the host never waits for the newest."""

    def __init__(
        self, writer: Writer, batch_size: int, max_skipped: int, checkpoints: Checkpoints
    ) -> None:
        self._writer, self._batch_size = writer, batch_size
        self._max_skipped, self._checkpoints = max_skipped, checkpoints
        self._pending: tuple[int, Mapping[str, jax.Array]] | None = None
        self._rows: list[dict[str, float]] = []
        self._busy = self._waited = 0.0
        self._lap = None

    def lap(self) -> None:
        """A step begins."""
        self._lap = time.monotonic()

    def data_ready(self) -> None:
        """Its batch is there."""
        self._waited += time.monotonic() - self._lap

    def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Its metrics are under way; those of the step before are read."""
        before, self._pending = self._pending, (step, metrics)
        self._read(before)
        self._busy += time.monotonic() - self._lap

    def _read(self, pending: tuple[int, Mapping[str, jax.Array]] | None) -> None:
        if pending is None:
            return
        step, metrics = pending
        self._rows.append({k: float(v) for k, v in jax.device_get(dict(metrics)).items()})
        in_row = int(self._rows[-1]["skipped_in_row"])
        if self._max_skipped and in_row >= self._max_skipped:
            self._checkpoints.wait()
            latest = self._checkpoints.latest()
            good = (
                f"the last good checkpoint is step {latest} in {self._checkpoints.folder}"
                if latest is not None
                else "no checkpoint was saved before"
            )
            raise NonFiniteError(
                f"{in_row} steps in a row up to step {step} had a loss or gradient that was not "
                f"finite, and their updates were skipped; {good}. Lower optimizer.learning_rate, "
                "set optimizer.clip, or set the networks' dtype to float32"
            )

    def flush(self, step: int) -> None:
        """Writes the row of the steps since the last one."""
        start = time.monotonic()
        self._read(self._pending)
        self._pending = None
        if not self._rows:
            return
        self._busy += time.monotonic() - start
        names = dict.fromkeys(name for row in self._rows for name in row)
        means = {}
        for name in names:
            values = [row[name] for row in self._rows if math.isfinite(row.get(name, math.nan))]
            means[name] = sum(values) / len(values) if values else math.nan
        means["skipped"] = self._rows[-1]["skipped"]
        del means["skipped_in_row"]
        means["time/images_per_second"] = self._batch_size * len(self._rows) / self._busy
        means["time/data_wait"] = self._waited / self._busy
        self._writer.scalars(step, means)
        self._rows, self._busy, self._waited = [], 0.0, 0.0
