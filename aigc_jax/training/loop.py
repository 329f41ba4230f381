"""The training loop: evaluate, save, batch, step, log; killed at any point, it resumes there."""

import contextlib
import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from aigc_jax.data import loader
from aigc_jax.data.sources import Source
from aigc_jax.training import sharding, stop
from aigc_jax.training.checkpoint import CheckpointError, Checkpoints, digests
from aigc_jax.training.meter import Meter
from aigc_jax.training.step import Recipe, TrainState, active_phases
from aigc_jax.training.writers import Writer

Initial = tuple[Mapping[str, Any], Mapping[str, Any]]


class Schedule(NamedTuple):
    """When a run does what; all in steps, 0 for never.

    Attributes:
      steps: of the run.
      log, evaluate, sample, save: one row of metrics, one evaluation, one picture, one checkpoint
        every so many, and at the end.
      first_sample: a picture at this step too, so that a new run soon has something to look at.
      snapshot: one of the averages for post-hoc EMA every so many.
    """

    steps: int
    log: int
    evaluate: int
    sample: int
    save: int
    first_sample: int = 0
    snapshot: int = 0


class Hooks(NamedTuple):
    """What a run does beside training, called with (state, step).

    Attributes:
      evaluate: metrics of the state.
      sample: pictures of it.
      prepare: -> a tree of arrays to store with its checkpoint, such as a fitted prior; {}: none.
      snapshot: stores the averages that others are made of afterwards.
    """

    evaluate: Callable[[TrainState, int], None]
    sample: Callable[[TrainState, int], None]
    prepare: Callable[[TrainState, int], Any]
    snapshot: Callable[[TrainState, int], None]


def train(
    recipe: Recipe,
    source: Source,
    *,
    schedule: Schedule,
    batch_size: int,
    seed: int,
    mode: str,
    max_skipped: int,
    checkpoints: Checkpoints,
    about: Mapping[str, Any],
    begin: Callable[[int, int, Mapping[str, Any]], tuple[Writer, Hooks]],
    initial: Callable[[], Initial] | None = None,
    from_step: int | None = None,
) -> TrainState:
    """Trains until `schedule.steps`, resuming by itself from `checkpoints`.

    Args:
      recipe: what stays the same over the run.
      source: training data.
      batch_size: global; seed: of all randomness; mode: see `sharding.state_sharding`.
      max_skipped: steps in a row with anything that is not finite before the run stops; 0: never.
      checkpoints: where the run lies, closed by the caller; about: JSON beside each.
      begin: (step to start from, number of parameters, JSON beside checkpoints) -> (writer, hooks).
        Called once all settings are found to work: writes config.json, spec.json, origin.json.
      initial: () -> ({player: parameters} to start from instead of random ones, {name: what of
        `extra` goes with them}), called by a new run only: one that resumes needs it no more.
      from_step: goes on from the checkpoint of that step; None for the newest. Newer ones are set
        aside.

    Returns:
      The last state.

    Raises:
      DivergedError: see `max_skipped`; also where the run ends in such a state.
      CheckpointError: a checkpoint could not be written, none could be read, or the run was
        trained with other frozen networks.
      ValueError: a setting that cannot work, found before anything is written.
    """
    mesh = sharding.make_mesh()
    sharding.check_batch(batch_size, mesh)
    target = sharding.abstract_state(recipe, mesh, mode)
    parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(target.params))
    restored = checkpoints.restore(target, from_step)
    start = restored[1] if restored else 0
    if restored and start >= schedule.steps:
        _say_done(checkpoints, start, schedule.steps)
        return restored[0]
    run_step, known = _compiled(recipe, mesh, target, mode)
    if restored:
        check_constants(checkpoints.about(start).get("constants", {}), known)
    with _batches(source, mesh, recipe.family.batches_per_step, batch_size, seed, start) as batches:
        given = initial() if initial and not restored else ({}, {})
        beside = {**about, "constants": known}
        writer, hooks = begin(start, parameters, beside)
        if restored:
            state = restored[0]
            checkpoints.set_aside_after(start, superseded=from_step is not None)
        else:
            state = _from_weights(sharding.new_state(recipe, target, seed), *given)
        meter = Meter(writer, batch_size, max_skipped, checkpoints)

        def save(state: TrainState, step: int, last: bool) -> None:
            if meter.may_save(step, last):
                checkpoints.save(step, state, beside, prepared=hooks.prepare(state, step))
            if last:
                checkpoints.wait()  # while a signal still finds us listening

        state, step = _steps(run_step, state, start, batches, schedule, meter, writer, hooks, save)
        checkpoints.wait()
    meter.finish(step)
    if step == schedule.steps:
        writer.say(f"done: step {step}, samples and checkpoints in {checkpoints.folder.parent}")
    else:
        latest = checkpoints.latest() or 0
        writer.say(f"stopped at step {step}; the same command goes on from step {latest}")
    return state


