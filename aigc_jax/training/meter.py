"""What steps report, averaged; and whether the run is still sound."""

import math
import statistics
import time
from collections import deque
from collections.abc import Mapping

from aigc_jax.errors import RunError
from aigc_jax.training.checkpoint import Checkpoints
from aigc_jax.training.step import Metrics
from aigc_jax.training.writers import Writer

# A loss this many times its usual size belongs to a run that has diverged; usual is the median of
# as many sound steps, and at least 1, since losses cross 0.
EXPLODED, USUAL = 1000.0, 100
REPLICAS = "time/replicas"  # how many runs one program trains, of whose time each has a part
PATIENCE = 50  # times `max_skipped` steps of such a loss, though finite, end a run


class DivergedError(RunError):
    """A run whose numbers are no longer finite, or whose loss has exploded."""


class Meter:
    """Averages what steps report, a dispatch late, so that the host never waits for the newest.

    `replicas` runs are trained by one program, whose whole time each of them measures.

    Attributes:
      unsound_since: steps done before the first of those in a row, up to the newest, that were
        skipped or had a loss that exploded; None where the newest was sound. A checkpoint of that
        step or a later one holds what may have caused it.
    """

    def __init__(
        self,
        writer: Writer,
        batch_size: int,
        max_skipped: int,
        checkpoints: Checkpoints,
        replicas: int = 1,
    ) -> None:
        self._replicas = replicas
        self._writer, self._batch_size = writer, batch_size
        self._max_skipped, self._checkpoints = max_skipped, checkpoints
        self._pending: tuple[int, Metrics] | None = None
        self._rows: list[dict[str, float]] = []
        self._busy = self._waited = 0.0
        self._lap = None
        self._usual: dict[str, deque[float]] = {}
        self.unsound_since: int | None = None

    def lap(self) -> None:
        """A dispatch begins."""
        self._lap = time.monotonic()

    def data_ready(self) -> None:
        """Its batches are there."""
        self._waited += time.monotonic() - self._lap

    def add(self, step: int, metrics: Metrics) -> None:
        """The metrics of its steps, up to `step`, are under way; the ones before are read."""
        before, self._pending = self._pending, (step, metrics)
        self._read(before)
        self._busy += time.monotonic() - self._lap

    def _read(self, pending: tuple[int, Metrics] | None) -> None:
        if pending is None:
            return
        last, metrics = pending
        rows = metrics.rows()
        for step, row in enumerate(rows, last - len(rows) + 1):
            self._check(step, row)

    def _check(self, step: int, row: Mapping[str, float]) -> None:
        """Notes a step's row; raises DivergedError where the run is no longer sound."""
        self._rows.append(row)
        exploded = self._exploded(row)
        if not exploded and not row["skipped_in_row"]:
            self.unsound_since = None
            return
        if self.unsound_since is None:
            self.unsound_since = step - 1
        if not self._max_skipped:
            return
        if row["skipped_in_row"] >= self._max_skipped:
            raise self._diverged(
                f"{row['skipped_in_row']:.0f} steps in a row up to step {step} had a loss, a "
                "gradient or parameters that were not finite, and their updates were skipped"
            )
        unsound = step - self.unsound_since
        if unsound >= PATIENCE * self._max_skipped:
            what = exploded or "something was not finite"
            raise self._diverged(
                f"{what} since step {self.unsound_since + 1}, for {unsound} steps "
                "(train.max_skipped=0 lets a run go on whatever happens)"
            )
        if exploded and unsound == self._max_skipped:
            self._writer.say(
                f"step {step}: {exploded} since step {self.unsound_since + 1}: the run seems to "
                "have diverged. No checkpoint is saved while that lasts, and after "
                f"{PATIENCE * self._max_skipped} such steps it ends"
            )

    def _exploded(self, row: Mapping[str, float]) -> str:
        """In words, which loss is far above its usual size; "" where none is."""
        found = ""
        for name, value in row.items():
            if name.rpartition("/")[2] != "loss" or not math.isfinite(value):
                continue
            usual = self._usual.setdefault(name, deque(maxlen=USUAL))
            typical = math.inf
            if usual and abs(value) > EXPLODED:  # a median is dear, and usual is at least 1
                typical = max(statistics.median(usual), 1.0)
            if abs(value) > EXPLODED * typical:
                found = f"{name} is {value:.3g}, and was around {typical:.3g} before"
            elif not row["skipped_in_row"]:
                usual.append(abs(value))
        return found

    def may_save(self, step: int, last: bool) -> bool:
        """Whether a checkpoint of now would be a good one, or the run goes on whatever happens.

        One bad batch does not keep the `last` checkpoint of a run, or before a stop, from it.
        """
        if self.unsound_since is None or not self._max_skipped:
            return True
        if last and step - self.unsound_since == 1:
            return True
        self._writer.say(
            f"step {step}: no checkpoint, since from step {self.unsound_since + 1} on something is "
            "not finite, or the loss has exploded"
        )
        return False

    def finish(self, step: int) -> None:
        """Raises DivergedError where a run ends while it is unsound, by more than one bad batch."""
        unsound = 0 if self.unsound_since is None else step - self.unsound_since
        if unsound > 1 and self._max_skipped:
            raise self._diverged(
                f"the last {unsound} steps, up to step {step}, had a loss, a "
                f"gradient or parameters that were not finite, or a loss over {EXPLODED:.0f} times "
                "its usual size"
            )

    def _diverged(self, what: str) -> DivergedError:
        self._checkpoints.wait()
        steps = self._checkpoints.steps()
        good = [s for s in steps if s < self.unsound_since]
        doubtful = [s for s in steps if s == self.unsound_since]
        if good:
            found = f"The last good checkpoint is that of step {good[-1]}"
        elif doubtful:
            found = f"No checkpoint is known to be good: the first loss after step {doubtful[-1]},"
            found += " the oldest that is kept, was not sound"
        else:
            found = "No checkpoint from before that is kept"
        remedy = "with another setting, such as a lower optimizer.learning_rate, optimizer.clip, "
        remedy += "or train.precision=float32"
        if good or doubtful:
            from_step = f"--from-step={(good or doubtful)[-1]}"
            return DivergedError(
                f"{what}. {found} in {self._checkpoints.folder}: the same command with {from_step} "
                f"goes on from it {remedy}"
            )
        return DivergedError(f"{what}. {found}: start anew in another --workdir {remedy}")

    def catch_up(self) -> None:
        """Reads the metrics that are still under way."""
        self._read(self._pending)
        self._pending = None

    def flush(self, step: int) -> None:
        """Writes the row of the steps since the last one."""
        start = time.monotonic()
        self.catch_up()
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
        if self._replicas > 1:
            means[REPLICAS] = self._replicas
        self._writer.scalars(step, means)
        self._rows, self._busy, self._waited = [], 0.0, 0.0
