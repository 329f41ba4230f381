"""A run as one page that needs nothing else: scores, samples, curves, settings, environment."""

import base64
import io
import json
import math
import pathlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from PIL import Image

from aigc_jax.evaluation.report_plots import Curve, groups, plot

PROTOCOL = {  # of a score, as an evaluation's rows name it: as the page does
    "n": "images",
    "network": "feature network",
    "reference": "reference",
    "sampler": "sampler",
    "steps": "sampling steps",
    "weights": "weights",
    "seed": "seed",
    "note": "note",
}
SESSION = ("time", "devices", "processes", "machine", "python", "commit")
NO_ORIGIN = {"config": None, "command": None, "base": {}, "sessions": []}
MOST_SAMPLES, MOST_GENERATED = 8, 3  # pictures embedded
# What parsing a file raises where it is cut short, overwritten or not what its name says.
DAMAGE = (ArithmeticError, AttributeError, LookupError, OSError, RecursionError, SyntaxError)
DAMAGE += (TypeError, ValueError)

T = TypeVar("T")


class Folder(NamedTuple):
    """A run's folder, and a line for each file of it that could not be read."""

    root: pathlib.Path
    damaged: list[str]


class Evaluation(NamedTuple):
    """One `evaluations/*.json`; a value that is not finite is NaN."""

    name: str
    step: int
    scheduled: bool
    rows: list[dict[str, Any]]
    pictures: dict[str, str]


def write(workdir: str | pathlib.Path) -> pathlib.Path:
    """Makes `report.html` of a run from the files in its folder, whole or not at all.

    The page holds its pictures, curves and style, and loads nothing. The same files give the same
    bytes. A damaged file is passed over, and the page says so.

    Raises:
      FileNotFoundError: the folder holds no `config.json`.
    """
    import jinja2  # a tenth of a second, as matplotlib below: only reports need them

    workdir = pathlib.Path(workdir)
    if not (workdir / "config.json").is_file():
        raise FileNotFoundError(
            f"no run in {workdir}: train first, or name its folder by --workdir"
        )
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.jinja").render(contents(workdir))
    partial, path = workdir / "report.html.partial", workdir / "report.html"
    try:
        partial.write_bytes(page.encode(errors="replace"))
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    return path


def contents(workdir: pathlib.Path) -> dict[str, Any]:
    """What the template shows; a section without files is empty."""
    folder = Folder(workdir, [])
    config = _optional(folder, "config.json", _mapping, {})
    spec = _optional(folder, "spec.json", _mapping, {})
    origin = _optional(folder, "origin.json", _origin, NO_ORIGIN)
    curves, unread = _optional(folder, "metrics.jsonl", _curves, ({}, 0))
    if unread:
        folder.damaged.append(f"metrics.jsonl: {unread} line{'s' * (unread > 1)} cut or damaged")
    published = _checked(folder, "config.json, published", lambda: _published(config), [])
    evaluations = _evaluations(folder)
    asked = [evaluation for evaluation in evaluations if not evaluation.scheduled]
    scheduled = _scheduled([evaluation for evaluation in evaluations if evaluation.scheduled])
    for metric in scheduled:  # the same scores, without their protocol
        curves.pop(f"eval/{metric}", None)
    steps = [point[0] for points in curves.values() for point in points]
    curves, constants = _varying(curves)
    flat = _flatten(config)
    samples = _spread(folder, _by_step(folder, "samples"), MOST_SAMPLES)
    steps += [s["step"] for s in samples] + [evaluation.step for evaluation in evaluations]
    illustrated = next((evaluation for evaluation in asked if evaluation.pictures), None)
    generated = sorted((workdir / "generated").glob("*.png"), key=_age, reverse=True)
    return {
        "name": workdir.resolve().name,
        "summary": _summary(flat, spec, origin, max(steps, default=0)),
        "origin": origin,
        "evaluate": f"python launch.py --mode=evaluate --workdir={shlex.quote(str(workdir))}",
        "session": ["from step", *SESSION, "packages"],
        "result": _table(asked[0], published) if asked else None,
        "published": published,
        "earlier": [_table(evaluation, published) for evaluation in asked[1:]],
        "samples": samples,
        "generated": _pictures(folder, generated[:MOST_GENERATED]),
        "restored": _restored(folder),
        "illustrated": illustrated and _illustrations(folder, illustrated),
        "scores_by_step": [plot(title, group) for title, group in scheduled.items()],
        "curves": [plot(title, group) for title, group in groups(curves)],
        "constants": constants,
        "differences": _differences(flat, origin["base"]) if origin["base"] else None,
        "config": json.dumps(config, indent=2, ensure_ascii=False) if config else "",
        "damaged": folder.damaged,  # last: what is above adds to it
    }


