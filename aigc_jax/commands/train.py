"""Trains an experiment, or resumes it from its last checkpoint."""

import argparse
import contextlib
import json
import pathlib
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax

from aigc_jax import files
from aigc_jax.checks import flatten
from aigc_jax.commands import common, report, validation
from aigc_jax.commands import evaluate as evaluate_command
from aigc_jax.commands.boundary import STOPPED
from aigc_jax.data.datasets import Dataset
from aigc_jax.data.identity import differences
from aigc_jax.errors import SettingError
from aigc_jax.family import Family
from aigc_jax.runs import environment, evaluate, history, lock
from aigc_jax.runs import folder as folders
from aigc_jax.runs import model as models
from aigc_jax.runs import observer as observers
from aigc_jax.runs.averages import POSTHOC, SNAPSHOTS, Snapshots, alike
from aigc_jax.runs.evaluations import (
    Evaluation,
    check,
    plan,
    scheduled,
    scheduled_names,
    splits,
)
from aigc_jax.runs.examples import RealData
from aigc_jax.runs.extractors import FeatureExtractors
from aigc_jax.runs.history import Session
from aigc_jax.training import loop, sharding, trackers
from aigc_jax.training.checkpoint import Checkpoints, complete_steps, run_of_newest
from aigc_jax.training.ema import settings_of
from aigc_jax.training.profile import Profiler, span
from aigc_jax.training.step import TrainState
from aigc_jax.training.writers import WATCH, Watch, Writer

FLAGS: tuple[str, ...] = ("from_step", "profile", "writers")


def main(flags: argparse.Namespace) -> int:
    """Runs the command as its flags say; the exit code tells a run that was stopped."""
    state = run(
        flags.config,
        flags.workdir,
        flags.origin(),
        from_step=flags.from_step,
        profile=flags.profile,
        watch=Watch(trackers=flags.writers or ()),
    )
    return STOPPED if int(state.step) < flags.config["train"]["steps"] else 0


def run(
    config: Mapping[str, Any],
    workdir: str | pathlib.Path,
    origin: Mapping[str, Any] | None = None,
    *,
    from_step: int | None = None,
    profile: str | None = None,
    watch: Watch = WATCH,
) -> TrainState:
    """Trains an experiment in `workdir`, resuming what lies there; returns the last state.

    Args:
      config: the experiment's; all its keys are read.
      workdir: folder of the run; gets config.json, spec.json, origin.json, metrics.jsonl,
        tensorboard/, samples/, reconstructions/, evaluations/, checkpoints/, best/, report.html.
      origin: what the run's report shall say of its command: {"config", "command", "base"}.
      from_step: goes on from the checkpoint of that step, with whatever config and data: what
        changed is noted in origin.json, and what the run had made beyond that step set aside.
      profile: START:COUNT, steps to record; a trace and a table of them go to profile/.
      watch: who follows it beside its files.

    Raises:
      RunMismatch: the folder holds a run with another config or of other data.
      LockError: another training owns the folder.
      ValueError, FileNotFoundError: a setting that cannot work, data or weights that are missing,
        found before anything is written.
      DivergedError, CheckpointError: see `training.loop.train`.
    """
    workdir, setting = files.expanded(workdir), config["evaluation"]
    folders.refuse_best(workdir)
    if (workdir / "ablation.json").exists():
        raise SettingError(f"{workdir} holds an ablation: name another --workdir")
    validation.check(config)
    trackers.check(watch.trackers)
    profiler = None
    if profile is not None:
        profiler = Profiler(span(profile), workdir / "profile")
        profiler.wanted.check(config["train"]["steps"])
    sharding.check_on_first(partial(check_places, workdir, config["data"].get("path")))
    planned = plan(config["evaluations"], setting)
    data = common.open_data(config, splits(planned))
    check_same(config, data.dataset)
    config = models.with_network(config, workdir, data.spec.shape)
    family = validation.validate(config, data.spec)
    extractors = FeatureExtractors(sharding.make_mesh())
    if setting["at_end"]:  # so that what it lacks is found before training, not after it
        check(
            planned,
            family,
            data,
            sampling=config["sampling"],
            rebuild=common.rebuilder(config, data.spec),
            extractors=extractors,
        )
    initial = partial(models.initial, config["init_from"], config, family, data.spec)
    state = fit(
        config,
        workdir,
        family,
        data,
        planned,
        extractors=extractors,
        initial=initial if config["init_from"] or family.needs_start else None,
        origin=origin,
        from_step=from_step,
        profiler=profiler,
        watch=watch,
    )
    if int(state.step) == config["train"]["steps"]:
        if setting["at_end"]:
            evaluate_command.run(workdir, config, data=data, extractors=extractors, family=family)
        else:
            report.run(workdir)
    return state


