"""The training loop: evaluate, save, batch, step, log; killed at any point, it resumes there."""

import contextlib
import itertools
import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from aigc_jax.data import feed as feeds
from aigc_jax.data.sources import Source
from aigc_jax.errors import SettingError
from aigc_jax.family import Family
from aigc_jax.training import sharding, stop
from aigc_jax.training.checkpoint import CheckpointError, Checkpoints, digests
from aigc_jax.training.meter import Meter
from aigc_jax.training.profile import Profiler
from aigc_jax.training.step import Metrics, Recipe, TrainState, active_phases
from aigc_jax.training.writers import Writer

MOST = 32  # steps a dispatch that are chosen by themselves: a signal is heard between dispatches
Initial = tuple[Mapping[str, Any], Mapping[str, Any]]


class Schedule(NamedTuple):
    """When a run does what; all in steps, 0 for never.

    Attributes:
      steps: of the run.
      log, evaluate, sample, save: one row of metrics, one evaluation, one picture, one checkpoint
        every so many, and at the end.
      first_sample: a picture at this step too, so that a new run soon has something to look at.
      snapshot: one of the averages for post-hoc EMA every so many.
      dispatch: steps that one program makes, started at once; 0: as many as suit the backend.
      phases: every how many steps phases run, of those that do not run in every step; the steps of
        one program have the same phases.
    """

    steps: int
    log: int
    evaluate: int
    sample: int
    save: int
    first_sample: int = 0
    snapshot: int = 0
    dispatch: int = 1
    phases: tuple[int, ...] = ()

    @property
    def distances(self) -> list[int]:
        """Steps between two of each of the things that a run does."""
        each = (self.log, self.evaluate, self.sample, self.save, self.snapshot, self.steps)
        return [steps for steps in each if steps]

    def until_due(self, step: int) -> int:
        """How many steps the next dispatch makes: `dispatch`, but 1 where something is due before.

        Two programs are compiled so, and not one for every distance.
        """
        ends = [(step // each + 1) * each for each in (*self.distances, *self.phases)]
        ends += [self.first_sample] * (self.first_sample > step)
        ends += [step + 1] * any(step % every == 0 for every in self.phases)
        return self.dispatch if min(ends) - step >= self.dispatch else 1


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
    profiler: Profiler | None = None,
) -> TrainState:
    """Trains until `schedule.steps`, resuming by itself from `checkpoints`; gives the last state.

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
      profiler: records some steps; closed by the caller.

    Raises:
      DivergedError: see `max_skipped`; also where the run ends in such a state.
      CheckpointError: a checkpoint could not be written, none could be read, or the run was
        trained with other frozen networks.
      ValueError: a setting that cannot work, found before anything is written.
    """
    mesh = sharding.make_mesh()
    sharding.check_batch(batch_size, mesh, recipe.microbatches)
    schedule = dispatched(schedule, recipe.family, jax.default_backend())
    target = sharding.abstract_state(recipe, mesh, mode)
    parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(target.params))
    restored = checkpoints.restore(target, from_step)
    start = restored[1] if restored else 0
    if profiler:
        profiler.wanted.check(schedule.steps, start)
    if restored and start >= schedule.steps:
        _say_done(checkpoints, start, schedule.steps)
        return restored[0]
    run_steps, known = _compiled(recipe, mesh, target, mode, schedule, profiler)
    if restored:
        check_constants(checkpoints.about(start).get("constants", {}), known)
    with _fed(source, mesh, recipe.family, batch_size, seed, start) as take:
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

        state, step = steps(run_steps, state, start, take, schedule, meter, writer, hooks, save)
        checkpoints.wait()
    meter.finish(step)
    if step == schedule.steps:
        writer.say(f"done: step {step}, samples and checkpoints in {checkpoints.folder.parent}")
    else:
        latest = checkpoints.latest() or 0
        writer.say(f"stopped at step {step}; the same command goes on from step {latest}")
    return state


