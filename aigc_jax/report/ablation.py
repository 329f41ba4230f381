"""An ablation's runs compared: tables as text, CSV and JSON, and one page with plots and samples.

All is read from the folder: what ablation.json names, and the ordinary runs in runs/VARIANT/seed_N.
"""

import csv
import io
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from aigc_jax import files
from aigc_jax.report.page import rendered
from aigc_jax.report.plots import Curve, bars, legend, plot
from aigc_jax.report.reading import (
    Folder,
    by_step,
    optional,
    read_curves,
    read_evaluations,
    read_pictures,
)
from aigc_jax.report.words import number

RESAMPLES = 10_000  # of the bootstrap
LEVEL = 0.95
SHARED = "time/replicas"  # how many runs shared a program: each took that part of its time
SPEED = "time/images_per_second"

Points = Sequence[tuple[float, float, float]]


class Run(NamedTuple):
    """One run as its folder has it.

    Attributes:
      values: {metric: its value at the end}.
      curves: {name: points (step, value, error)}.
      seconds: {step: of training up to it}.
    """

    values: Mapping[str, float]
    curves: Mapping[str, Points]
    seconds: Mapping[float, float]


class Summary(NamedTuple):
    """A metric of a variant over its seeds.

    Attributes:
      mean, std: over n seeds; std is that of a sample (n - 1), NaN of one seed.
      difference: mean of (variant - reference) over the seeds that both have; NaN without any.
      low, high: its interval by a paired bootstrap over seeds; NaN below two pairs.
      pairs: how many seeds both have.
    """

    n: int
    mean: float
    std: float
    difference: float = math.nan
    low: float = math.nan
    high: float = math.nan
    pairs: int = 0


def evaluated(folder: pathlib.Path, step: int) -> bool:
    """Whether a run was evaluated at a step, other than on its schedule."""
    found = read_evaluations(Folder(folder, []))
    return any(not one.scheduled and one.step == step for one in found)


def read_run(folder: pathlib.Path, step: int, batch_size: int) -> Run | None:
    """A run that has come to its last step; None of any other."""
    where = Folder(folder, [])
    curves, _ = optional(where, "metrics.jsonl", read_curves, ({}, 0))
    if max((points[-1][0] for points in curves.values()), default=0) < step:
        return None
    values = {name: points[-1][1] for name, points in curves.items()}
    for one in reversed(read_evaluations(where)):  # the newest last, over the others
        if not one.scheduled and one.step == step:
            values |= {row["metric"]: row["value"] for row in one.rows}
    shared = {at: count for at, count, _ in curves.get(SHARED, ())}
    seconds, before, total = {0: 0.0}, 0.0, 0.0
    for at, images_per_second, _ in curves.get(SPEED, ()):
        total += (at - before) * batch_size / images_per_second / shared.get(at, 1)
        seconds[at], before = total, at
    return Run(values, curves, seconds)


def summary(own: Mapping[int, float], reference: Mapping[int, float] | None) -> Summary:
    """What a metric of a variant is over its seeds, and how it differs from the reference's.

    Args:
      own, reference: {seed: value}; reference is None for the reference itself.
    """
    values = np.array([v for v in own.values() if math.isfinite(v)])
    std = float(values.std(ddof=1)) if len(values) > 1 else math.nan
    mean = float(values.mean()) if len(values) else math.nan
    if reference is None:
        return Summary(len(values), mean, std)
    both = [s for s in own if math.isfinite(own[s]) and math.isfinite(reference.get(s, math.nan))]
    if not both:
        return Summary(len(values), mean, std)
    found = np.array([own[seed] - reference[seed] for seed in both])
    low, high = interval(found)
    return Summary(len(values), mean, std, float(found.mean()), low, high, len(both))


