"""What a run looks at on a schedule: test metrics, samples, reconstructions; what it keeps."""

import math
import operator
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from aigc_jax import files, modalities, streams
from aigc_jax.checks import one_of
from aigc_jax.errors import SettingError
from aigc_jax.evaluation.features import subsample
from aigc_jax.evaluation.metrics import diversity
from aigc_jax.evaluation.per_example import natural
from aigc_jax.evaluation.results import Row
from aigc_jax.family import Variables
from aigc_jax.modalities.image import grid_columns, save_image
from aigc_jax.runs import evaluate, examples, pictures
from aigc_jax.runs.averages import Snapshots
from aigc_jax.sampling.driver import draw
from aigc_jax.training import ema, sharding
from aigc_jax.training.checkpoint import Checkpoints
from aigc_jax.training.loop import Hooks
from aigc_jax.training.step import TrainState
from aigc_jax.training.writers import Writer

BETTER = {"min": operator.lt, "max": operator.gt}
COLLAPSED = 0.3  # of test examples' mean distance, below which samples are said to be nearly alike
COLUMNS = 10  # test examples shown beside their reconstructions
PAIRS = 500  # of samples whose distance is taken


def check_settings(
    log: Mapping[str, Any], keep: Mapping[str, Any], *, test_split: str, names: Iterable[str]
) -> None:
    """Raises ValueError for settings that cannot work; called before anything is written.

    Args:
      log, keep: `config.log` and `config.checkpoint`.
      test_split: by which metrics of examples are named.
      names: of the metrics that the schedule gives; looked at where `checkpoint.best` names one.
    """
    if (log["sample_every"] or log["first_sample"]) and log["samples"] < 1:
        raise SettingError(
            f"log.samples is at least 1, not {log['samples']}; log.sample_every=0 and "
            "log.first_sample=0 draw none"
        )
    best = keep["best"]
    one_of("checkpoint.best_mode", keep["best_mode"], BETTER)
    if best and not best.startswith((f"{test_split}/", "eval/")):
        raise SettingError(
            f"checkpoint.best begins with {test_split}/ or, of samples, with eval/, and is not "
            f"{best!r}"
        )
    if not best:
        return
    known = []
    for name in names:  # until it is found: some names take a trace to know
        if name == best:
            return
        known.append(name)
    if best.startswith("eval/") and not any(name.startswith("eval/") for name in known):
        raise SettingError(
            f"checkpoint.best is {best!r}, but no samples are judged on the schedule: set "
            "evaluation.scheduled_count, or another metric"
        )
    one_of("checkpoint.best", best, known)