# Files


def _checked(folder: Folder, name: str, read: Callable[[], T], otherwise: T) -> T:
    """`read()`; `otherwise`, with a line for the reader, where that finds damage."""
    try:
        return read()
    except DAMAGE as error:
        reason = error.strerror if isinstance(error, OSError) else None
        folder.damaged.append(f"{name}: {reason or f'damaged ({error or type(error).__name__})'}")
        return otherwise


def _optional(folder: Folder, name: str, parse: Callable[[bytes], T], otherwise: T) -> T:
    path = folder.root / name
    if not path.exists():
        return otherwise
    return _checked(folder, name, lambda: parse(path.read_bytes()), otherwise)


def _mapping(content: bytes) -> dict[str, Any]:
    value = json.loads(content)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _origin(content: bytes) -> dict[str, Any]:
    origin = _mapping(content)
    sessions, packages = [], None
    for session in origin.get("sessions", []):
        before, packages = packages, {k: str(v) for k, v in session.get("packages", {}).items()}
        listed = ", ".join(f"{name} {version}" for name, version in sorted(packages.items()))
        cells = [session.get(key) for key in SESSION]
        cells = [_count(session.get("step")), *("—" if cell is None else cell for cell in cells)]
        sessions.append([*cells, "as before" if listed and packages == before else listed or "—"])
    base = _flatten(origin.get("base") or {})
    return NO_ORIGIN | origin | {"sessions": sessions, "base": base}


def _curves(content: bytes) -> tuple[dict[str, list[tuple[float, float, float]]], int]:
    """Curves by name, and how many lines could not be read."""
    curves, unread = {}, 0
    for line in filter(str.strip, content.decode(errors="replace").split("\n")):
        try:
            row = _mapping(line)
            step = _step(row.pop("step"))
            values = {k: _value(v) for k, v in row.items() if v is None or _is_number(v)}
        except DAMAGE:
            unread += 1
            continue
        for name, value in values.items():
            curves.setdefault(name, []).append((step, value, 0.0))
    return curves, unread


def _evaluations(folder: Folder) -> list[Evaluation]:
    """Highest step first; of one step, the one last written."""

    def parse(content: bytes) -> Evaluation:
        read = _mapping(content)
        rows = [
            {"metric": str(row["metric"]), "value": _value(row["value"]), "real": row.get("real")}
            | {"error": abs(_value(row.get("error") or 0.0))}
            | {key: row.get(key) for key in PROTOCOL}
            for row in read["rows"]
        ]
        pictures = {str(k): str(v) for k, v in (read.get("pictures") or {}).items()}
        scheduled = bool(read.get("scheduled"))
        return Evaluation(path.stem, _step(read["step"]), scheduled, rows, pictures)

    found = []
    for path in sorted((folder.root / "evaluations").glob("*.json"), key=_age, reverse=True):
        found.append(_optional(folder, f"evaluations/{path.name}", parse, None))
    return sorted(filter(None, found), key=lambda evaluation: -evaluation.step)


