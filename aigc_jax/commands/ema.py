"""Makes averages of any length of a run's snapshots (post-hoc EMA), or finds the best length."""

import argparse
import io
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
from PIL import Image

from aigc_jax import checks, files
from aigc_jax.commands import common, report
from aigc_jax.commands import evaluate as evaluate_command
from aigc_jax.errors import SettingError
from aigc_jax.evaluation import results
from aigc_jax.runs import averages, evaluate
from aigc_jax.runs import folder as folders
from aigc_jax.runs import model as models
from aigc_jax.runs.evaluations import Evaluation, check_draws, names_of_samples, plan, splits
from aigc_jax.runs.extractors import FeatureExtractors
from aigc_jax.runs.pictures import Picture
from aigc_jax.training import sharding
from aigc_jax.training.ema import WIDEST, settings_of

FLAGS: tuple[str, ...] = (
    "sigma_rel",
    "sigma_rels",
    "metric",
    "num",
    "seed",
    "sampler",
    "steps",
    "guidance",
    "batch",
    "step",
)


def main(flags: argparse.Namespace) -> None:
    """Runs the command as its flags say."""
    run(
        flags.workdir,
        flags.config,
        sigma_rel=flags.sigma_rel,
        sigma_rels=flags.sigma_rels,
        metric=flags.metric,
        count=flags.num,
        seed=flags.seed,
        settings={"sampler": flags.sampler, "steps": flags.steps, "guidance": flags.guidance},
        batch_size=flags.batch,
        step=flags.step,
    )


def widths(one: float | None, several: Iterable[float | str] | None) -> list[float]:
    """The relative widths that are asked for, one or several, in their order."""
    if (one is None) == (not several):
        raise SettingError("give --sigma-rel=0.07, or several lengths by --sigma-rels=0.05,0.1,0.2")
    try:
        found = sorted({float(width) for width in several or [one]})
    except ValueError as error:
        raise SettingError(f"--sigma-rels are numbers, such as 0.05,0.1,0.2: {error}") from error
    for width in found:
        if not 0 < width <= WIDEST:
            raise SettingError(f"a sigma_rel is above 0 and at most {WIDEST}, not {width:g}")
    return found


def run(
    workdir: str | pathlib.Path,
    config: Mapping[str, Any] | None = None,
    *,
    sigma_rel: float | None = None,
    sigma_rels: Sequence[float | str] | None = None,
    metric: str = "",
    count: int | None = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    batch_size: int = 64,
    step: int | None = None,
) -> list[results.Row]:
    """Averages of these relative widths at a checkpoint of a run, of the snapshots until then.

    Without a metric each is written, for `--ema=posthoc/WIDTH` of other commands; with one, each is
    judged: a table, and a plot of the metric against the width, go to evaluations/.

    Args:
      workdir, config, step: see `runs.model.load`.
      sigma_rel, sigma_rels: the relative width, or several of them.
      metric: of samples, such as "fd_digits", by the config's evaluation that has it.
      count, seed, settings, batch_size: of the samples, as for `evaluate`.

    Returns:
      The rows of the evaluation, for each width in turn; [] without a metric.

    Raises:
      FileNotFoundError, ValueError: no such run, one without snapshots, a width that they cannot
        make, a metric that no evaluation of the config has.
    """
    workdir, asked = files.expanded(workdir), widths(sigma_rel, sigma_rels)
    config, different = common.with_sampling(workdir, config, settings)
    folders.check_run(workdir)
    model = models.outline(workdir, config)
    place = "evaluations" if metric else averages.POSTHOC
    sharding.check_on_first(partial(files.check, workdir / place, folders=True, new=False))
    make = partial(
        averages.reconstruct,
        workdir,
        model.family,
        settings_of(model.config["ema"]),
        asked,
        step=step,
        mode=model.config["train"]["sharding"],
    )
    if not metric:
        write(workdir, model, make())
        return []
    (chosen,) = evaluate_command.of_count([with_metric(metric, model)], count)
    data = common.open_data(model.config, splits([chosen]))
    evaluate_command.check_same_data(model, data.spec)
    mesh = sharding.make_mesh()
    evaluator = evaluate.Evaluator(
        [chosen],
        model.family,
        data,
        mesh,
        seed=model.config["seed"],
        sampling=model.config["sampling"],
        rebuild=common.rebuilder(model.config, model.spec),
        extractors=FeatureExtractors(mesh, batch_size),
        batch_size=batch_size,
    )
    made = make()
    constants = models.constants(model.config, model.family)
    found = judged(evaluator, made, constants, seed, metric)
    words = [f"ema-step{made.step:08d}", f"seed{seed}", f"n{chosen.count}", *different]
    words += [chosen.name, evaluate_command.digest(evaluator, asked)]
    rows = [row for width, own in found.items() for row in named(own, width)]
    result = evaluate.Result(rows, [plotted(found, metric)])
    path = evaluate.write(workdir, "-".join(words), result, step=made.step, scheduled=False)
    if jax.process_index() == 0:
        print(results.table(rows), path, sep="\n", flush=True)
        report.run(workdir)
    return rows