class Observer:
    """What a run looks at on a schedule, always with the averages where a player has them.

    Args:
      workdir: folder of the run; gets samples/, reconstructions/, evaluations/ and best/.
      writer: where numbers and words go.
      evaluator: of the scheduled evaluations. Samples for pictures come from its driver too, so
        that each program is compiled once.
      samples: how many a picture shows.
      best: the metric by which the best checkpoint is kept, such as "test/loss"; "" keeps none.
      best_mode: "min" or "max".
      about: JSON that is saved beside the best checkpoint, as beside every other.
      run: see `Checkpoints`.
      from_step: where the run goes on from an earlier checkpoint: a best one after it is set aside.
      snapshots: where averages for post-hoc EMA are stored; closed by the caller. None: nowhere.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        writer: Writer,
        evaluator: evaluate.Evaluator,
        *,
        samples: int,
        best: str,
        best_mode: str,
        about: Mapping[str, Any],
        run: str = "",
        from_step: int | None = None,
        snapshots: Snapshots | None = None,
    ) -> None:
        self._workdir, self._writer, self._evaluator = workdir, writer, evaluator
        self._family, self._data, self._mesh = evaluator.family, evaluator.data, evaluator.mesh
        self._modality = modalities.of(self._data.spec.kind)
        self._samples, self._about = samples, dict(about)
        self._best_metric, self._better = best, BETTER[best_mode]
        self._best = Checkpoints(workdir / "best", keep=1, clean=True, run=run) if best else None
        if self._best and from_step is not None:
            self._best.set_aside_after(from_step, superseded=True)
        self._prepared: tuple[int, Any] = (-1, {})  # of which step, and what
        self._shown, self._snapshots = False, snapshots
        if evaluator.left_out:
            lacking = ", ".join(f"{row.key} {row.note}" for row in evaluator.left_out)
            writer.say(f"left out of the scheduled evaluations: {lacking}")

    @property
    def hooks(self) -> Hooks:
        """What the training loop calls."""
        return Hooks(self.evaluate_and_keep, self.sample, self.prepare, self.snapshot)

    def close(self) -> None:
        """Waits until the best checkpoint is written."""
        if self._best is not None:
            self._best.close()

    def prepare(self, state: TrainState, step: int) -> Any:
        """What `Drawing.prepare` makes of the averages, computed once a step; {} for none."""
        if self._prepared[0] != step:
            codes = partial(examples.training_codes, data=self._data, mesh=self._mesh)
            found = examples.prepare(self._family, _variables(state), self._mesh, codes)
            self._prepared = (step, found.prepared)
        return self._prepared[1]

    def snapshot(self, state: TrainState, step: int) -> None:
        """Stores the averages that others are made of afterwards."""
        if self._snapshots is not None:
            self._snapshots.save(state, step)

    def evaluate_and_keep(self, state: TrainState, step: int) -> None:
        """Writes the metrics of a state, and keeps it where it is the best so far."""
        self.keep_best(state, step, self.evaluate(state, step))

    def evaluate(self, state: TrainState, step: int) -> dict[str, float]:
        """The scheduled evaluations: "test/NAME" of test examples, "eval/NAME" of samples."""
        weights = "EMA" if self._family.averaged else "raw"
        averages = partial(_average, state)
        rows = self._evaluator.of_examples(_variables(state), weights=weights, averages=averages)
        for warning in dict.fromkeys(row.note for row in rows if row.note):
            self._writer.say(f"step {step}: {warning}")
        metrics = {f"{self._data.test_split}/{row.key}": row.value for row in rows}
        if self._evaluator.draws:
            rows = self._of_samples(state, step, weights)
            metrics |= {f"eval/{row.key}": row.value for row in rows}
        self._writer.scalars(step, metrics)
        return metrics

    def _of_samples(self, state: TrainState, step: int, weights: str) -> list[Row]:
        variables = _variables(state, self.prepare(state, step))
        seed = self._evaluator.seed
        averages = partial(_average, state)
        found = self._evaluator.of_samples(
            variables, seed=seed, weights=weights, real=False, averages=averages
        )
        rows = [row for row in found if row.n]
        undefined: dict[str, list[str]] = {}  # a young model may draw what no metric is defined for
        for row in found:
            if not row.n:
                undefined.setdefault(row.note, []).append(row.key)
        for note, names in undefined.items():
            self._writer.say(f"step {step}: no {', '.join(names)}: {note}")
        if not rows:
            return []
        result = evaluate.Result(rows, [])
        evaluate.write(self._workdir, f"scheduled-{step:08d}", result, step=step, scheduled=True)
        return rows

    def keep_best(self, state: TrainState, step: int, metrics: Mapping[str, float]) -> None:
        """Saves the state in best/ if the chosen metric is the best so far."""
        if self._best is None:
            return
        name = self._best_metric
        if name.startswith("eval/") and self._evaluator.draws and name not in metrics:
            return  # undefined at this step, as said
        if name not in metrics:
            raise SettingError(f"checkpoint.best is {name!r}; there are {', '.join(metrics)}")
        if not math.isfinite(metrics[name]):
            return
        self._best.wait()
        latest = self._best.latest()
        if latest is not None:
            try:
                about = self._best.about(latest)
            except Exception:  # whatever Orbax makes of a damaged file
                self._best.set_aside_after(latest - 1)
            else:
                before = about["metrics"].get(name)  # None where another metric chose it
                rival = before is not None and math.isfinite(before)
                if latest >= step or (rival and not self._better(metrics[name], before)):
                    return
        about = self._about | {"metrics": dict(metrics)}
        self._best.save(step, state, about, prepared=self.prepare(state, step))

    def sample(self, state: TrainState, step: int) -> None:
        """Pictures of samples from the same noise and labels each time, and of reconstructions.

        Also how much samples differ, with a warning in words where they are nearly alike.
        """
        if self._family.drawing:
            self._draw(state, step)
        if self._family.views and self._family.views.reconstruct:
            self._reconstruct(state, step)

    def _draw(self, state: TrainState, step: int) -> None:
        labels = pictures.labels_of(self._family)
        batches = draw(
            self._evaluator.driver(),
            _variables(state, self.prepare(state, step)),
            self._mesh,
            seed=self._evaluator.seed,
            count=self._samples,
            labels=labels,
        )
        samples = np.concatenate(list(batches))
        real = self._real(len(samples))
        columns = grid_columns(self._samples, len(labels or ()))
        picture = self._modality.picture(samples, real=real, columns=columns)
        path = self._workdir / "samples" / f"{step:08d}.png"
        if jax.process_index() == 0:
            save_image(picture, path)
        if not self._shown:  # so that whoever waits knows where to look
            self._writer.say(f"step {step}: first samples in {path}")
        self._shown = True
        self._writer.image(step, "samples", picture)
        self._diversity(step, samples, real)

    def _real(self, count: int) -> np.ndarray:
        """As many test examples in the model's range, always the same; fewer where are few."""
        source = self._data.dataset.sources[self._data.test_split]
        return self._modality.to_model(source.fetch(subsample(len(source), count))["x"])

    def _diversity(self, step: int, samples: np.ndarray, real: np.ndarray) -> None:
        """How far apart samples are, pixel by pixel, in terms of how far test examples are."""
        if min(len(samples), len(real)) < 2 or not np.isfinite(samples).all():
            return
        flat = (x.reshape(len(x), -1) for x in (samples, real))
        share = diversity.relative(*flat, pairs=PAIRS)
        if not math.isfinite(share):  # test examples that are all the same
            return
        self._writer.scalars(step, {"samples/diversity": share})
        if share < COLLAPSED:
            self._writer.say(
                f"step {step}: samples differ {share:.2g} times as much as test examples do. Early "
                "in training that passes; where it stays it is mode collapse: see Missing modes in "
                "docs/evaluation.md"
            )

    def _reconstruct(self, state: TrainState, step: int) -> None:
        """A picture of test examples above what the model is given of them and makes of that."""
        if self._modality.save is None:  # one example makes no picture
            return
        rows, words = self._reconstructions(_variables(state))
        picture = self._modality.picture(np.concatenate(rows), columns=len(rows[0]))
        folder = self._workdir / "reconstructions"
        if jax.process_index() == 0:
            save_image(picture, folder / f"{step:08d}.png")
            caption = {"caption": "Rows: " + ", ".join(words)}
            files.write_json(folder / f"{step:08d}.json", caption)
        self._writer.image(step, "reconstructions", picture)

    def _reconstructions(self, variables: Variables) -> tuple[list[np.ndarray], Sequence[str]]:
        """Rows of examples [n, ...], and what each row shows.

        Where a pair comes with an original of its own, that stands above it.
        """
        key, strips = streams.evaluation(self._evaluator.seed), []
        reconstruct = self._evaluator.model(variables).reconstruct
        for i, batch in enumerate(examples.examples(self._data, self._mesh, COLUMNS)):
            pairs = reconstruct(batch, jax.random.fold_in(key, i))
            rows, words = [batch["x"]], ["test images"]
            for name in sorted(pairs, key=natural):
                given, reconstruction, *own = pairs[name]
                rows += [*own, given, reconstruction]
                words += [f"original at {name}"] * len(own)
                words += [f"given at {name}", f"reconstruction at {name}"]
            mask, *rows = sharding.fetch([batch["mask"], *rows])
            strips.append([row[mask > 0] for row in rows])
        return [np.concatenate(parts)[:COLUMNS] for parts in zip(*strips, strict=True)], words


def _variables(state: TrainState, prepared: Any = None) -> Variables:
    """What a state computes with outside training: the averages where a player has one."""
    return Variables({**state.params, **state.ema}, state.extra, prepared or {})


def _average(state: TrainState, half_life: float) -> Variables:
    """What a state computes with by another of its averages."""
    average = state.averages[ema.half_life_name(half_life)]
    return Variables({**state.params, **average}, state.extra)
