"""Reads the files of a run's folder; a damaged one is passed over, with a line for the reader."""

import base64
import io
import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from PIL import Image

from aigc_jax.checks import flatten
from aigc_jax.errors import SettingError
from aigc_jax.report.words import count, is_number

PROTOCOL = {  # of a score, as an evaluation's rows name it: as the page does
    "n": "images",
    "network": "feature network",
    "reference": "reference",
    "sampler": "sampler",
    "steps": "sampling steps",
    "calls": "network calls a sample (NFE)",
    "weights": "weights",
    "seed": "seed",
    "note": "note",
}
SESSION = ("time", "devices", "processes", "machine", "python", "commit")
NO_ORIGIN = {"config": None, "command": None, "base": {}, "sessions": []}
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


def checked(folder: Folder, name: str, read: Callable[[], T], otherwise: T) -> T:
    """`read()`; `otherwise`, with a line for the reader, where that finds damage."""
    try:
        return read()
    except DAMAGE as error:
        reason = error.strerror if isinstance(error, OSError) else None
        folder.damaged.append(f"{name}: {reason or f'damaged ({error or type(error).__name__})'}")
        return otherwise


def optional(folder: Folder, name: str, parse: Callable[[bytes], T], otherwise: T) -> T:
    """What `parse` makes of a file; `otherwise` where there is none, or a damaged one."""
    path = folder.root / name
    if not path.exists():
        return otherwise
    return checked(folder, name, lambda: parse(path.read_bytes()), otherwise)


def mapping(content: bytes) -> dict[str, Any]:
    """A file that holds one JSON object."""
    value = json.loads(content)
    if not isinstance(value, dict):
        raise SettingError("not a JSON object")
    return value


def read_origin(content: bytes) -> dict[str, Any]:
    """`origin.json`, its sessions as rows of the table of environments."""
    origin = mapping(content)
    sessions, packages = [], None
    for session in origin.get("sessions", []):
        before, packages = packages, {k: str(v) for k, v in session.get("packages", {}).items()}
        listed = ", ".join(f"{name} {version}" for name, version in sorted(packages.items()))
        cells = [session.get(key) for key in SESSION]
        cells = [count(session.get("step")), *("—" if cell is None else cell for cell in cells)]
        cells.append("as before" if listed and packages == before else listed or "—")
        sessions.append([*cells, _went_back(session)])
    if not any(cells[-1] for cells in sessions):  # as of most runs
        sessions = [cells[:-1] for cells in sessions]
    base = flatten(origin.get("base") or {})
    return NO_ORIGIN | origin | {"sessions": sessions, "base": base}


def _went_back(session: dict[str, Any]) -> str:
    """Of a session that went on from an earlier checkpoint, that it did and what had changed."""
    if session.get("from_step") is None:
        return ""
    changes = "; ".join(map(str, session.get("changes") or ())) or "nothing changed"
    return f"back to step {count(session['from_step'])}: {changes}"


def read_curves(content: bytes) -> tuple[dict[str, list[tuple[float, float, float]]], int]:
    """Curves by name, and how many lines could not be read."""
    curves, unread = {}, 0
    for line in filter(str.strip, content.decode(errors="replace").split("\n")):
        try:
            row = mapping(line)
            step = as_step(row.pop("step"))
            values = {k: as_value(v) for k, v in row.items() if v is None or is_number(v)}
        except DAMAGE:
            unread += 1
            continue
        for name, value in values.items():
            curves.setdefault(name, []).append((step, value, 0.0))
    return curves, unread


def read_evaluations(folder: Folder) -> list[Evaluation]:
    """Highest step first; of one step, the one last written."""

    def parse(content: bytes) -> Evaluation:
        read = mapping(content)
        rows = [
            {"metric": key(row), "value": as_value(row["value"]), "real": row.get("real")}
            | {"error": abs(as_value(row.get("error") or 0.0))}
            | {key: row.get(key) for key in PROTOCOL}
            for row in read["rows"]
        ]
        pictures = {str(k): str(v) for k, v in (read.get("pictures") or {}).items()}
        scheduled = bool(read.get("scheduled"))
        return Evaluation(path.stem, as_step(read["step"]), scheduled, rows, pictures)

    found = []
    for path in sorted((folder.root / "evaluations").glob("*.json"), key=age, reverse=True):
        found.append(optional(folder, f"evaluations/{path.name}", parse, None))
    return sorted(filter(None, found), key=lambda evaluation: -evaluation.step)


