"""The training loop: evaluate, save, batch, step, log; killed at any point, it resumes there."""

import contextlib
import itertools
import math
import operator
import pathlib
import signal
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from aigc_jax.data import augment, loader
from aigc_jax.data.datasets import Dataset
from aigc_jax.evaluation.evaluators import per_example
from aigc_jax.family import Family
from aigc_jax.sampling import draw
from aigc_jax.training import optimizers, rundir, sharding
from aigc_jax.training.checkpoint import Checkpoints
from aigc_jax.training.step import Recipe, TrainState, active_phases, ema_decay
from aigc_jax.training.writers import Writer, grid, save_image

BETTER = {"min": operator.lt, "max": operator.gt}  # of checkpoint.best_mode


class NonFiniteError(RuntimeError):
    """Too many steps in a row had a loss or gradient that was not finite."""


def recipe(config: Mapping[str, Any], family: Family) -> Recipe:
    """What a config says about steps: optimizers, EMA, augmentation."""
    players = jax.eval_shape(family.init, jax.random.key(0))[0].keys()
    batch_size = config["train"]["batch_size"]
    chosen = dict(config["augment"])

    def prepare(batch: Mapping[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        image = augment.augment(key, augment.to_float(batch["image"]), **chosen)
        return {**batch, "image": image}

    return Recipe(
        family=family,
        optimizers=optimizers.per_player(config["optimizer"], players),
        ema_decay=partial(ema_decay, batch_size=batch_size, **config["ema"]),
        prepare=prepare,
    )


def train(
    config: Mapping[str, Any],
    workdir: str | pathlib.Path,
    family: Family,
    dataset: Dataset,
    initial: Mapping[str, Any] | None = None,
) -> TrainState:
    """Trains until `train.steps`, resuming by itself what lies in `workdir`.

    Args:
      config: the experiment's config.
      workdir: folder of the run; gets config.json, spec.json, metrics.jsonl, tensorboard/,
        samples/, checkpoints/ and best/.
      family: the built family.
      dataset: the open data set.
      initial: {player: parameters} to start from instead of random ones, at step 0 only.

    Returns:
      The last state.

    Raises:
      RunMismatch: the folder holds a run with another config.
      NonFiniteError: see `train.max_skipped`.
      CheckpointError: a checkpoint could not be written, or none of those there could be read.
      ValueError: a setting that cannot work, found before anything is written.
    """
    workdir = pathlib.Path(workdir)
    settings, log, keep = config["train"], config["log"], config["checkpoint"]
    steps, batch_size = settings["steps"], settings["batch_size"]
    mesh = sharding.make_mesh()
    sharding.check_batch(batch_size, mesh)
    if keep["best_mode"] not in BETTER:
        raise ValueError(f"checkpoint.best_mode is min or max, not {keep['best_mode']!r}")
    plan = recipe(config, family)
    target = sharding.abstract_state(plan, mesh, settings["sharding"])
    run_step = sharding.compile_step(plan, mesh, target)

    with contextlib.ExitStack() as stack:
        checkpoints = Checkpoints(workdir / "checkpoints", keep["keep"], clean=True)
        stack.callback(checkpoints.close)
        if checkpoints.steps():
            rundir.check_same(workdir, config)
        restored = checkpoints.restore(target)
        if restored and restored[1] >= steps:
            if jax.process_index() == 0:
                done = f"this run has done {restored[1]} of {steps} steps (train.steps)"
                print(f"{workdir}: nothing to do, {done}", flush=True)
            return restored[0]
        if jax.process_index() == 0:
            rundir.write(workdir, "config.json", rundir.as_dict(config))
            rundir.write(workdir, "spec.json", dataset.spec._asdict())
        if restored:
            state, start = restored
            checkpoints.set_aside_after(start)
        else:
            state, start = sharding.new_state(plan, target, config["seed"]), 0
            if initial:
                state = _from_weights(state, initial)

        writer = Writer(workdir, start, steps, batch_size)
        stack.callback(writer.close)
        count = sum(math.prod(x.shape) for x in jax.tree.leaves(target.params))
        writer.say(
            f"{workdir}: {'resuming at' if restored else 'starting at'} step {start} of {steps}, "
            f"{count:,} parameters, batch {batch_size} on {mesh.size} "
            f"{jax.default_backend()} device(s), {settings['sharding']}"
        )
        observe = _Observer(config, workdir, family, dataset, mesh, plan, writer)
        stack.callback(observe.close)
        batches = loader.batches(
            dataset.sources[config["data"]["train_split"]],
            batch_size=batch_size,
            seed=config["seed"],
            start=start,
            fresh=family.fresh,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        stack.callback(batches.close)
        meter = _Meter(writer, batch_size, settings["max_skipped"], checkpoints)
        stopped = stack.enter_context(_stop_signal())
        for step in range(start, steps + 1):
            last = step == steps
            stopping = stopped(step)
            new = step > start  # what was due at `start` was done before that checkpoint

            def due(every: int, step: int = step, last: bool = last, new: bool = new) -> bool:
                return bool(every) and new and (step % every == 0 or last)

            if due(log["eval_every"]):
                meter.flush(step)
                metrics = observe.evaluate(state, step)
                observe.keep_best(state, step, metrics)
            if due(log["sample_every"]):
                meter.flush(step)
                observe.sample(state, step)
            if new and (due(keep["every"]) or last or stopping):
                meter.flush(step)
                checkpoints.save(step, state, {"config": rundir.as_dict(config)})
            if last or stopping:
                break
            meter.lap()
            batch = sharding.put(mesh, next(batches), axis=1)
            meter.data_ready()
            with jax.transfer_guard("disallow"):
                state, metrics = run_step(active_phases(family, step), state, batch)
            meter.add(step + 1, metrics)
            writer.advance()
            if (step + 1) % log["every"] == 0:
                meter.flush(step + 1)
        checkpoints.wait()
        if stopping and not last:
            writer.say(f"stopped by a signal at step {step}, saved; the same command resumes it")
        else:
            writer.say(f"done: step {step}, samples and checkpoints in {workdir}")
    return state


class _Meter:
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
                "set optimizer.clip, or compute in network.dtype=float32"
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


class _Observer:
    """What a run looks at on a schedule: test metrics, samples from the same noise, the best."""

    def __init__(
        self,
        config: Mapping[str, Any],
        workdir: pathlib.Path,
        family: Family,
        dataset: Dataset,
        mesh: Any,
        plan: Recipe,
        writer: Writer,
    ) -> None:
        self._config, self._workdir, self._family = config, workdir, family
        self._dataset, self._mesh, self._writer = dataset, mesh, writer
        best = config["checkpoint"]["best"]
        self._best = Checkpoints(workdir / "best", keep=1, clean=True) if best else None

        @jax.jit
        def evaluate(params: Any, extra: Any, batch: Any, key: jax.Array) -> Any:
            image = augment.to_float(batch["image"])
            return family.evaluate(params, extra, {**batch, "image": image}, key)

        self._evaluate = evaluate

    def evaluate(self, state: TrainState, step: int) -> dict[str, float]:
        """Means of the family's per-example metrics over the test split, with the EMA."""
        config = self._config
        batch_size, split = config["train"]["batch_size"], config["data"]["test_split"]
        batches = loader.epoch(
            self._dataset.sources[split],
            batch_size=batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        limit = config["evaluation"]["examples"]
        batches = itertools.islice(batches, -(-limit // batch_size) if limit else None)
        params = {**state.params, **state.ema}
        values = per_example(
            lambda batch, key: self._evaluate(params, state.extra, batch, key),
            (sharding.put(self._mesh, batch) for batch in batches),
            jax.random.key(config["seed"]),
        )
        metrics = {f"{split}/{name}": value for name, value in values.items()}
        self._writer.scalars(step, metrics)
        return metrics

    def keep_best(self, state: TrainState, step: int, metrics: Mapping[str, float]) -> None:
        """Saves the state in best/ if the chosen metric is the best so far."""
        if self._best is None:
            return
        setting = self._config["checkpoint"]
        name = setting["best"]
        if name not in metrics:
            raise ValueError(f"checkpoint.best is {name!r}; there are {', '.join(metrics)}")
        if not math.isfinite(metrics[name]):
            return
        self._best.wait()
        latest = self._best.latest()
        if latest is not None:
            try:
                before = self._best.about(latest)["metrics"][name]
            except Exception:  # whatever Orbax makes of a damaged file
                self._best.set_aside_after(latest - 1)
            else:
                if latest >= step or not BETTER[setting["best_mode"]](metrics[name], before):
                    return
        about = {"config": rundir.as_dict(self._config), "metrics": dict(metrics)}
        self._best.save(step, state, about)

    def sample(self, state: TrainState, step: int) -> None:
        """A grid from the same noise and labels each time."""
        log, classes = self._config["log"], self._dataset.spec.num_classes
        images = draw(
            self._family.sample,
            {**state.params, **state.ema},
            state.extra,
            self._mesh,
            seed=self._config["seed"],
            count=log["samples"],
            labels=range(classes) if classes else None,
        )
        picture = grid(np.concatenate(list(images)), columns=columns(log["samples"], classes))
        if jax.process_index() == 0:
            save_image(picture, self._workdir / "samples" / f"{step:08d}.png")
        self._writer.image(step, "samples", picture)

    def close(self) -> None:
        if self._best is not None:
            self._best.close()


def columns(count: int, classes: int) -> int:
    """Columns of a grid: one a class where that makes at least two rows, else about square."""
    return classes if 2 <= classes <= 20 and count >= 2 * classes else 0


def _from_weights(state: TrainState, initial: Mapping[str, Any]) -> TrainState:
    """The state with given parameters, and their EMA the same."""
    params, ema = dict(state.params), dict(state.ema)
    for player, tree in initial.items():
        own = state.params[player]
        params[player] = jax.tree.map(
            lambda x, w: jax.device_put(np.asarray(w, x.dtype), x.sharding), own, tree
        )
        if player in ema:
            ema[player] = jax.tree.map(lambda x: x + 0, params[player])  # buffers of its own
    return state.replace(params=params, ema=ema)


@contextlib.contextmanager
def _stop_signal() -> Iterator[Any]:
    """Yields step -> whether SIGTERM has come (to any process, agreed on by all)."""
    received = []

    def agreed(step: int) -> bool:
        if jax.process_count() == 1:
            return bool(received)
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)

    if jax.process_count() > 1:  # jax.distributed watches for the signal itself
        yield agreed
        return
    before = signal.signal(signal.SIGTERM, lambda *_: received.append(True))
    try:
        yield agreed
    finally:
        signal.signal(signal.SIGTERM, before)