def check_same(config: Mapping[str, Any], data: Dataset) -> None:
    """Raises SettingError where processes that shall train as one were told different things."""
    told = flatten(folders.as_dict(config))
    for key in ("data.data_dir", "data.path"):  # of a disk of each host's own, it may be
        told.pop(key, None)
    found = {"their config": told, "their data": dict(data.identity), "jax": jax.__version__}
    words = {name: json.dumps(value, sort_keys=True) for name, value in found.items()}
    sharding.check_same({name: [text.encode()] for name, text in words.items()})


def check_places(workdir: pathlib.Path, images: str | None) -> None:
    """Raises ValueError where a run cannot be written, or it and its images lie in one another."""
    if images:
        told = "--workdir={} would lie in data.path, {}: name a folder outside it by --workdir"
        files.check_apart(workdir, images, told)
        told = "data.path={} lies in --workdir={}: name another folder by --workdir"
        files.check_apart(images, workdir, told)
    files.check(workdir, folders=True, new=False)
    names = ("config.json", "spec.json", "identity.json", "origin.json", "metrics.jsonl")
    files.check(*(workdir / name for name in names), new=False)
    names = ("checkpoints", "best", "samples", "reconstructions", "evaluations", "tensorboard")
    names += ("profile", SNAPSHOTS, POSTHOC)
    files.check(*(workdir / name for name in names), folders=True, new=False)


def fit(
    config: Mapping[str, Any],
    workdir: pathlib.Path,
    family: Family,
    data: RealData,
    planned: Sequence[Evaluation],
    *,
    extractors: FeatureExtractors | None = None,
    initial: Callable[[], loop.Initial] | None = None,
    origin: Mapping[str, Any] | None = None,
    from_step: int | None = None,
    profiler: Profiler | None = None,
    watch: Watch = WATCH,
) -> TrainState:
    """`run` of a family and data at hand, without the evaluation at the end.

    Args:
      planned: its evaluations.
      initial, profiler: as `training.loop.train` takes them; watch: see `Watch`.
    """
    settings, mesh = config["train"], sharding.make_mesh()
    planned = scheduled(planned, config["evaluation"])
    recipe = common.recipe_of(config, family, data.spec)
    extractors = extractors or FeatureExtractors(mesh)
    with contextlib.ExitStack() as stack:
        session, checkpoints = opened(stack, config, workdir, data, origin, from_step)
        if profiler:
            stack.callback(profiler.close)  # of a run that stops within its span
        given = (stack, config, workdir, family, data, planned, extractors, session)
        return loop.train(
            recipe,
            data.dataset.sources[data.train_split],
            schedule=schedule(config),
            batch_size=settings["batch_size"],
            seed=config["seed"],
            mode=settings["sharding"],
            max_skipped=settings["max_skipped"],
            checkpoints=checkpoints,
            about=about_checkpoint(config, family),
            begin=beginning(*given, watch),
            initial=initial,
            from_step=session.from_step,
            profiler=profiler,
        )


def opened(
    stack: contextlib.ExitStack,
    config: Mapping[str, Any],
    workdir: pathlib.Path,
    data: RealData,
    origin: Mapping[str, Any] | None,
    from_step: int | None = None,
) -> tuple[Session, Checkpoints]:
    """A run's folder for this process alone, until `stack` closes: how it goes on, and from what.

    Raises as `continued`; LockError where another training owns the folder.
    """
    if jax.process_index() == 0:
        stack.enter_context(lock.owned(workdir))
    sharding.check_on_all(partial(lock.check_shared, workdir))
    session = continued(workdir, config, data.dataset, from_step, origin or {})
    folder, keep = workdir / "checkpoints", config["checkpoint"]["keep"]
    checkpoints = Checkpoints(folder, keep, clean=True, run=session.run)
    stack.callback(checkpoints.close)
    return session, checkpoints


def continued(
    workdir: pathlib.Path,
    config: Mapping[str, Any],
    data: Dataset,
    from_step: int | None,
    origin: Mapping[str, Any],
) -> Session:
    """How the run in a folder goes on, or a new one begins.

    The command that went back to a checkpoint, given again, goes on with what came of that.

    Raises:
      RunMismatch: something has changed, and `from_step` does not say to go on all the same; or
        the data are of another kind.
    """
    steps = [complete_steps(workdir / name) for name in ("checkpoints", "best")]
    new = sharding.from_first(uuid.uuid4().bytes).hex()
    if not any(steps):
        return Session(new, from_step, [], origin)
    found = folders.identity(workdir)
    changes = folders.changes(workdir, config)
    if changes and from_step is None:
        raise folders.mismatch(workdir, "another config", changes)
    folders.check_same_spec(workdir, data.spec)
    if data.identity and found.get("data"):
        other = differences(found["data"], data.identity)
        if other and from_step is None:
            raise folders.mismatch(workdir, "other data", other)
        changes += other
    if not changes and from_step is not None and from_step == history.went_back_to(workdir):
        from_step = None
    run = found.get("run") or run_of_newest(workdir / "checkpoints") or new
    return Session(run, from_step, changes, origin)


