"""Trains and compares what an ablation names: a base, variants of it, seeds of each."""

import argparse
import contextlib
import difflib
import pathlib
import time
import traceback
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax

from aigc_jax import files
from aigc_jax.commands import boundary, common, together, train, validation
from aigc_jax.commands.variants import Cell, cells, picked
from aigc_jax.data import feed as feeds
from aigc_jax.errors import SettingError
from aigc_jax.report import ablation as report
from aigc_jax.runs import folder as folders
from aigc_jax.runs.evaluations import plan, scheduled, scheduled_names, splits
from aigc_jax.training import sharding, trackers
from aigc_jax.training.meter import DivergedError
from aigc_jax.training.step import active_phases
from aigc_jax.training.writers import Watch

FLAGS: tuple[str, ...] = ("only", "dry", "shard", "replicas", "writers")
TIMED = 0.5  # seconds of steps, three at least, of which --dry takes the time


def main(flags: argparse.Namespace) -> int:
    """Runs the command as its flags say; the exit code tells one that was stopped, or failures."""
    options = {name: getattr(flags, name) for name in FLAGS}
    return run(flags.config, flags.workdir, flags.origin(), **options)


def run(
    config: Mapping[str, Any],
    workdir: str | pathlib.Path,
    origin: Mapping[str, Any] | None = None,
    *,
    only: Sequence[str] | None = None,
    dry: bool = False,
    shard: str | None = None,
    replicas: str = "",
    writers: Sequence[str] | None = None,
) -> int:
    """Trains what is not trained yet, and writes the comparison of all that is.

    Args:
      config: of an ablation, as `configs.bases.ablation` makes it.
      workdir: gets ablation.json, an ordinary run in each runs/VARIANT/seed_N, and of these
        table.md, table.csv, results.json and report.html.
      origin: what the runs' own reports shall say of their command.
      only: variants, or single runs as VARIANT/seed_N.
      dry: says what would run and how long it takes, and trains nothing.
      shard: "i/n": every n-th run from number i on, counted from 0, so that n machines with one
        folder share the work. Each writes the comparison of what is there when it ends.
      replicas: "vmap" trains runs side by side in one program where they differ in nothing but
        their seed and numbers such as a learning rate; "" one after the other.
      writers: experiment trackers of each run: "wandb", "mlflow".

    Returns:
      0; 1 where runs failed, which are told and do not keep the others from it; 75 where it was
      asked to stop: the same command goes on.

    Raises:
      ValueError: a setting that cannot work, two variants that are the same, a metric that no run
        has, a folder with runs of another config; all before anything is trained.
    """
    workdir = files.expanded(workdir)
    found = cells(config, workdir)
    chosen = picked(found, only, shard)
    if folders.is_run(workdir):
        raise SettingError(f"{workdir} holds an ordinary run: name another --workdir")
    check_same(found)
    files.check(workdir, folders=True, new=False)
    trackers.check(writers or ())
    check_metrics(found[0], config["metrics"])
    if dry:
        tell(chosen)
        return 0
    write_about(config, found, workdir)
    given = {**(origin or {}), "base": folders.as_dict(config["base"])}
    reference = [cell for cell in found if cell.variant == found[0].variant]
    check_written(reference, config["metrics"])
    left = [cell for cell in chosen if not cell.finished()]
    parts = together.groups(left) if replicas else [[cell] for cell in left]
    failed: dict[str, str] = {}
    stopped = False
    for number, part in enumerate(parts, 1):
        names = ", ".join(f"{cell.name} ({cell.state()})" for cell in part)
        print(f"[{number}/{len(parts)}] {names}", flush=True)
        try:
            step, diverged = trained(part, given, writers or ())
        except Exception as error:  # whatever it is, the others go on
            step, diverged = part[0].steps, {cell.name: error for cell in part}
        for name, error in diverged.items():
            failed[name] = reason(error)
            print(f"{name} failed: {failed[name]}", flush=True)
        if step < part[0].steps:
            stopped = True
            break
        check_written(reference, config["metrics"])
    path = report.write(workdir, failed)
    print((workdir / "table.md").read_text(), path, sep="\n", flush=True)
    return boundary.STOPPED if stopped else int(bool(failed))


def check_same(found: Sequence[Cell]) -> None:
    """Raises RunMismatch where a folder holds a run of another config than this ablation's."""
    for cell in found:
        changed = folders.changes(cell.folder, cell.config) if cell.done() else ()
        if changed:
            raise folders.RunMismatch(
                f"{cell.folder} holds a run with another config:\n  "
                + "\n  ".join(changed)
                + "\nGive this ablation another --workdir, or take that folder away"
            )


def trained(
    part: Sequence[Cell], origin: Mapping[str, Any], writers: Sequence[str]
) -> tuple[int, Mapping[str, Exception]]:
    """Trains and evaluates a run, or several at once: (step it came to, {run: why it failed})."""
    if len(part) > 1:
        return together.fit(part, origin, writers)
    state = train.run(part[0].config, part[0].folder, origin, watch=Watch(trackers=writers))
    return int(state.step), {}


def reason(error: Exception) -> str:
    """Why a run failed, in a line; of what nobody expected the traceback is printed too."""
    words = boundary.explain(error)
    if isinstance(error, DivergedError):  # whose advice is for a run by itself
        words = f"{str(error).partition('. ')[0]}. Other settings are another variant"
    if words is None:
        traceback.print_exception(error)
        words = f"{type(error).__name__}: {error}"
    return " ".join(words.split())[:500]


