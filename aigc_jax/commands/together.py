"""Runs of an ablation that one program can train: which, and how they are."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from aigc_jax import build, streams
from aigc_jax.checks import flatten
from aigc_jax.commands import common, evaluate, report, train, validation
from aigc_jax.commands.variants import Cell
from aigc_jax.family import DataSpec, Family
from aigc_jax.planning.programs import batch_of
from aigc_jax.runs import folder as folders
from aigc_jax.runs.evaluations import check, plan, scheduled, splits
from aigc_jax.runs.examples import RealData
from aigc_jax.runs.extractors import FeatureExtractors
from aigc_jax.training import replicas, sharding
from aigc_jax.training.step import Recipe, init_state, train_steps
from aigc_jax.training.writers import Watch

# Sections that say nothing of a step's arithmetic: numbers in them that differ part runs.
APART = ("data", "train", "log", "checkpoint", "sampling", "evaluation", "evaluations", "published")


def groups(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Runs that one program can train side by side, in the order of the first of each.

    They differ in nothing but seed and numbers that a program can be given, and have come to the
    same step. Those that start from weights, or split their state over devices, are trained alone.
    """
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        alone = cell.config.init_from or cell.config.train.sharding != "replicated"
        key = cell.name if alone else f"{cell.done()} {_alike(cell)}"
        found.setdefault(key, []).append(cell)
    return [part for group in found.values() for part in parted(group)]


def _alike(cell: Cell) -> str:
    """All of a run's config but its seed and the numbers that a program might be given."""
    flat = flatten(folders.as_dict(cell.config))
    del flat["seed"]
    fixed = {k: v for k, v in flat.items() if not _may_vary(k, v)}
    return json.dumps([fixed, sorted(flat)], sort_keys=True)


def _may_vary(key: str, value: Any) -> bool:
    return isinstance(value, float) and key.partition(".")[0] not in APART


def differing(cells: Sequence[Cell]) -> list[str]:
    """The settings beside the seed in which runs differ."""
    flat = [flatten(folders.as_dict(cell.config)) for cell in cells]
    return [key for key in flat[0] if key != "seed" and any(f[key] != flat[0][key] for f in flat)]


def parted(cells: list[Cell]) -> list[list[Cell]]:
    """A group, parted by those of its numbers that decide what is computed, such as a 0."""
    keys = differing(cells)
    if len(cells) == 1 or not keys:
        return [cells]
    config = folders.as_dict(cells[0].config)
    spec = common.open_data(config).spec
    fixed = [key for key in keys if not traceable(config, spec, key)]
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        flat = flatten(folders.as_dict(cell.config))
        found.setdefault(json.dumps([flat[key] for key in fixed]), []).append(cell)
    return list(found.values())


def traceable(config: Mapping[str, Any], spec: DataSpec, key: str) -> bool:
    """Whether a number of a config can be given to a program that is compiled without it."""
    recipe = common.recipe_of(config, build.build(config, spec), spec)
    family, batch_size = recipe.family, config["train"]["batch_size"]

    def step(number: jax.Array, *given: Any) -> Any:
        return train_steps(recipe_with(config, spec, {key: number}), (*range(n),), *given)

    n = len(family.phases)
    given = (
        jax.eval_shape(partial(init_state, recipe), *streams.init(0)),
        jax.eval_shape(family.constants) if family.constants else {},
        {},
        batch_of(family, spec, batch_size),
    )
    try:
        jax.eval_shape(step, jax.ShapeDtypeStruct((), jnp.float32), *given)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):
        return False
    return True


def recipe_with(config: Mapping[str, Any], spec: DataSpec, numbers: Mapping[str, Any]) -> Recipe:
    """The recipe of a config with other numbers, which may be those of a program's arguments."""
    config = folders.with_settings(config, numbers)
    return common.recipe_of(config, build.build(config, spec), spec)


def fit(
    cells: Sequence[Cell], origin: Mapping[str, Any], writers: Sequence[str] = ()
) -> tuple[int, dict[str, Exception]]:
    """Trains runs of one group in one program, and evaluates those that shall be at their end.

    Args:
      writers: experiment trackers of each.

    Returns:
      The step that they have come to, and {name: error} of those that diverged, or could not be
      evaluated.

    Raises as `train.run`.
    """
    first = cells[0].config
    planned = plan(first["evaluations"], first["evaluation"])
    data = common.open_data(first, splits(planned))
    extractors = FeatureExtractors(sharding.make_mesh())
    families = {
        variant: validation.validate(cell.config, data.spec)
        for variant, cell in {cell.variant: cell for cell in cells}.items()
    }
    for cell in cells:
        train.check_places(cell.folder, first["data"]["path"])
    if first["evaluation"]["at_end"]:
        check(
            planned,
            families[cells[0].variant],
            data,
            sampling=first["sampling"],
            rebuild=common.rebuilder(first, data.spec),
            extractors=extractors,
        )
    keys = differing(cells)

    def watch(number: int) -> Watch:
        return Watch(rows=number == 0, trackers=writers)

    plain = folders.as_dict(first)
    with contextlib.ExitStack() as stack:
        found = [
            replica(stack, cell, families[cell.variant], data, extractors, origin, keys, watch(i))
            for i, cell in enumerate(cells)
        ]
        step, diverged = replicas.train(
            found,
            partial(recipe_with, plain, data.spec),
            data.dataset.sources[data.train_split],
            schedule=train.schedule(first),
            batch_size=first["train"]["batch_size"],
            max_skipped=first["train"]["max_skipped"],
        )
    failed: dict[str, Exception] = dict(diverged)
    of_all = {"data": data, "extractors": extractors}
    for cell in cells:
        if step < cell.steps or cell.name in failed:
            continue
        try:
            if first["evaluation"]["at_end"]:
                family = families[cell.variant]
                evaluate.run(cell.folder, cell.config, **of_all, family=family)
            else:
                report.run(cell.folder)
        except Exception as error:  # the others are evaluated all the same
            failed[cell.name] = error
    return step, failed


def replica(
    stack: contextlib.ExitStack,
    cell: Cell,
    family: Family,
    data: RealData,
    extractors: FeatureExtractors,
    origin: Mapping[str, Any],
    keys: Sequence[str],
    watch: Watch,
) -> replicas.Replica:
    """A run as one of several, its folder its own until `stack` closes."""
    config = folders.as_dict(cell.config)
    planned = plan(config["evaluations"], config["evaluation"])
    planned = scheduled(planned, config["evaluation"])
    session, checkpoints = train.opened(stack, config, cell.folder, data, origin)
    given = (stack, config, cell.folder, family, data, planned, extractors, session)
    flat = flatten(config)
    return replicas.Replica(
        name=cell.name,
        recipe=common.recipe_of(config, family, data.spec),
        seed=cell.seed,
        numbers={key: flat[key] for key in keys},
        checkpoints=checkpoints,
        about=train.about_checkpoint(config, family),
        begin=train.beginning(*given, watch),
    )
