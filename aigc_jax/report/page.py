"""A run as one page that needs nothing else: scores, samples, curves, settings, environment."""

import json
import pathlib
import shlex
from collections.abc import Mapping
from typing import Any

from aigc_jax import files
from aigc_jax.checks import flatten
from aigc_jax.report.plots import Curve, groups, plot
from aigc_jax.report.reading import (
    DAMAGE,
    NO_ORIGIN,
    PROTOCOL,
    SESSION,
    Evaluation,
    Folder,
    age,
    by_step,
    checked,
    illustrations,
    mapping,
    newest_reconstructions,
    optional,
    read_curves,
    read_evaluations,
    read_origin,
    read_pictures,
    read_plans,
    spread,
)
from aigc_jax.report.words import count, number

MOST_SAMPLES, MOST_GENERATED = 8, 3  # pictures embedded
MOST_NAMES = 6  # of classes, under the title


def write(workdir: str | pathlib.Path) -> pathlib.Path:
    """Makes `report.html` of a run from the files in its folder, whole or not at all.

    The page holds its pictures, curves and style, and loads nothing. The same files give the same
    bytes. A damaged file is passed over, and the page says so.
    """
    workdir = pathlib.Path(workdir)
    page = rendered("report.html.jinja", contents(workdir))
    path = workdir / "report.html"
    with files.replacing(path) as partial:
        partial.write_bytes(page)
    return path


def rendered(template: str, content: Mapping[str, Any]) -> bytes:
    """A page from a template of this folder."""
    import jinja2  # a tenth of a second, as matplotlib: only reports need them

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(content).encode(errors="replace")


def contents(workdir: pathlib.Path) -> dict[str, Any]:
    """What the template shows; a section without files is empty."""
    folder = Folder(workdir, [])
    config = optional(folder, "config.json", mapping, {})
    spec = optional(folder, "spec.json", mapping, {})
    origin = optional(folder, "origin.json", read_origin, NO_ORIGIN)
    curves, unread = optional(folder, "metrics.jsonl", read_curves, ({}, 0))
    if unread:
        folder.damaged.append(f"metrics.jsonl: {unread} line{'s' * (unread > 1)} cut or damaged")
    published = checked(folder, "config.json, published", lambda: _published(config), [])
    evaluations = read_evaluations(folder)
    asked = [evaluation for evaluation in evaluations if not evaluation.scheduled]
    scheduled = _scheduled([evaluation for evaluation in evaluations if evaluation.scheduled])
    for score in scheduled:  # the same scores, without their protocol
        curves.pop(f"eval/{score}", None)
    steps = [point[0] for points in curves.values() for point in points]
    curves, constants = _varying(curves)
    flat = flatten(config)
    samples = spread(folder, by_step(folder, "samples"), MOST_SAMPLES)
    steps += [s["step"] for s in samples] + [evaluation.step for evaluation in evaluations]
    illustrated = next((evaluation for evaluation in asked if evaluation.pictures), None)
    generated = sorted((workdir / "generated").glob("*.png"), key=age, reverse=True)
    return {
        "name": workdir.resolve().name,
        "summary": _summary(flat, spec, origin, max(steps, default=0)),
        "origin": origin,
        "evaluate": f"python launch.py --mode=evaluate --workdir={shlex.quote(str(workdir))}",
        "session": _headings(origin["sessions"]),
        "result": _table(asked[0], published) if asked else None,
        "published": published,
        "earlier": [_table(evaluation, published) for evaluation in asked[1:]],
        "samples": samples,
        "generated": read_pictures(folder, generated[:MOST_GENERATED]),
        "reconstructions": newest_reconstructions(folder),
        "illustrated": illustrated and illustrations(folder, illustrated),
        "scores_by_step": [plot(title, group) for title, group in scheduled.items()],
        "curves": [plot(title, group) for title, group in groups(curves)],
        "constants": constants,
        "plans": optional(folder, "plan.json", read_plans, []),
        "differences": _differences(flat, origin["base"]) if origin["base"] else None,
        "config": json.dumps(config, indent=2, ensure_ascii=False) if config else "",
        "damaged": folder.damaged,  # last: what is above adds to it
    }


def _headings(sessions: list[list[Any]]) -> list[str]:
    """Of the table of sessions, whose last column only those that went back have."""
    headings = ["from step", *SESSION, "packages", "went back"]
    return headings[: max(map(len, sessions), default=0)]


