"""Labels of a folder's images: from a file beside them, else from the subfolders they lie in."""

import collections
import csv
import io
import json
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from aigc_jax.data.images import DataError, Files, plain

# Where labels are looked for, in this order: StyleGAN's file, those of Hugging Face's imagefolder,
# a table.
FILES = ("dataset.json", "metadata.jsonl", "labels.csv", "metadata.csv")
_NAME_COLUMNS = ("file_name", "filename", "file", "image", "path", "image_id", "id", "name")
_LABEL_COLUMNS = ("label", "class", "category", "breed")
# Whole numbers are names, and no classes by these numbers, where so many more would have no image.
SPARSE, MANY = 10, 1_000
_HINT = "mend it, or set data.labels_from to 'none', 'folders' or another file"

Label = int | str


class Labels(NamedTuple):
    """The labels of images as they were found.

    Attributes:
      values: of each image, None where it has none; () where there are no classes.
      source: "folders", or the names of files; "" where there are no classes.
      files: those that were read as labels.
      notes: what of them is not used, in words.
    """

    values: Sequence[Label | None] = ()
    source: str = ""
    files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Classes(NamedTuple):
    """Labels as numbers.

    Attributes:
      ids: of each image, in 0..count-1; None where it has none; () where there are no classes.
      count: how many classes there are.
      names: of the classes; () where they are just these numbers.
      notes: how the labels were taken, in words, where that may surprise.
    """

    ids: tuple[int | None, ...] = ()
    count: int = 0
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def of_files(listing: Files, folders: Iterable[str], wanted: str | None) -> Labels:
    """The labels in files, at most one of each of `folders`; no source where there are none.

    Args:
      listing: of the images.
      folders: where to look, as "pets/", "" being the top. The paths in a file begin in its own
        folder, else in the one of these above or below it that has such an image. They may lack the
        suffix, where no two images differ in that alone.
      wanted: the file's name; None looks for `FILES`.

    Raises:
      DataError: a damaged file; one that was wanted and is not there, or has no labels; labels of
        other images only.
    """
    folders = list(folders)
    known, others = _by_path_and_stem(listing.names), set(listing.others)
    values, used, missing = {}, [], 0

    def find(folder: str, image: str) -> str | None:
        near = [f for f in folders if f.startswith(folder) or folder.startswith(f)]
        for places in ((folder,), near):
            paths = {known.get(plain(place) + image) for place in places} - {None}
            if paths:
                return paths.pop() if len(paths) == 1 else None
        return None

    for folder in folders:
        for name in (wanted,) if wanted else FILES:
            file = folder + name
            found = read(file, listing.read(file)) if file in others else None
            if found is None:
                continue
            used.append(file)
            for image, label in found.items():
                path = find(folder, image)
                missing += path is None
                values[path] = label
            break
    values.pop(None, None)
    if wanted and not values:
        raise DataError(
            f"data.labels_from={wanted!r} is no file in {listing.path!r} that has labels of its "
            f"images; it may be 'none', 'folders' or such as {FILES[0]}"
        )
    if missing and not values:
        raise DataError(
            f"{', '.join(used)} has labels of images that are not in {listing.path!r} only: "
            "correct the names in it, or set data.labels_from to 'none' or 'folders'"
        )
    if not values:
        return Labels(files=tuple(used))
    said = f"images named in {', '.join(used)} that are not there: {missing:,}"
    notes = (said,) if missing else ()
    every = [values.get(plain(name)) for name in listing.names]
    return Labels(every, ", ".join(used), tuple(used), notes)


def of_folders(paths: Sequence[str]) -> Labels:
    """The first subfolder of each path is its class, as torchvision has it.

    A subfolder that holds all images is looked into. There is no source where fewer than two are
    left, or where most images lie in none of them.
    """
    wrapped = len(shared_folder(paths))
    tops = [top(path[wrapped:]) or None for path in paths]
    folders = {path.rpartition("/")[0] for path in paths}
    if len(set(tops) - {None}) < 2 or 2 * tops.count(None) > len(tops):
        said = f"{len(folders):,} folders of images are not taken for classes"
        return Labels(notes=(said,) if len(folders) > 1 else ())
    deeper = any(path.count("/", wrapped) > 1 for path in paths)
    notes = ("deeper folders count to the class that they lie in",) if deeper else ()
    return Labels(tops, "folders", (), notes)


