"""Several runs trained as one program: the same step under `vmap`, each with its seed and numbers.

Each replica is an ordinary run in all else: it draws what it alone would draw, writes its own
folder, and goes on by itself from any of its checkpoints.
"""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from aigc_jax.data import feed as feeds
from aigc_jax.data.sources import Source
from aigc_jax.errors import SettingError
from aigc_jax.training import loop, sharding
from aigc_jax.training.checkpoint import Checkpoints
from aigc_jax.training.loop import Hooks, Schedule
from aigc_jax.training.meter import DivergedError, Meter
from aigc_jax.training.step import Metrics, Recipe, TrainState, active_phases
from aigc_jax.training.writers import Writer

Numbers = Mapping[str, Any]


class Replica(NamedTuple):
    """One of the runs.

    Attributes:
      name: for messages.
      recipe, checkpoints, about, begin: as `loop.train` takes them.
      seed: of all its randomness.
      numbers: {setting: its value}, of those that differ among the runs.
    """

    name: str
    recipe: Recipe
    seed: int
    numbers: Mapping[str, float]
    checkpoints: Checkpoints
    about: Mapping[str, Any]
    begin: Callable[[int, int, Mapping[str, Any]], tuple[Writer, Hooks]]


def train(
    replicas: Sequence[Replica],
    recipe_of: Callable[[Numbers], Recipe],
    source: Source,
    *,
    schedule: Schedule,
    batch_size: int,
    max_skipped: int,
) -> tuple[int, dict[str, DivergedError]]:
    """Trains all of them until `schedule.steps`, from the newest step that all have.

    Args:
      recipe_of: {setting: number} -> the recipe; called while the step is traced.
      source, schedule, batch_size, max_skipped: of each of them, as for `loop.train`.

    Returns:
      The step that they have come to, and {name: error} of those that diverged on the way.

    Raises:
      ValueError: replicas whose states have different shapes, which one program cannot train.
      CheckpointError: see `loop.train`.
    """
    names = [replica.name for replica in replicas]
    family = replicas[0].recipe.family
    everywhere = sharding.make_mesh()
    targets = [sharding.abstract_state(r.recipe, everywhere, "replicated") for r in replicas]
    check_shapes(dict(zip(names, targets, strict=True)))
    schedule = loop.dispatched(schedule, family, jax.default_backend())
    start, states = restored(replicas, targets)
    mesh = sharding.make_mesh(jax.devices()[: devices(len(replicas), everywhere.size)])
    constants = sharding.place(family.constants() if family.constants else {}, mesh)
    known = loop.digests_of(constants)
    numbers = {
        key: np.array([replica.numbers[key] for replica in replicas], np.float32)
        for key in replicas[0].numbers
    }
    numbers = jax.device_put(numbers, sharding.split(mesh))
    compiled = sharding.compile_replicas(recipe_of, mesh)

    def run_steps(step: int, state: TrainState, resident: Any, feed: Any) -> Any:
        return compiled(active_phases(family, step), state, numbers, constants, resident, feed)

    def take(step: int, count: int) -> tuple[Any, Any]:
        found = [feed.take(step, count) for feed in opened]
        stacked = {name: np.stack([own[name] for own in found]) for name in found[0]}
        return resident, jax.device_put(stacked, sharding.split(mesh))

    with contextlib.ExitStack() as stack:
        columns, opened = {}, []
        for replica in replicas:
            columns, feed = feeds.opened(
                source,
                start,
                batch_size=batch_size,
                seed=replica.seed,
                batches_per_step=family.batches_per_step,
                process_index=0,
                process_count=1,
            )
            opened.append(stack.enter_context(contextlib.closing(feed)))
        resident = sharding.place(columns, mesh)
        together = Together(
            [_part(r, start, known, batch_size, max_skipped, len(replicas)) for r in replicas],
            everywhere,
        )
        hooks = Hooks(together.evaluate, together.sample, lambda *_: {}, together.snapshot)
        of_all = sharding.stack(states, mesh)
        _, step = loop.steps(
            run_steps, of_all, start, take, schedule, together, together, hooks, together.save
        )
    return step, together.finished(step)


def devices(replicas: int, most: int) -> int:
    """On how many devices so many replicas lie evenly."""
    return max(n for n in range(1, min(replicas, most) + 1) if replicas % n == 0)


def check_shapes(targets: Mapping[str, TrainState]) -> None:
    """Raises ValueError where two states differ in structure, or in a shape or type of an array."""
    (first, reference), *others = targets.items()
    ours = shapes(reference)
    for name, target in others:
        theirs = shapes(target)
        wrong = sorted(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k))
        if wrong:
            key = wrong[0]
            raise SettingError(
                f"{first} and {name} differ in the shape of {key}: {ours.get(key, 'none')} and "
                f"{theirs.get(key, 'none')}. One program cannot train both: use separate runs, "
                "which --mode=ablate does without --replicas"
            )


def shapes(state: TrainState) -> dict[str, str]:
    """{path of an array: its type and shape}."""
    leaves, _ = jax.tree.flatten_with_path(state)
    return {jax.tree_util.keystr(path): f"{x.dtype}{list(x.shape)}" for path, x in leaves}