def schedule(config: Mapping[str, Any]) -> loop.Schedule:
    """When the run does what."""
    log = config["log"]
    return loop.Schedule(
        steps=config["train"]["steps"],
        log=log["every"],
        evaluate=log["eval_every"],
        sample=log["sample_every"],
        save=config["checkpoint"]["every"],
        first_sample=log["first_sample"],
        snapshot=config["ema"].get("snapshot_every", 0),
        dispatch=config["train"]["steps_per_dispatch"],
    )


def about_checkpoint(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """What lies beside each checkpoint as JSON; `prepared` names what samples are drawn with."""
    about = {"config": folders.as_dict(config)}
    return about | ({"prepared": family.drawing.prepared_as} if family.drawing else {})


def beginning(
    stack: contextlib.ExitStack,
    config: Mapping[str, Any],
    workdir: pathlib.Path,
    family: Family,
    data: RealData,
    planned: Sequence[Evaluation],
    extractors: FeatureExtractors,
    session: Session,
    watch: Watch = WATCH,
) -> Callable[[int, int, Mapping[str, Any]], tuple[Writer, loop.Hooks]]:
    """What `loop.train` calls when nothing can be wrong with the config any more.

    (step to start from, number of parameters, JSON beside checkpoints) -> (writer, hooks): writes
    config.json, spec.json, identity.json and origin.json, and opens what reports on the run, which
    `stack` closes. `watch`: who follows the run.
    """
    settings, keep, mesh = config["train"], config["checkpoint"], sharding.make_mesh()
    averages = settings_of(config["ema"])

    def begin(start: int, parameters: int, beside: Mapping[str, Any]) -> tuple[Writer, loop.Hooks]:
        # Opens the feature networks: one that is missing is an error before anything is written.
        evaluator = evaluate.Evaluator(
            planned,
            family,
            data,
            mesh,
            seed=config["seed"],
            sampling=config["sampling"],
            rebuild=common.rebuilder(config, data.spec),
            extractors=extractors,
            bars=False,
        )
        check_best(keep["best"], evaluator)
        told = flatten(folders.as_dict(config))
        names = watch.trackers if jax.process_index() == 0 else ()
        tracked = trackers.opened(names, workdir, session.run, told)
        if jax.process_index() == 0:
            write_beginning(workdir, config, data.dataset, session, parameters, start)
        steps, batch_size = settings["steps"], settings["batch_size"]
        writer = Writer(workdir, start, steps, batch_size, watch, tracked)
        stack.callback(writer.close)
        writer.say(
            f"{workdir}: {'resuming at' if start else 'starting at'} step {start} of "
            f"{settings['steps']}, {parameters:,} parameters, batch {settings['batch_size']} on "
            f"{mesh.size} {jax.default_backend()} device(s), {settings['sharding']}"
        )
        if keep["best"] and not config["log"]["eval_every"]:
            writer.say(f"no best checkpoint by {keep['best']} is kept: log.eval_every is 0")
        snapshots, images = None, settings["steps"] * settings["batch_size"]
        if words := alike(averages, images):
            writer.say(words)
        if averages.snapshot_every:
            snapshots = Snapshots(workdir, averages, session.run, session.from_step)
            stack.callback(snapshots.close)
        observer = observers.Observer(
            workdir,
            writer,
            evaluator,
            samples=config["log"]["samples"],
            best=keep["best"],
            best_mode=keep["best_mode"],
            about=beside,
            run=session.run,
            from_step=session.from_step,
            snapshots=snapshots,
        )
        stack.callback(observer.close)
        return writer, observer.hooks

    return begin


def check_best(best: str, evaluator: evaluate.Evaluator) -> None:
    """Raises SettingError where so few examples allow no value of what chooses the best."""
    left = [row for row in evaluator.left_out if best.startswith("eval/")]
    data = evaluator.data
    if left and best not in scheduled_names(
        evaluator.planned, evaluator.family, data.spec, data.test_split
    ):
        told = "; ".join(f"{row.metric} {row.note}" for row in left)
        raise SettingError(f"checkpoint.best={best!r} will never have a value: {told}")


def write_beginning(
    workdir: pathlib.Path,
    config: Mapping[str, Any],
    data: Dataset,
    session: Session,
    parameters: int,
    start: int,
) -> None:
    """Writes what a run's folder says of the run, and of this start of it."""
    if session.from_step is not None:
        history.supersede(workdir, start)
    config = folders.as_dict(config)
    if start and folders.read(workdir, "config.json")["sampling"] != config["sampling"]:
        history.supersede_samples(workdir)
    files.write_json(workdir / "config.json", config)
    folders.write_spec(workdir, data.spec)
    folders.write_identity(workdir, session.run, data.identity)
    history.add_session(workdir, session, parameters, start, environment.describe())