def interval(differences: np.ndarray) -> tuple[float, float]:
    """The percentile interval of a mean by bootstrap over pairs (Efron & Tibshirani 1993, 13.3).

    differences: [n], of each seed. With few seeds it is too narrow: of five it holds the true mean
    in some 83 % of cases where 95 are meant (tests/report/test_ablation.py counts them).
    """
    n = len(differences)
    if n < 2:
        return math.nan, math.nan
    drawn = np.random.default_rng(0).integers(n, size=(RESAMPLES, n))
    means = differences[drawn].mean(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


class Comparison(NamedTuple):
    """All that an ablation's folder says.

    Attributes:
      about: of ablation.json.
      runs: {(variant, seed): run}, of those that are finished.
      rows: {(metric, variant): summary}.
    """

    about: Mapping[str, Any]
    runs: Mapping[tuple[str, int], Run]
    rows: Mapping[tuple[str, str], Summary]

    @property
    def comparisons(self) -> int:
        """How many differences from the reference the rows hold."""
        return sum(row.pairs > 0 for row in self.rows.values())


def compared(workdir: pathlib.Path) -> Comparison:
    """The comparison of the runs that are finished."""
    about = json.loads((workdir / "ablation.json").read_text())
    runs = {}
    for variant in about["variants"]:
        step, batch_size = about["steps"][variant], about["batch_sizes"][variant]
        for seed in about["seeds"]:
            run = read_run(workdir / "runs" / variant / f"seed_{seed}", step, batch_size)
            if run:
                runs[variant, seed] = run
    return summarised(about, runs)


def summarised(about: Mapping[str, Any], runs: Mapping[tuple[str, int], Run]) -> Comparison:
    """The comparison of these runs, {(variant, seed): run}, as ablation.json asks for it."""
    rows = {}
    for metric in about["metrics"]:
        of = {
            variant: {
                seed: runs[variant, seed].values[metric]
                for seed in about["seeds"]
                if metric in getattr(runs.get((variant, seed)), "values", {})
            }
            for variant in about["variants"]
        }
        reference = about["reference"]
        for variant, own in of.items():
            rows[metric, variant] = summary(own, of[reference] if variant != reference else None)
    return Comparison(about, runs, rows)


def write(workdir: pathlib.Path, failed: Mapping[str, str] | None = None) -> pathlib.Path:
    """Writes table.md, table.csv, results.json and report.html; gives the page's path.

    failed: {run: why}, of the runs that failed just now.
    """
    found, failed = compared(workdir), dict(failed or {})
    files.write_text(workdir / "table.md", markdown(found, failed))
    files.write_text(workdir / "table.csv", as_csv(found))
    files.write_json(workdir / "results.json", as_json(found, failed))
    path = workdir / "report.html"
    with files.replacing(path) as partial:
        partial.write_bytes(rendered("ablation.html.jinja", contents(workdir, found, failed)))
    return path


def table(found: Comparison) -> tuple[list[str], list[list[str]]]:
    """Headings, and a row for each variant: n, then each metric and its difference."""
    about, headings, rows = found.about, ["variant", "n"], []
    for metric in about["metrics"]:
        headings += [metric, f"difference of {metric}"]
    for variant in about["variants"]:
        n = sum(name == variant for name, _ in found.runs)
        row = [variant, str(n)]
        for metric in about["metrics"]:
            row += cells(found.rows[metric, variant], n)
        rows.append(row)
    return headings, rows


def cells(row: Summary, n: int) -> tuple[str, str]:
    """Mean ± deviation, with their number where it is not n; the difference and its interval."""
    mean = number(row.mean) if row.n else "—"
    spread = f" ± {number(row.std, 2)}" if row.n > 1 else ""
    of = f" (n = {row.n})" if row.n not in (0, n) else ""
    difference = "" if math.isnan(row.difference) else f"{row.difference:+.3g}"
    if row.pairs > 1:
        difference += f" [{row.low:+.3g}, {row.high:+.3g}]"
    return mean + spread + of, difference


def notes(found: Comparison, failed: Mapping[str, str]) -> list[str]:
    """Sentences below a table: what its numbers are, what is missing."""
    about, count = found.about, found.comparisons
    said = [
        "Mean ± standard deviation over n seeds; difference from "
        f"{about['reference']} over the same seeds, with its {LEVEL:.0%} interval by a paired "
        "bootstrap."
    ]
    if count and len(about["seeds"]) > 1:
        said[0] += (
            f" {count} comparison{'s were' if count != 1 else ' was'} made: where nothing differs "
            f"at all, about {(1 - LEVEL) * count:.1g} of their intervals leave out 0."
        )
    wanted = len(about["variants"]) * len(about["seeds"])
    if len(found.runs) < wanted:
        said.append(f"{len(found.runs)} of {wanted} runs are finished.")
    return said + [f"{name} failed: {why}" for name, why in failed.items()]


def markdown(found: Comparison, failed: Mapping[str, str]) -> str:
    """The comparison as a table of Markdown, and its notes."""
    headings, rows = table(found)
    lines = [headings, ["---"] * len(headings), *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([text, *notes(found, failed)]) + "\n"


def as_csv(found: Comparison) -> str:
    """The comparison with a line for each metric and variant."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["metric", "variant", *Summary._fields])
    for (metric, variant), row in found.rows.items():
        writer.writerow([metric, variant, *("" if math.isnan(x) else x for x in row)])
    return text.getvalue()


def as_json(found: Comparison, failed: Mapping[str, str]) -> dict[str, Any]:
    """The comparison, and each run's values."""

    def finite(x: float) -> float | None:
        return x if math.isfinite(x) else None

    rows = [
        {"metric": metric, "variant": variant} | {k: finite(x) for k, x in row._asdict().items()}
        for (metric, variant), row in found.rows.items()
    ]
    metrics = found.about["metrics"]
    runs = [
        {
            "variant": variant,
            "seed": seed,
            "seconds": max(run.seconds.values()),
            "values": {m: finite(run.values[m]) for m in metrics if m in run.values},
        }
        for (variant, seed), run in found.runs.items()
    ]
    of_all = {"level": LEVEL, "comparisons": found.comparisons, "failed": dict(failed)}
    return {**found.about, **of_all, "rows": rows, "runs": runs}


def band(runs: Sequence[Run], name: str, axis: str, batch_size: int) -> Points:
    """A metric of several runs at the steps that all have: mean and standard deviation.

    axis: "images", or "seconds" of training, then their mean as well.
    """
    by_run = [{at: value for at, value, _ in run.curves.get(name, ())} for run in runs]
    steps = sorted(set.intersection(*map(set, by_run))) if by_run else []
    points = []
    for at in steps:
        values = np.array([values[at] for values in by_run])
        place = at * batch_size
        if axis == "seconds":
            known = [run.seconds.get(at) for run in runs]
            if None in known:
                continue
            place = float(np.mean(known))
        error = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        points.append((place, float(values.mean()), error))
    return points


def contents(workdir: pathlib.Path, found: Comparison, failed: Mapping[str, str]) -> dict[str, Any]:
    """What the page shows."""
    about = found.about
    by_variant = {
        variant: [run for (name, _), run in found.runs.items() if name == variant]
        for variant in about["variants"]
    }
    names = sorted({name for run in found.runs.values() for name in run.curves})
    scheduled = [name for name in names if _is_compared(name, about["metrics"])]
    curves = []
    for name in scheduled:
        for axis in ("images", "seconds"):
            drawn = [
                Curve(variant, band(runs, name, axis, about["batch_sizes"][variant]))
                for variant, runs in by_variant.items()
            ]
            curves.append(plot(f"{name}, by {axis}", drawn, bands=True) | {"legend": []})
    folder = Folder(workdir, [])
    samples = []
    seed = about["seeds"][0]
    for variant in about["variants"]:
        own = by_step(folder, f"runs/{variant}/seed_{seed}/samples")
        for picture in read_pictures(folder, own[-1:]):
            samples.append(picture | {"variant": variant, "step": int(own[-1].stem)})
    first = about["metrics"][0]
    cost = []
    for variant, runs in by_variant.items():
        took = [max(run.seconds.values()) for run in runs]
        row = found.rows[first, variant]
        point = [(float(np.mean(took)), row.mean, _zero(row.std))] if took and row.n else []
        cost.append(Curve(variant, point))
    return {
        "name": workdir.resolve().name,
        "summary": [
            about["family"], about["data"], f"{len(about['variants'])} variants",
            f"{len(about['seeds'])} seeds",
        ],
        "headings": table(found)[0],
        "rows": table(found)[1],
        "notes": notes(found, failed),
        "bars": [
            bars(metric, {v: _of_row(found.rows[metric, v]) for v in about["variants"]})
            for metric in about["metrics"]
        ],
        "curves": curves,
        "cost": plot(f"{first} by seconds of training", cost) | {"legend": []},
        "colours": legend([Curve(variant, []) for variant in about["variants"]]),
        "samples": samples,
        "seed": seed,
        "settings": [(name, json.dumps(own)) for name, own in about["variants"].items()],
        "damaged": folder.damaged,
    }  # fmt: skip


def _is_compared(name: str, metrics: Sequence[str]) -> bool:
    """Whether a run's curve is one of the metrics, or one by the same name on its schedule."""
    return name in metrics or name.partition("/")[2] in metrics


def _of_row(row: Summary) -> tuple[float, float]:
    return row.mean, _zero(row.std)


def _zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value
