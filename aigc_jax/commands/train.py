"""Trains an experiment, or resumes it from its last checkpoint."""

import argparse
import contextlib
import pathlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax

from aigc_jax import files
from aigc_jax.commands import common, report, validation
from aigc_jax.commands import evaluate as evaluate_command
from aigc_jax.family import Family
from aigc_jax.runs import environment, evaluate
from aigc_jax.runs import folder as folders
from aigc_jax.runs import model as models
from aigc_jax.runs import observer as observers
from aigc_jax.runs.evaluations import (
    Evaluation,
    check,
    plan,
    scheduled,
    splits,
)
from aigc_jax.runs.examples import RealData
from aigc_jax.runs.extractors import FeatureExtractors
from aigc_jax.training import loop, sharding
from aigc_jax.training.checkpoint import Checkpoints, complete_steps
from aigc_jax.training.step import TrainState
from aigc_jax.training.writers import Writer

FLAGS: tuple[str, ...] = ("distributed", "coordinator", "processes", "process")


def main(flags: argparse.Namespace) -> None:
    """Runs the command as its flags say."""
    run(flags.config, flags.workdir, flags.origin())


def run(
    config: Mapping[str, Any],
    workdir: str | pathlib.Path,
    origin: Mapping[str, Any] | None = None,
) -> TrainState:
    """Trains an experiment in `workdir`, resuming what lies there; returns the last state.

    Args:
      config: the experiment's; all its keys are read.
      workdir: folder of the run; gets config.json, spec.json, origin.json, metrics.jsonl,
        tensorboard/, samples/, reconstructions/, evaluations/, checkpoints/, best/, report.html.
      origin: what the run's report shall say of its command: {"config", "command", "base"}.

    Raises:
      RunMismatch: the folder holds a run with another config.
      ValueError, FileNotFoundError: a setting that cannot work, data or weights that are missing,
        found before anything is written.
      NonFiniteError, CheckpointError: see `training.loop.train`.
    """
    workdir, setting = pathlib.Path(workdir), config["evaluation"]
    validation.check(config)
    planned = plan(config["evaluations"], setting)
    data = common.open_data(config, splits(planned))
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
    initial = partial(models.initial, config["init_from"], config, family)
    state = fit(
        config,
        workdir,
        family,
        data,
        planned,
        extractors=extractors,
        initial=initial if config["init_from"] else None,
        origin=origin,
    )
    if int(state.step) == config["train"]["steps"]:
        if setting["at_end"]:
            evaluate_command.run(workdir, config, data=data, extractors=extractors, family=family)
        else:
            report.run(workdir)
    return state


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
) -> TrainState:
    """`run` of a family and data at hand, without the evaluation at the end.

    Args:
      planned: its evaluations.
      initial: as `training.loop.train` takes it.
    """
    settings, keep, mesh = config["train"], config["checkpoint"], sharding.make_mesh()
    planned = scheduled(planned, config["evaluation"])
    recipe = common.recipe_of(config, family, data.spec)
    extractors = extractors or FeatureExtractors(mesh)
    if any(complete_steps(workdir / name) for name in ("checkpoints", "best")):
        folders.check_same(workdir, config)
    with contextlib.ExitStack() as stack:
        checkpoints = Checkpoints(workdir / "checkpoints", keep["keep"], clean=True)
        stack.callback(checkpoints.close)
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
            begin=beginning(stack, config, workdir, family, data, planned, extractors, origin),
            initial=initial,
        )


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
    origin: Mapping[str, Any] | None,
) -> Callable[[int, int], tuple[Writer, loop.Hooks]]:
    """What `loop.train` calls when nothing can be wrong with the config any more.

    (step to start from, number of parameters) -> (writer, hooks): writes config.json, spec.json and
    origin.json, and opens what reports on the run; `stack` closes these.
    """
    settings, keep, mesh = config["train"], config["checkpoint"], sharding.make_mesh()

    def begin(start: int, parameters: int) -> tuple[Writer, loop.Hooks]:
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
        if jax.process_index() == 0:
            files.write_json(workdir / "config.json", folders.as_dict(config))
            folders.write_spec(workdir, data.spec)
            about = {**(origin or {}), "parameters": parameters}
            folders.add_session(workdir, about, start, environment.describe())
        writer = Writer(workdir, start, settings["steps"], settings["batch_size"])
        stack.callback(writer.close)
        writer.say(
            f"{workdir}: {'resuming at' if start else 'starting at'} step {start} of "
            f"{settings['steps']}, {parameters:,} parameters, batch {settings['batch_size']} on "
            f"{mesh.size} {jax.default_backend()} device(s), {settings['sharding']}"
        )
        observer = observers.Observer(
            workdir,
            writer,
            evaluator,
            samples=config["log"]["samples"],
            best=keep["best"],
            best_mode=keep["best_mode"],
            about=about_checkpoint(config, family),
        )
        stack.callback(observer.close)
        return writer, observer.hooks

    return begin