def restored(
    replicas: Sequence[Replica], targets: Sequence[TrainState]
) -> tuple[int, list[TrainState]]:
    """(step, states) from the newest checkpoints of one step that all have; new ones without."""
    common = set.intersection(*(set(replica.checkpoints.steps()) for replica in replicas))
    start, states = max(common, default=0), []
    for replica, target in zip(replicas, targets, strict=True):
        if start:
            found, _ = replica.checkpoints.restore(target, start)
        else:
            found = sharding.new_state(replica.recipe, target, replica.seed)
        states.append(found)
    for replica in replicas:
        replica.checkpoints.set_aside_after(start, superseded=True)
    return start, states


class Part(NamedTuple):
    """What a replica has of its own while all are trained.

    Attributes:
      name, checkpoints: as of `Replica`.
      beside: JSON beside its checkpoints.
      writer, hooks, meter: as of a run alone.
    """

    name: str
    checkpoints: Checkpoints
    beside: Mapping[str, Any]
    writer: Writer
    hooks: Hooks
    meter: Meter


def _part(
    replica: Replica,
    start: int,
    constants: Mapping[str, int],
    batch_size: int,
    max_skipped: int,
    count: int,
) -> Part:
    if start:
        saved = replica.checkpoints.about(start).get("constants", {})
        loop.check_constants(saved, constants)
    beside = {**replica.about, "constants": constants}
    params, _ = jax.eval_shape(replica.recipe.family.init, jax.random.key(0))
    parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    writer, hooks = replica.begin(start, parameters, beside)
    meter = Meter(writer, batch_size, max_skipped, replica.checkpoints, replicas=count)
    return Part(replica.name, replica.checkpoints, beside, writer, hooks, meter)


class Together:
    """Meter, writer and hooks of all replicas, to the loop as those of one run.

    One that diverges is left as it is, and the others go on.
    """

    def __init__(self, parts: Sequence[Part], mesh: Any) -> None:
        self._parts, self._mesh = parts, mesh
        self._pending: tuple[int, Metrics] | None = None
        self._own: tuple[int, list[TrainState]] = (-1, [])  # of which step, states one by one
        self._errors: dict[str, DivergedError] = {}

    def _sound(self) -> list[tuple[int, Part]]:
        """Number and part of those that have not diverged."""
        found = [(i, p) for i, p in enumerate(self._parts) if p.name not in self._errors]
        if not found:
            raise next(iter(self._errors.values()))
        return found

    def _each(self, call: Callable[[int, Part], None]) -> None:
        for i, part in self._sound():
            try:
                call(i, part)
            except DivergedError as error:
                self._errors[part.name] = error
                part.writer.say(f"{part.name} has diverged, the others go on: {error}")

    def lap(self) -> None:
        """A dispatch begins."""
        self._each(lambda _, part: part.meter.lap())

    def data_ready(self) -> None:
        """Its batches are there."""
        self._each(lambda _, part: part.meter.data_ready())

    def add(self, step: int, metrics: Metrics) -> None:
        """The metrics of its steps are under way; the ones before are handed out."""
        before, self._pending = self._pending, (step, metrics)
        self._hand_out(before)

    def _hand_out(self, pending: tuple[int, Metrics] | None) -> None:
        if pending is None:
            return
        step, metrics = pending
        values = np.asarray(metrics.values)  # [replicas, steps, names]
        self._each(lambda i, part: part.meter.add(step, Metrics(values[i], metrics.names)))

    def catch_up(self) -> None:
        """Reads the metrics that are still under way."""
        self._hand_out(self._pending)
        self._pending = None
        self._each(lambda _, part: part.meter.catch_up())

    def flush(self, step: int) -> None:
        """Writes the rows of the steps since the last ones."""
        self.catch_up()
        self._each(lambda _, part: part.meter.flush(step))

    def may_save(self, step: int, last: bool) -> bool:
        """Of each by itself, where it is saved."""
        return True

    stopping = False  # nobody asks all of them

    def advance(self, steps: int) -> None:
        """Moves the progress bar of the first, which stands for all."""
        self._parts[0].writer.advance(steps)

    def _states(self, state: TrainState, step: int) -> list[TrainState]:
        if self._own[0] != step:
            count = range(len(self._parts))
            each = [jax.tree.map(lambda x, i=i: x[i], state) for i in count]
            self._own = step, [sharding.place(own, self._mesh) for own in each]
        return self._own[1]

    def evaluate(self, state: TrainState, step: int) -> None:
        """Each one's test metrics."""
        own = self._states(state, step)
        self._each(lambda i, part: part.hooks.evaluate(own[i], step))

    def sample(self, state: TrainState, step: int) -> None:
        """Each one's pictures."""
        own = self._states(state, step)
        self._each(lambda i, part: part.hooks.sample(own[i], step))

    def snapshot(self, state: TrainState, step: int) -> None:
        """Each one's averages for post-hoc EMA."""
        own = self._states(state, step)

        def call(i: int, part: Part) -> None:
            if part.meter.may_save(step, last=False):
                part.hooks.snapshot(own[i], step)

        self._each(call)

    def save(self, state: TrainState, step: int, last: bool) -> None:
        """Each one's checkpoint, as it would be of a run alone."""
        own = self._states(state, step)

        def call(i: int, part: Part) -> None:
            if part.meter.may_save(step, last):
                prepared = part.hooks.prepare(own[i], step)
                part.checkpoints.save(step, own[i], part.beside, prepared=prepared)
            if last:
                part.checkpoints.wait()

        self._each(call)

    def finished(self, step: int) -> dict[str, DivergedError]:
        """{name: error} of those that have diverged, or end unsound."""
        self._each(lambda _, part: part.meter.finish(step))
        return self._errors