def number(labels: Labels) -> Classes:
    """Names, and those of folders, are numbered from 0 in their natural order: 2 before 10.

    Whole numbers in a file stay what they are, written as "3" or "3.0", unless they are far more
    than the classes, such as dates: these are names.
    """
    values = [None if label is None else str(label) for label in labels.values]
    known, notes = set(values) - {None}, ()
    if labels.files and all(re.fullmatch(r"[0-9]+(\.0*)?", label) for label in known):
        ids = tuple(None if label is None else int(label.partition(".")[0]) for label in values)
        distinct = set(ids) - {None}
        count = max(distinct, default=-1) + 1
        if count <= max(MANY, SPARSE * len(distinct)):
            return Classes(ids, count)
        values = [None if label is None else str(label) for label in ids]
        known = set(values) - {None}
        notes = (f"numbers up to {count - 1} are taken for names of {len(known):,} classes",)
    names = sorted(known, key=_natural)
    place = {name: i for i, name in enumerate(names)}
    ids = tuple(None if label is None else place[label] for label in values)
    return Classes(ids, len(names), telling(names), notes)


def telling(names: Sequence[str]) -> tuple[str, ...]:
    """Names of classes; () where they are but the classes' numbers."""
    return () if all(name == str(i) for i, name in enumerate(names)) else tuple(names)


def read(name: str, data: bytes) -> dict[str, Label] | None:
    """The labels in a file, by the image's path as it is written there.

    None where it has no place for them; {} where it says that there are none.

    Args:
      name: of the file: .json of StyleGAN ({"labels": [[path, number], ...] or null}), .jsonl with
        an object a line, else a table with a header, separated by commas, semicolons or tabs. The
        latter two have a column such as "file_name" and one such as "label"; the only other column
        counts as that where its values recur, which captions do not.

    Raises:
      DataError: it is damaged, or its labels are neither names nor whole numbers from 0 on.
    """
    try:
        text = data.decode("utf-8-sig")
        if name.endswith(".json"):
            found = json.loads(text)
            has = isinstance(found, dict) and "labels" in found
            pairs = [(path, label) for path, label in found["labels"] or ()] if has else None
        elif name.endswith(".jsonl"):
            pairs = _columns([json.loads(line) for line in text.splitlines() if line.strip()])
        else:
            header = text.partition("\n")[0]
            table = csv.DictReader(io.StringIO(text), delimiter=max(",;\t", key=header.count))
            pairs = _columns(list(table))
    except (ValueError, LookupError, TypeError, AttributeError, csv.Error) as error:
        raise DataError(f"{name} cannot be read as labels ({error}): {_HINT}") from error
    if pairs is None:
        return None
    return {_path(path): _label(name, label) for path, label in pairs if label not in (None, "")}


def top(path: str) -> str:
    """The first folder of a path; "" where it lies in none."""
    first, slash, _ = path.partition("/")
    return first if slash else ""


def shared_folder(paths: Sequence[str]) -> str:
    """The innermost folder that all paths lie in, as "pets/" or ""."""
    ends = [os.path.dirname(end) for end in (min(paths), max(paths))]  # what they share, all do
    shared = os.path.commonpath(ends)
    return shared and f"{shared}/"


def _natural(name: str) -> tuple:
    parts = re.split("([0-9]+)", name.casefold())  # text and numbers by turns
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def _columns(rows: Sequence[dict[str, Any]]) -> list[tuple[str, Any]] | None:
    """(path, label) of each row, see `read`; None where there are no such columns."""
    keys = {str(key).strip().lower(): key for row in rows for key in row}
    path = next((keys[name] for name in _NAME_COLUMNS if name in keys), None)
    label = next((keys[name] for name in _LABEL_COLUMNS if name in keys), None)
    if path is not None and label is None and len(keys) == 2:
        (other,) = {*keys.values()} - {path}
        found = [str(row[other]) for row in rows if row.get(other) not in (None, "")]
        label = other if 2 * len(set(found)) <= len(found) else None
    if path is None or label is None:
        return None
    return [(row[path], row.get(label)) for row in rows]


def _by_path_and_stem(names: Sequence[str]) -> dict[str, str]:
    """{path, with its suffix or without: path}; without it only where one path is meant."""
    paths = [plain(name) for name in names]
    stems = [os.path.splitext(path)[0] for path in paths]
    count = collections.Counter(stems)
    unique = {stem: path for stem, path in zip(stems, paths, strict=True) if count[stem] == 1}
    return unique | {path: path for path in paths}


def _path(path: Any) -> str:
    return plain(str(path).strip().replace("\\", "/").removeprefix("./"))


def _label(name: str, label: Any) -> Label:
    if isinstance(label, str):
        return label.strip()
    if type(label) in (int, float) and label >= 0 and label == label // 1:
        return int(label)
    raise DataError(
        f"{name}: a label is a name or a whole number from 0 on, not {label!r}: {_HINT}"
    )