def with_metric(metric: str, model: models.Model) -> Evaluation:
    """The evaluation of a model's config that has a metric of samples."""
    check_draws(model.family, [metric])
    planned = plan(model.config["evaluations"], model.config["evaluation"])
    found = {n: e for e in planned if e.draws for n in names_of_samples(e, model.family)}
    checks.one_of("--metric", metric, found)
    return found[metric]._replace(ema=None)


def write(workdir: pathlib.Path, model: models.Model, made: averages.Reconstruction) -> None:
    """Writes each average, and says how to use it."""
    about, keep = {"config": folders.as_dict(model.config)}, model.config["checkpoint"]["keep"]
    for sigma_rel, left in made.left.items():
        folder = averages.save(workdir, model.family, sigma_rel, made, about, keep)
        if jax.process_index() == 0:
            print(
                f"step {made.step}, average of sigma_rel {sigma_rel:g} (its profile to within "
                f"{left:.2g}): {folder}, taken by --ema={averages.POSTHOC}/{folder.name}",
                flush=True,
            )


def judged(
    evaluator: evaluate.Evaluator,
    made: averages.Reconstruction,
    constants: Mapping[str, Any],
    seed: int,
    metric: str,
) -> dict[float, list[results.Row]]:
    """{width: rows of the evaluation}, with the width in the name of their evaluation."""
    found = {}
    for sigma_rel, variables in made.variables.items():
        weights = f"EMA {averages.POSTHOC}/{sigma_rel:g}"
        variables = variables._replace(constants=constants)
        rows = evaluator.of_samples(variables, seed=seed, weights=weights)
        if jax.process_index() == 0:
            value = results.number(of_metric(rows, metric).value)
            print(f"sigma_rel {sigma_rel:g}: {metric} {value}", flush=True)
        found[sigma_rel] = rows
    return found


def named(rows: Iterable[results.Row], sigma_rel: float) -> list[results.Row]:
    """The rows with a width in the name of their evaluation, which tells them apart."""
    words = f"sigma_rel {sigma_rel:g}"
    return [row._replace(evaluation=f"{row.evaluation} {words}".strip()) for row in rows]


def of_metric(rows: Iterable[results.Row], metric: str) -> results.Row:
    """The row of a metric; one without a value where samples allow none."""
    return next((r for r in rows if r.key == metric), results.Row(metric, math.nan, 0))


def plotted(found: Mapping[float, Sequence[results.Row]], metric: str) -> Picture:
    """A metric against the relative width, with a line where real data are."""
    from matplotlib.figure import Figure

    rows = [of_metric(rows, metric) for rows in found.values()]
    figure = Figure(figsize=(6, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(list(found), [row.value for row in rows], marker="o", label=f"{rows[0].n} samples")
    real = next((row.real for row in rows if row.real is not None), None)
    if real is not None:
        axes.axhline(real, linestyle="--", color="gray", label="held-out real data")
    axes.set_xlabel("relative width of the average, sigma_rel")
    axes.set_ylabel(metric)
    axes.grid(True, alpha=0.3)
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    caption = f"{metric} of averages of different length, made of one run's snapshots."
    return Picture("lengths", caption, Image.open(buffer).convert("RGB"))