def write_about(config: Mapping[str, Any], found: Sequence[Cell], workdir: pathlib.Path) -> None:
    """Writes ablation.json: which runs there are, and what of them is compared."""
    settings = {name: dict(own) for name, own in config["variants"]}
    variants = {cell.variant: settings.get(cell.variant, {}) for cell in found}
    about = {
        "reference": found[0].variant,
        "variants": folders.as_dict(variants),
        "seeds": list(config["seeds"]),
        "metrics": list(config["metrics"]),
        "batch_sizes": {cell.variant: cell.config.train.batch_size for cell in found},
        "steps": {cell.variant: cell.steps for cell in found},
        "family": config["base"]["family"],
        "data": config["base"]["data"]["name"],
    }
    files.write_json(workdir / "ablation.json", about)


def check_metrics(cell: Cell, metrics: Sequence[str]) -> None:
    """Raises ValueError where a run like this one would never write one of these metrics.

    A likelihood's and a reconstruction's names are known once they are measured: of runs with such
    evaluations a name that is no near miss of a known one may be theirs.
    """
    if not metrics:
        raise SettingError("config.metrics names none: what shall be compared, such as fd_digits?")
    config = cell.config
    planned = plan(config["evaluations"], config["evaluation"])
    data = common.open_data(config, splits(planned))
    family = validation.validate(config, data.spec)
    on_schedule = scheduled(planned, config["evaluation"]) if config.log.eval_every else []
    named = partial(scheduled_names, family=family, spec=data.spec, test_split=data.test_split)
    known = list(named(on_schedule))
    at_end = [name.partition("/")[2] for name in named(planned)] if config.evaluation.at_end else []
    phases = {phase.name or phase.player for phase in family.phases}
    known += [*at_end, *(f"{phase}/loss" for phase in phases)]
    others = any(not e.draws and e.metric not in ("examples", "diagnosis") for e in planned)
    for name in metrics:
        if name in known or name.partition("/")[0] in phases:
            continue
        near = difflib.get_close_matches(name, known, n=1)
        if at_end and others and not near:
            continue
        told = "" if at_end else " (base.evaluation.at_end is False)"
        hint = f"did you mean {near[0]!r}? They" if near else "they"
        raise SettingError(
            f"config.metrics names {name!r}, which these runs do not have{told}: {hint} have "
            f"{', '.join(known)}"
        )


def check_written(reference: Sequence[Cell], metrics: Sequence[str]) -> None:
    """Raises ValueError where the base's runs, if one is finished, have none of one of the metrics.

    A variant may lack one, as a likelihood that is no density lacks bits.
    """
    cell = next((cell for cell in reference if cell.finished()), None)
    if cell is None:
        return
    settings = cell.config["train"]
    found = report.read_run(cell.folder, settings["steps"], settings["batch_size"])
    if found is None:
        raise SettingError(
            f"{cell.folder}/metrics.jsonl lacks the run's last rows: restore it from a backup, or "
            "take the folder away to train the run again"
        )
    for name in metrics:
        if name not in found.values:
            raise SettingError(
                f"config.metrics names {name!r}, which {cell.name} does not have: it has "
                f"{', '.join(sorted(found.values))}. Name one of these: what is trained stays"
            )


def tell(chosen: Sequence[Cell]) -> None:
    """Prints what would run, and how long its training takes by the first steps of each variant."""
    took: dict[str, tuple[float, float]] = {}
    total = 0.0
    for cell in chosen:
        line = f"{cell.name}: {cell.state()}"
        if not cell.finished() and cell.done() < cell.steps:
            if cell.variant not in took:
                took[cell.variant] = timed(cell)
            compiling, step = took[cell.variant]
            seconds = compiling + step * (cell.steps - cell.done())
            total += seconds
            line += f", about {duration(seconds)} ({1e3 * step:.3g} ms a step)"
        print(line, flush=True)
    left = sum(not cell.finished() for cell in chosen)
    print(f"{left} of {len(chosen)} runs are left: {duration(total)}, evaluation aside")
    if left > 1:
        print(
            f"Up to {left} machines can share them with --shard=0/{left} to "
            f"--shard={left - 1}/{left} and one --workdir: {duration(total / left)}"
        )


def timed(cell: Cell) -> tuple[float, float]:
    """Seconds that a run's step takes to compile, and to run once; nothing is written."""
    config = cell.config
    data = common.open_data(config)
    family = validation.validate(config, data.spec)
    settings, mesh = config["train"], sharding.make_mesh()
    recipe = common.recipe_of(config, family, data.spec)
    sharding.check_batch(settings["batch_size"], mesh, settings["microbatches"])
    began = time.perf_counter()
    target = sharding.abstract_state(recipe, mesh, settings["sharding"])
    state = sharding.new_state(recipe, target, cell.seed)
    constants = family.constants() if family.constants else {}
    constants = sharding.place(constants, mesh, settings["sharding"])
    step = sharding.compile_steps(recipe, mesh, target, constants)
    columns, feed = feeds.opened(
        data.dataset.sources[data.train_split],
        0,
        batch_size=settings["batch_size"],
        seed=cell.seed,
        batches_per_step=family.batches_per_step,
        process_index=0,
        process_count=1,
    )
    with contextlib.closing(feed):
        resident = sharding.place(columns, mesh)
        compiled, number = began, 0
        while number <= 3 or time.perf_counter() < compiled + TIMED:
            own = sharding.put(mesh, feed.take(number, 1), axis=2)
            state, _ = step(active_phases(family, number), state, constants, resident, own)
            jax.block_until_ready(state)
            number += 1
            compiled = time.perf_counter() if number == 2 else compiled  # phases may be lazy
    return compiled - began, (time.perf_counter() - compiled) / (number - 1)


def duration(seconds: float) -> str:
    """Such as "3 min", "2 h 5 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
