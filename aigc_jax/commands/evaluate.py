"""Measures a trained model: prints a table, writes it as JSON and renews the run's report."""

import argparse
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax

from aigc_jax import files
from aigc_jax.commands import common, report
from aigc_jax.errors import SettingError
from aigc_jax.evaluation import results
from aigc_jax.evaluation.evaluators import OF_NETWORK
from aigc_jax.family import Family, Variables
from aigc_jax.runs import evaluate
from aigc_jax.runs import folder as folders
from aigc_jax.runs import model as models
from aigc_jax.runs.averages import weights_word
from aigc_jax.runs.evaluations import Evaluation, check_averages, plan, splits
from aigc_jax.runs.examples import RealData
from aigc_jax.runs.extractors import FeatureExtractors
from aigc_jax.training import sharding
from aigc_jax.training.ema import settings_of

FLAGS: tuple[str, ...] = (
    "evaluations",
    "num",
    "seed",
    "sampler",
    "steps",
    "guidance",
    "autoguidance",
    "weak",
    "batch",
    "step",
    "best",
    "raw",
    "ema",
)


def main(flags: argparse.Namespace) -> None:
    """Runs the command as its flags say."""
    run(
        flags.workdir,
        flags.config,
        evaluations=flags.evaluations,
        count=flags.num,
        seed=flags.seed,
        settings={key: getattr(flags, key) for key in common.OF_SAMPLING},
        batch_size=flags.batch,
        step=flags.step,
        best=flags.best,
        raw=flags.raw,
        ema=flags.ema,
    )


def run(
    workdir: str | pathlib.Path,
    config: Mapping[str, Any] | None = None,
    *,
    evaluations: Sequence[str] | None = None,
    count: int | None = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    batch_size: int = 64,
    step: int | None = None,
    best: bool = False,
    raw: bool = False,
    ema: str | float = "",
    data: RealData | None = None,
    extractors: FeatureExtractors | None = None,
    family: Family | None = None,
) -> list[results.Row]:
    """Runs `config.evaluations` on a trained model; prints a table and writes it as JSON.

    Args:
      workdir, config, step, best, raw, ema: see `runs.model.load`.
      evaluations: names of those to run, or of any metrics; None runs all of the config's.
      count: samples of every evaluation that takes any; None for the config's.
      seed, settings, batch_size: of the samples, as for `sample`.
      data, extractors: the config's data and feature networks, where they are open already.
      family: see `runs.model.load`.

    Raises:
      ValueError, FileNotFoundError: an unknown evaluation, missing weights, images of another
        size than the feature network's or a folder that takes no files, all before the first
        sample is drawn.
    """
    workdir = files.expanded(workdir)
    mesh = sharding.make_mesh()
    place = workdir / "evaluations"
    sharding.check_on_first(partial(files.check, place, folders=True, new=False))
    config, different = common.with_sampling(workdir, config, settings)
    planned = plan(chosen(config["evaluations"], evaluations), config["evaluation"])
    planned = of_count(planned, count)
    check_averages(planned, settings_of(config["ema"]))
    data = data or common.open_data(config, splits(planned))
    model = models.load(workdir, config, step=step, best=best, raw=raw, ema=ema, family=family)
    check_same_data(model, data.spec)
    evaluator = evaluate.Evaluator(
        planned,
        model.family,
        data,
        mesh,
        seed=config["seed"],
        sampling=config["sampling"],
        rebuild=common.rebuilder(model.config, model.spec),
        extractors=extractors or FeatureExtractors(mesh, batch_size),
        batch_size=batch_size,
    )
    is_run = folders.is_run(workdir)  # else weights from elsewhere
    averaged = bool(model.family.averaged) and not raw
    weights = (f"EMA {ema}".strip() if averaged else "raw") if is_run else "as given"
    others = averages_of(workdir, config, model, planned)
    result = evaluator.run(model.variables, seed=seed, weights=weights, averages=others)
    if evaluations and not result.rows:
        asked = ", ".join(evaluations)
        raise SettingError(
            f"family {config['family']!r} has no values of {asked}: ask for other --evaluations"
        )

    counts = sorted({e.count for e in planned if e.draws})
    words = [f"step{model.step:08d}", f"seed{seed}", *(f"n{n}" for n in counts)]
    words += [*evaluator.networks, *weights_word(raw, ema), *different, *(evaluations or ())]
    words.append(digest(evaluator))
    path = evaluate.write(workdir, "-".join(words), result, step=model.step, scheduled=False)
    if jax.process_index() == 0:
        about = f", {' and '.join(map(str, counts))} samples" if counts else ""
        print(f"{model.named} of {workdir}{about}:", flush=True)
        print(results.table(result.rows, config["published"]), flush=True)
        print(path, flush=True)
        if is_run:
            report.run(workdir)
    return result.rows


def averages_of(
    workdir: pathlib.Path,
    config: Mapping[str, Any],
    model: models.Model,
    planned: Sequence[Evaluation],
) -> evaluate.Averages:
    """The other averages of a model's checkpoint, read when they are asked for.

    Raises:
      ValueError: an evaluation is of one, and the weights are from elsewhere.
    """
    named = [e.name for e in planned if e.ema is not None]
    if named and not folders.is_run(workdir):
        raise SettingError(
            f"there is no run in {workdir} to take another average of: do not ask for "
            f"{', '.join(named)}"
        )
    step = None if model.best else model.step

    def average(half_life: float) -> Variables:
        same = {"step": step, "best": model.best, "family": model.family}
        return models.load(workdir, config, **same, ema=half_life).variables

    return average


def digest(evaluator: evaluate.Evaluator, *more: Any) -> str:
    """What tells a result from one of other settings, data or weights of feature networks.

    Eight letters of a name, which says in words only what is asked for most: evaluations made again
    get the same name, and no others replace them. `more` is what else a result depends on.
    """
    of_each = []
    for e in evaluator.planned:
        keys = ("reference_split", "statistics", "manifold_count") if e.draws else ()
        keys += ("lpips", "lpips_weights") if e.metric == "reconstruction" else ()
        keys += ("reference_split",) if e.metric == "translation" else ()
        network = e.metric in OF_NETWORK and evaluator.extractor(e).digest
        settings = {key: e.settings[key] for key in keys}
        own = [e.name, e.metric, e.sampling, e.count, e.limit, settings, network]
        of_each.append(own + [e.ema] * (e.ema is not None))
    data = evaluator.data
    of_data = [data.name, data.train_split, data.test_split, folders.as_dict(data.dataset.identity)]
    content = [of_each, evaluator.sampling, evaluator.seed, data.batch_size, of_data, *more]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def chosen(
    evaluations: Mapping[str, Mapping[str, Any]], names: Sequence[str] | None
) -> Mapping[str, Mapping[str, Any]]:
    """The evaluations of these names, a metric that is none of them with the usual settings."""
    return evaluations if names is None else {name: evaluations.get(name, {}) for name in names}


def of_count(planned: Sequence[Evaluation], count: int | None) -> Sequence[Evaluation]:
    """The evaluations, those of samples with so many, even if they have a count of their own."""
    return [e._replace(count=count) if count and e.draws else e for e in planned]


def check_same_data(model: models.Model, spec: Any) -> None:
    """Raises ValueError where the data set's examples are of another shape than the model's."""
    if model.spec.shape != spec.shape:
        shapes = ("x".join(map(str, shape)) for shape in (model.spec.shape, spec.shape))
        raise SettingError("the model draws samples of {}, the data set has {}".format(*shapes))