def _picture(folder: Folder, name: str) -> dict[str, Any] | None:
    """A PNG as a data URI with the size to show it in; None, with a line, where it is damaged."""

    def read() -> dict[str, Any]:
        if pathlib.PurePath(name).is_absolute() or ".." in pathlib.PurePath(name).parts:
            raise ValueError("not in the run's folder")
        content = (folder.root / name).read_bytes()
        try:
            image = Image.open(io.BytesIO(content), formats=["PNG"])
            image.load()  # opening reads no pixels: a cut is found here
        except DAMAGE as error:  # whose text has an address in memory, another each time
            raise ValueError("not a whole PNG") from error
        factor = max(1, 256 // max(image.size))  # a small picture is shown by its pixels
        width, height = (factor * side for side in image.size)
        uri = "data:image/png;base64," + base64.b64encode(content).decode()
        return {"name": name, "uri": uri, "width": width, "height": height, "factor": factor}

    return _checked(folder, name, read, None)


def _pictures(folder: Folder, paths: Sequence[pathlib.Path]) -> list[dict[str, Any]]:
    names = [path.relative_to(folder.root).as_posix() for path in paths]
    return [picture for name in names if (picture := _picture(folder, name))]


def _by_step(folder: Folder, name: str) -> list[pathlib.Path]:
    """A folder's `00001000.png`, first step first."""
    pictures = (folder.root / name).glob("*.png")
    return sorted((p for p in pictures if p.stem.isdecimal()), key=lambda p: int(p.stem))


def _spread(folder: Folder, paths: list[pathlib.Path], most: int) -> list[dict[str, Any]]:
    """First, last, and evenly in between, of the pictures that are not damaged."""
    shown = paths
    if len(paths) > most:
        shown = [paths[round(i * (len(paths) - 1) / (most - 1))] for i in range(most)]
    pictures = {path: _pictures(folder, [path]) for path in shown}
    if all(pictures.values()):
        return [picture | {"step": int(p.stem)} for p, (picture,) in pictures.items()]
    return _spread(folder, [p for p in paths if pictures.get(p, True)], most)


def _restored(folder: Folder) -> dict[str, Any] | None:
    for path in reversed(_by_step(folder, "restored")):
        if pictures := _pictures(folder, [path]):
            about = _optional(folder, f"restored/{path.stem}.json", _mapping, {})
            return pictures[0] | {"step": int(path.stem), "caption": about.get("caption", "")}
    return None


def _illustrations(folder: Folder, evaluation: Evaluation) -> dict[str, Any]:
    pictures = [
        picture | {"caption": caption}
        for caption, name in evaluation.pictures.items()
        if (picture := _picture(folder, name))
    ]
    return {"step": evaluation.step, "pictures": pictures}


def _age(path: pathlib.Path) -> tuple[int, str]:
    return path.lstat().st_mtime_ns, path.name


# Words and numbers


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _step(value: Any) -> int:
    if not (_is_number(value) and 0 <= value < 2**53):
        raise ValueError(f"no step: {value!r:.20}")
    return int(value)


def _value(value: Any) -> float:
    """A number of a file; NaN for null, for infinities, and for what no plot could place."""
    value = math.nan if value is None else float(value)
    return value if abs(value) < 1e100 else math.nan


def _number(value: Any, digits: int = 4) -> str:
    """4 significant digits; text as it is."""
    if not _is_number(value):
        return str(value)
    if not math.isfinite(value):
        return "not finite"
    plain = 1e4 <= abs(value) < 1e7  # else 12,340 would read 1.234e+04
    return f"{float(f'{value:.{digits}g}'):,.0f}" if plain else f"{value:.{digits}g}"


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "?" if value is None else str(value)


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings -> {"data.name": value}."""
    flat = {}
    for key, value in config.items():
        nested = isinstance(value, Mapping) and value
        flat |= _flatten(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return flat


def _summary(flat: dict, spec: dict, origin: dict, step: int) -> list[str]:
    parts = [flat["family"]] if "family" in flat else []
    if "data.name" in flat:
        shape = spec.get("image_shape")
        size = f" {'×'.join(map(str, shape))}" if isinstance(shape, list) else ""
        parts.append(f"{flat['data.name']}{size}")
    if "parameters" in origin:
        parts.append(f"{_count(origin['parameters'])} parameters")
    return [*parts, f"step {step:,} of {_count(flat.get('train.steps'))}"]


def _published(config: dict) -> list[dict[str, str]]:
    """Rows of config.published."""
    return [
        {"metric": str(metric), "value": _number(value), "source": str(source)}
        for metric, value, source in config.get("published") or []
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
                "value": _number(row["value"]),
                "error": _number(row["error"], 2) if row["error"] else "",
                "real": "" if row["real"] is None else _number(row["real"]),
                "published": [p for p in published if p["metric"] == row["metric"]],
                "cells": ["—" if c in (None, "") else _count(c) for c in cells],
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
    lines = [f"{name} is {_number(value)}" for name, value in sorted(constant.items())]
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
            label = ", ".join(f"{PROTOCOL[key]}: {_count(row[key])}" for key in differing)
            lines.setdefault(label, []).append((step, row["value"], row["error"]))
        by_metric[metric] = [Curve(label, points) for label, points in lines.items()]
    return by_metric