@contextlib.contextmanager
def _batches(
    source: Source, mesh: Any, batches_per_step: int, batch_size: int, seed: int, start: int
) -> Iterator[Iterator[Any]]:
    """What each step from `start` on is given, on the devices."""
    batches = loader.batches(
        source,
        batch_size=batch_size,
        seed=seed,
        start=start,
        batches_per_step=batches_per_step,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    with contextlib.closing(batches):
        yield (sharding.put(mesh, batch, axis=1) for batch in batches)


def _compiled(
    recipe: Recipe, mesh: Any, target: TrainState, mode: str
) -> tuple[Callable[[int, TrainState, Any], tuple[TrainState, dict]], dict[str, int]]:
    """((step, state, batch) -> (state, metrics), {name of a frozen network: its digest})."""
    constants = recipe.family.constants() if recipe.family.constants else {}
    constants = sharding.place(constants, mesh, mode)
    compiled = sharding.compile_step(recipe, mesh, target, constants)

    def run_step(step: int, state: TrainState, batch: Any) -> tuple[TrainState, dict]:
        with jax.transfer_guard("disallow"):
            return compiled(active_phases(recipe.family, step), state, constants, batch)

    return run_step, digests_of(constants)


def _steps(
    run_step: Callable[[int, TrainState, Any], tuple[TrainState, dict]],
    state: TrainState,
    start: int,
    batches: Iterator[Any],
    schedule: Schedule,
    meter: Meter,
    writer: Writer,
    hooks: Hooks,
    save: Callable[[TrainState, int, bool], None],
) -> tuple[TrainState, int]:
    """Steps until the schedule's end or a signal, and what is due in between; the last step too."""
    with stop.asked() as stopped:
        for step in range(start, schedule.steps + 1):
            stopping = stopped(step)
            if due(schedule.evaluate, step, start, schedule.steps):
                meter.flush(step)
                hooks.evaluate(state, step)
            first = step == schedule.first_sample and step > start
            if first or due(schedule.sample, step, start, schedule.steps):
                meter.flush(step)
                hooks.sample(state, step)
            if due(schedule.snapshot, step, start, schedule.steps):
                meter.catch_up()
                if meter.may_save(step, last=False):
                    hooks.snapshot(state, step)
            last = step > start and (step == schedule.steps or stopping)
            if last or due(schedule.save, step, start, schedule.steps):
                meter.flush(step)
                save(state, step, last)
            if step == schedule.steps or stopping:
                return state, step
            meter.lap()
            batch = next(batches)
            meter.data_ready()
            state, metrics = run_step(step, state, batch)
            meter.add(step + 1, metrics)
            writer.advance()
            if due(schedule.log, step + 1, start, schedule.steps):
                meter.flush(step + 1)
    raise AssertionError("the last step returns")


def due(every: int, step: int, start: int, steps: int) -> bool:
    """Whether something done `every` so many steps, and at the end, is due at `step`.

    What was due at `start` was done before its checkpoint was written.
    """
    return every > 0 and step > start and (step % every == 0 or step == steps)


def digests_of(constants: Mapping[str, Any]) -> dict[str, int]:
    """{name of a frozen network: a number of its weights}, by which a checkpoint knows it."""

    def of(tree: Any) -> int:
        return zlib.crc32(json.dumps(digests(tree), sort_keys=True).encode())

    return {name: of(tree) for name, tree in constants.items()}


def check_constants(saved: Mapping[str, int], ours: Mapping[str, int]) -> None:
    """Raises CheckpointError where a run goes on with other frozen networks than it began with."""
    wrong = sorted(name for name in saved.keys() | ours.keys() if saved.get(name) != ours.get(name))
    if wrong:
        raise CheckpointError(
            f"this run was trained with other weights of its frozen network {', '.join(wrong)}: "
            "give the file that it began with, or start anew in another --workdir"
        )


def _say_done(checkpoints: Checkpoints, done: int, steps: int) -> None:
    if jax.process_index() == 0:
        text = f"this run has done {done} of {steps} steps (train.steps)"
        print(f"{checkpoints.folder.parent}: nothing to do, {text}", flush=True)


def _from_weights(
    state: TrainState, initial: Mapping[str, Any], transferred: Mapping[str, Any]
) -> TrainState:
    """The state with given parameters, their averages the same, and what of `extra` goes along."""

    def taken(own: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        def put(x: jax.Array, w: Any) -> jax.Array:
            return jax.device_put(np.asarray(w, x.dtype), x.sharding)

        new = {name: jax.tree.map(put, own[name], tree) for name, tree in given.items()}
        return {**own, **new}

    params = taken(state.params, initial)

    def begun(averages: Mapping[str, Any]) -> dict[str, Any]:
        """Averages of the given parameters, in buffers of their own."""
        new = {p: jax.tree.map(lambda x: x + 0, params[p]) for p in averages.keys() & initial}
        return {**averages, **new}

    return state.replace(
        params=params,
        ema=begun(state.ema),
        averages={name: begun(average) for name, average in state.averages.items()},
        extra=taken(state.extra, transferred),
    )