def read_picture(folder: Folder, name: str) -> dict[str, Any] | None:
    """A PNG as a data URI with the size to show it in; None, with a line, where it is damaged."""

    def read() -> dict[str, Any]:
        if pathlib.PurePath(name).is_absolute() or ".." in pathlib.PurePath(name).parts:
            raise SettingError("not in the run's folder")
        content = (folder.root / name).read_bytes()
        try:
            image = Image.open(io.BytesIO(content), formats=["PNG"])
            image.load()  # opening reads no pixels: a cut is found here
        except DAMAGE as error:  # whose text has an address in memory, another each time
            raise SettingError("not a whole PNG") from error
        factor = max(1, 256 // max(image.size))  # a small picture is shown by its pixels
        width, height = (factor * side for side in image.size)
        uri = "data:image/png;base64," + base64.b64encode(content).decode()
        return {"name": name, "uri": uri, "width": width, "height": height, "factor": factor}

    return checked(folder, name, read, None)


def read_pictures(folder: Folder, paths: Sequence[pathlib.Path]) -> list[dict[str, Any]]:
    """Those of the pictures that are not damaged."""
    names = [path.relative_to(folder.root).as_posix() for path in paths]
    return [picture for name in names if (picture := read_picture(folder, name))]


def by_step(folder: Folder, name: str) -> list[pathlib.Path]:
    """A folder's `00001000.png`, first step first."""
    pictures = (folder.root / name).glob("*.png")
    return sorted((p for p in pictures if p.stem.isdecimal()), key=lambda p: int(p.stem))


def read_plans(content: bytes) -> list[dict[str, Any]]:
    """`plan.json`: of each topology its name and rows (what, how much)."""
    plans = [(plan["topology"], plan["chips"], plan["rows"]) for plan in mapping(content)["plans"]]
    return [
        {"title": f"{name}, {count(chips)} chips", "rows": [(str(a), str(b)) for a, b in rows]}
        for name, chips, rows in plans
    ]


def spread(folder: Folder, paths: list[pathlib.Path], most: int) -> list[dict[str, Any]]:
    """First, last, and evenly in between, of the pictures that are not damaged."""
    shown = paths
    if len(paths) > most:
        shown = [paths[round(i * (len(paths) - 1) / (most - 1))] for i in range(most)]
    pictures = {path: read_pictures(folder, [path]) for path in shown}
    if all(pictures.values()):
        return [picture | {"step": int(p.stem)} for p, (picture,) in pictures.items()]
    return spread(folder, [p for p in paths if pictures.get(p, True)], most)


def newest_reconstructions(folder: Folder) -> dict[str, Any] | None:
    """The newest picture of reconstructions that is not damaged, with its caption."""
    for path in reversed(by_step(folder, "reconstructions")):
        if pictures := read_pictures(folder, [path]):
            about = optional(folder, f"reconstructions/{path.stem}.json", mapping, {})
            return pictures[0] | {"step": int(path.stem), "caption": about.get("caption", "")}
    return None


def illustrations(folder: Folder, evaluation: Evaluation) -> dict[str, Any]:
    """The pictures of an evaluation with their captions."""
    pictures = [
        picture | {"caption": caption}
        for caption, name in evaluation.pictures.items()
        if (picture := read_picture(folder, name))
    ]
    return {"step": evaluation.step, "pictures": pictures}


def age(path: pathlib.Path) -> tuple[int, str]:
    """When a file was last written, and its name: a key to sort files by."""
    return path.lstat().st_mtime_ns, path.name


def key(row: dict) -> str:
    """What tells a row from all others: its metric, after the name of an evaluation that has one.

    As `evaluation.results.Row.key`.
    """
    name, metric = row.get("evaluation"), str(row["metric"])
    return f"{name}/{metric}" if name else metric


def as_step(value: Any) -> int:
    """A step of a file; ValueError for what is none."""
    if not (is_number(value) and 0 <= value < 2**53):
        raise SettingError(f"no step: {value!r:.20}")
    return int(value)


def as_value(value: Any) -> float:
    """A number of a file; NaN for null, for infinities, and for what no plot could place."""
    value = math.nan if value is None else float(value)
    return value if abs(value) < 1e100 else math.nan