@contextlib.contextmanager
def _fed(
    source: Source, mesh: Any, family: Family, batch_size: int, seed: int, start: int
) -> Iterator[Callable[[int, int], tuple[Any, Any]]]:
    """(step, number of steps) -> what a dispatch of these is given: columns of all training data on
    the devices, {} if they stay on the host, and the feed."""
    plan = {
        "batch_size": batch_size,
        "seed": seed,
        "batches_per_step": family.batches_per_step,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
    }
    columns, feed = feeds.opened(source, start, **plan)
    sharding.check_same({"their training data": list(columns.values())})
    with contextlib.closing(feed):
        resident = sharding.place(columns, mesh)
        put = partial(sharding.put, mesh, axis=2)
        if resident and jax.process_count() == 1:
            put = dict  # a few numbers, which a program takes from the host in a third of the time
        yield lambda step, count: (resident, put(feed.take(step, count)))


def _compiled(
    recipe: Recipe,
    mesh: Any,
    target: TrainState,
    mode: str,
    schedule: Schedule,
    profiler: Profiler | None,
) -> tuple[Callable[..., tuple[TrainState, Metrics]], dict[str, int]]:
    """((step, state, resident, feed) -> (state, metrics), {frozen network: its digest})."""
    constants = recipe.family.constants() if recipe.family.constants else {}
    constants = sharding.place(constants, mesh, mode)
    compiled = sharding.compile_steps(recipe, mesh, target, constants)

    def plan(step: int) -> tuple[tuple[int, ...], int]:
        return active_phases(recipe.family, step), schedule.until_due(step)

    def run_steps(
        step: int, state: TrainState, resident: Any, feed: Any
    ) -> tuple[TrainState, Metrics]:
        given = state, constants, resident, feed
        # Rows come from the host; all else is there already.
        guard = jax.transfer_guard_device_to_host if resident else jax.transfer_guard
        with guard("disallow"):
            if profiler:
                return profiler.run(compiled, plan, step, *given)
            return compiled(active_phases(recipe.family, step), *given)

    return run_steps, digests_of(constants)


def steps(
    run_steps: Callable[..., tuple[TrainState, Metrics]],
    state: TrainState,
    start: int,
    take: Callable[[int, int], tuple[Any, Any]],
    schedule: Schedule,
    meter: Meter,
    writer: Writer,
    hooks: Hooks,
    save: Callable[[TrainState, int, bool], None],
) -> tuple[TrainState, int]:
    """Steps until the schedule's end or a signal, and what is due in between; the last step too."""
    step = start
    with stop.asked() as stopped:
        for number in itertools.count():
            stopping = stopped(number) or writer.stopping
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
            count = schedule.until_due(step)
            meter.lap()
            given = take(step, count)
            meter.data_ready()
            state, metrics = run_steps(step, state, *given)
            step += count
            meter.add(step, metrics)
            writer.advance(count)
            if due(schedule.log, step, start, schedule.steps):
                meter.flush(step)
    raise AssertionError("the last step returns")


def dispatched(schedule: Schedule, family: Family, backend: str) -> Schedule:
    """The schedule with as many steps of a program as are asked for, or as suit a backend.

    A CPU makes one, see `train_steps`; others the number up to `MOST` that needs the fewest
    dispatches from one thing that is due to the next, counting those that make one step.

    Raises:
      ValueError: more steps than lie between two things that are due.
    """
    schedule = schedule._replace(phases=tuple({p.every for p in family.phases} - {1}))
    shortest = min([*schedule.distances, *(every - 1 for every in schedule.phases)])
    if schedule.dispatch > shortest:
        raise SettingError(
            f"train.steps_per_dispatch={schedule.dispatch} is more than the {shortest} steps after "
            "which something is due (log.every, log.eval_every, log.sample_every, checkpoint.every "
            "or the run's end) or a phase runs that other steps lack: set it to "
            f"{shortest} or less, or 0 to have it chosen"
        )
    if schedule.dispatch or backend == "cpu":
        return schedule._replace(dispatch=schedule.dispatch or 1)
    steps = range(1, min(MOST, shortest) + 1)
    return schedule._replace(dispatch=min(steps, key=lambda k: shortest // k + shortest % k))


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