def _summary(flat: dict, spec: dict, origin: dict, step: int) -> list[str]:
    """The line under the title."""
    parts = [flat["family"]] if "family" in flat else []
    if "data.name" in flat:
        parts.append(f"{flat['data.name']} {_size(spec)}".strip())
    parts += _classes(spec)
    if "parameters" in origin:
        parts.append(f"{count(origin['parameters'])} parameters")
    return [*parts, f"step {step:,} of {count(flat.get('train.steps'))}"]


def _size(spec: dict) -> str:
    """Of one example, as the run's spec has it: "8×8×1" of images, else the kind of data."""
    try:
        field = spec["fields"]["x"]
        shape = "×".join(map(str, field["shape"]))
        return shape if field["kind"] == "image" else str(field["kind"])
    except DAMAGE:
        return ""


def _classes(spec: dict) -> list[str]:
    """How many classes the data have, and the names of the first; [] of data without."""
    try:
        label = spec["conditions"]["label"]
        names = [str(name) for name in label.get("names", ())]
        words = f"{label['classes']:,} classes"
    except DAMAGE:
        return []
    more = ["..."] if len(names) > MOST_NAMES else []
    return [f"{words}: {', '.join(names[:MOST_NAMES] + more)}" if names else words]


def _published(settings: dict) -> list[dict[str, str]]:
    """Rows of config.published."""
    return [
        {"metric": str(metric), "value": number(value), "source": str(source)}
        for metric, value, source in settings.get("published") or []
    ]


def _table(evaluation: Evaluation, published: list[dict[str, str]]) -> dict[str, Any]:
    """Measured beside published; what is published and was not measured comes last."""
    rows = []
    stated = [k for k in PROTOCOL if any(row[k] not in (None, "") for row in evaluation.rows)]
    for row in evaluation.rows:
        cells = [row[key] for key in stated]
        rows.append(
            {
                "metric": row["metric"],
                "value": "—" if row["n"] == 0 else number(row["value"]),
                "error": number(row["error"], 2) if row["error"] else "",
                "real": "" if row["real"] is None else number(row["real"]),
                "published": [p for p in published if p["metric"] == row["metric"]],
                "cells": ["—" if c in (None, "") else count(c) for c in cells],
            }
        )
    measured = {row["metric"] for row in rows}
    missing = [p for p in published if p["metric"] not in measured]
    return {
        "name": evaluation.name,
        "step": evaluation.step,
        "protocol": [PROTOCOL[key] for key in stated],
        "rows": rows,
        "missing": missing,
    }


def _differences(flat: dict[str, Any], base: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Rows (setting, its default, its value) of the settings that are not the default's."""

    def text(settings: dict[str, Any], key: str) -> str:
        return json.dumps(settings[key], ensure_ascii=False) if key in settings else "(absent)"

    keys = sorted(flat.keys() | base.keys())
    rows = [(key, text(base, key), text(flat, key)) for key in keys]
    return [row for row in rows if row[1] != row[2]]


def _varying(curves: dict) -> tuple[dict, list[str]]:
    """Curves worth a plot, and a line for each that never moves."""
    constant = {
        name: points[0][1]
        for name, points in curves.items()
        if len(points) > 1 and len({value for _, value, _ in points}) == 1
    }
    lines = [f"{name} is {number(value)}" for name, value in sorted(constant.items())]
    return {name: points for name, points in curves.items() if name not in constant}, lines


def _scheduled(evaluations: list[Evaluation]) -> dict[str, list[Curve]]:
    """Scores made while training, by metric: a line for each n, and for what else differs."""
    rows = [(e.step, row) for e in reversed(evaluations) for row in e.rows]
    by_metric = {}
    for metric in sorted({row["metric"] for _, row in rows}):
        of_metric = [(step, row) for step, row in rows if row["metric"] == metric]
        differing = [
            key
            for key in PROTOCOL
            if key == "n" or (key != "note" and len({str(row[key]) for _, row in of_metric}) > 1)
        ]
        lines: dict[str, list] = {}
        for step, row in of_metric:
            label = ", ".join(f"{PROTOCOL[key]}: {count(row[key])}" for key in differing)
            lines.setdefault(label, []).append((step, row["value"], row["error"]))
        by_metric[metric] = [Curve(label, points) for label, points in lines.items()]
    return by_metric
