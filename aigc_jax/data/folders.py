"""What a folder or zip of images is taken for: its splits, its classes, and what is passed over."""

import collections
import concurrent.futures
import contextlib
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from aigc_jax.checks import one_of
from aigc_jax.data import images, labels
from aigc_jax.data.identity import digest
from aigc_jax.data.images import DataError, Files, Record, plain
from aigc_jax.data.labels import Classes, Labels, top
from aigc_jax.data.splits import Part

DOMAINS = ("trainA", "trainB", "testA", "testB")  # subfolders that are splits of two domains
SPLITS = ("train", "test", "val", "valid", "validation")  # subfolders that are splits, in any case
VALIDATION = SPLITS[2:]
# Other names of these folders; each may end in "set" too, as "train_set".
OTHER_NAMES = {"training": "train", "testing": "test", "dev": "validation"}
HELD_OUT = 20  # one image in 20 is held out by its name where no folders are splits
HEADERS = 10_000  # images whose headers say whether a folder is grey
_NAMED = 6  # classes and files that a line names


class Folder(NamedTuple):
    """The images of a folder or zip, sorted into splits and classes, none of them read yet.

    Attributes:
      files: all that lies there.
      names: of the images that are used.
      classes: of these images.
      splits: {split: positions in `names`}.
      channels: 1 or 3.
      about: one line: what was found, what it is taken for, and what is passed over.
    """

    files: Files
    names: tuple[str, ...]
    classes: Classes
    splits: Mapping[str, np.ndarray]
    channels: int
    about: str


def open_folder(
    path: str,
    *,
    labels_from: str | None = None,
    splits_from: str | None = None,
    channels: int | None = None,
) -> Folder:
    """Finds out what a folder or .zip of images holds.

    A subfolder that holds all images is looked into. Subfolders `DOMAINS` are splits, and so are
    two or more of `SPLITS`, by these names or others (`OTHER_NAMES`); without them images are held
    out by name (`held_out`). Classes come from a file of labels (`labels.FILES`), else from the
    subfolders, of the splits where there are any (`labels.of_folders`). An image without a split
    or a label is passed over.

    Args:
      labels_from: None finds them; "none" takes no classes, "folders" those of subfolders, and a
        name is that of a file of labels.
      splits_from: None finds them; "folders" takes even one folder of `SPLITS` for a split;
        "names" takes a folder `train` for one like any other.
      channels: None is 1 where no image's header states a colour, else 3. Of more than `HEADERS`
        images so many are looked at.

    Raises:
      DataError: there is no image, or not what was asked for.
    """
    if splits_from is not None:
        one_of("data.splits_from", splits_from, ("folders", "names"))
    files = images.open_folder(path)
    kept = {None: (DOMAINS,), "folders": (DOMAINS, SPLITS), "names": ()}[splits_from]
    root = _root(files.names, kept)
    split_of = _split_folders([name[len(root) :] for name in files.names], splits_from)
    if splits_from == "folders" and not split_of:
        raise DataError(f"{path!r} has no subfolder {', '.join(SPLITS)}: unset data.splits_from")
    inside = [n for n in files.names if not split_of or top(n[len(root) :]) in split_of]
    beside, files = len(files.names) - len(inside), files._replace(names=tuple(inside))
    found = _find_labels(files, root, split_of, labels_from)
    classes = labels.number(found)

    bare = [label is None for label in found.values or (0,) * len(inside)]
    used = np.flatnonzero(np.logical_not(bare))
    names = tuple(files.names[i] for i in used)
    classes = classes._replace(ids=tuple(classes.ids[i] for i in used) if classes.ids else ())
    paths = [plain(name[len(root) :]) for name in names]
    splits = np.array([split_of.get(top(name[len(root) :]), "") for name in names])
    chosen, how = _splits(paths, splits, classes.ids, by_folder=splits_from == "folders")
    channels, colour = (channels, f"{channels} channels") if channels else _channels(files, names)
    passed = [
        _count(beside, "image", "beside the folders of splits"),
        _count(sum(bare), "image", "without a label"),
        images.by_suffix(name for name in files.others if name not in found.files),
        f"empty folders {_few(files.empty)}" if files.empty else "",
        _few(files.notes),
    ]
    about = [
        f"folder {path}: {_count(len(paths), 'image')} ({colour}, {images.by_suffix(paths)}), "
        f"{_about_classes(classes, found.source, chosen)}, {how}",
        *(f"{name}/ is {s}" for name, s in split_of.items() if name.lower() != s.lower()),
        *found.notes,
        *classes.notes,
        *([f"passed over: {', '.join(filter(None, passed))}"] if any(passed) else ()),
    ]
    return Folder(files, names, classes, chosen, channels, "; ".join(about))


def reader(folder: Folder, chosen: np.ndarray) -> Callable[[Sequence[int]], list[Record]]:
    """A function from positions within one split to its records."""
    ids = folder.classes.ids

    def read(indices: Sequence[int]) -> list[Record]:
        positions = [int(chosen[i]) for i in indices]
        named = [(folder.names[p], ids[p] if ids else None) for p in positions]
        return [Record(name, folder.files.read(name), label) for name, label in named]

    return read


def digests(folder: Folder, part: Part) -> dict[str, str]:
    """Of the names, sizes and labels of a split's images, and of the checksums that a zip has.

    They tell images apart that were renamed, replaced, added or removed, but not where they lie: a
    folder and a zip of it have one digest.
    """
    positions = folder.splits[part.whole][part.start : part.stop]
    inner, names, files = len(labels.shared_folder(folder.names)), folder.names, folder.files
    listed = [
        (plain(names[i][inner:]), files.sizes[names[i]], *folder.classes.ids[i : i + 1])
        for i in positions
    ]
    found = {"digest": digest(listed)}
    if files.checksums:
        found["checksum"] = digest(files.checksums[names[i]] for i in positions)
    return found


def held_out(names: Sequence[str], ids: Sequence[int] = ()) -> np.ndarray:
    """Which images are not trained on, bool [N]: those whose names' digests are in the lowest 20th.

    Each is decided by its own name, so that others may come and go. Of few images some are decided
    by what lies beside them: below 20 none is held out; else a class of 20 and more, and the folder
    as a whole, hold out the image of their lowest digest where none is in the lowest 20th; and a
    class keeps one image to train on.

    Args:
      names: paths from the data's folder on, as `plain` gives them.
      ids: the classes of these images, or ().
    """
    if len(names) < HELD_OUT:
        return np.zeros(len(names), bool)
    digests = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names]
    place = np.array([int.from_bytes(digest, "big") for digest in digests], np.uint64)
    out = place < 2**64 // HELD_OUT
    ids = np.asarray(ids or np.zeros(len(names), int))
    order = np.argsort(ids, kind="stable")
    classes = np.split(order, np.flatnonzero(np.diff(ids[order])) + 1)
    for group in (*classes, order):
        if len(group) >= HELD_OUT and not out[group].any():
            out[group[place[group].argmin()]] = True
    for group in classes:
        if out[group].all():
            out[group[place[group].argmax()]] = False
    return out


def _split_of(folder: str, splits: Sequence[str]) -> str | None:
    """The one of `DOMAINS` or `SPLITS` that a folder's name stands for."""
    name = folder.lower()
    short = name.removesuffix("set").rstrip("_- ")
    meant = {name, short, OTHER_NAMES.get(short)}
    return next((split for split in splits if split.lower() in meant), None)


def _root(names: Sequence[str], kinds: Sequence[Sequence[str]]) -> str:
    """The folder that holds all images, as "pets/" or "", and is no split of these kinds."""
    parts = labels.shared_folder(names).split("/")[:-1]
    is_split = [any(_split_of(part, splits) for splits in kinds) for part in parts]
    end = is_split.index(True) if any(is_split) else len(parts)
    return "".join(f"{part}/" for part in parts[:end])


def _split_folders(inner: Sequence[str], splits_from: str | None) -> dict[str, str]:
    """{subfolder: the split that it is}; {} where none is one."""
    tops = sorted({top(name) for name in inner})
    if splits_from == "names":
        return {}
    for known, least in ((DOMAINS, 1), (SPLITS, 1 if splits_from else 2)):
        found = {folder: split for folder in tops if (split := _split_of(folder, known))}
        if len(set(found.values())) >= least:
            return found
    return {}


def _find_labels(
    files: Files, root: str, split_of: Mapping[str, str], labels_from: str | None
) -> Labels:
    domains = not set(DOMAINS).isdisjoint(split_of.values())
    if labels_from == "none" or (labels_from is None and domains):
        return Labels()
    if labels_from != "folders":
        above = [root[:end] for end in range(len(root)) if root[:end].endswith("/")]
        below = [f"{root}{folder}/" for folder in sorted(split_of)]
        found = labels.of_files(files, dict.fromkeys(("", *above, *below, root)), labels_from)
        if found.source or found.files:  # a file may say that there are none
            return found
    paths = [plain(name[len(root) :]) for name in files.names]
    found = labels.of_folders([p.partition("/")[2] if split_of else p for p in paths])
    if labels_from and not found.source:
        raise DataError(f"data.labels_from='folders', but {files.path!r} has not two of classes")
    return found


def _channels(files: Files, names: Sequence[str]) -> tuple[int, str]:
    """1 or 3, and why in a word. What cannot be opened does not count: decoding reports it."""
    step = -(-len(names) // HEADERS)
    sample, grey = names[::step], []

    def look(name: str) -> None:
        with contextlib.suppress(Exception), files.open(name) as file:
            grey.append(images.is_grey(file))

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(sample), 256):
            list(pool.map(look, sample[start : start + 256]))
            if not all(grey):
                break
    if not grey or not all(grey):
        return 3, "colour"
    return 1, f"grey by {len(sample):,} of them" if step > 1 else "grey"


def _splits(
    paths: Sequence[str], splits: np.ndarray, ids: Sequence[int], *, by_folder: bool
) -> tuple[dict[str, np.ndarray], str]:
    """{split: positions}, and in words what they are and why."""
    there = [split for split in (*DOMAINS, *SPLITS) if split in splits]
    if there and (by_folder or there != ["train"]):
        chosen = {split: np.flatnonzero(splits == split) for split in there}
        said = f"splits {_sizes(chosen)} (folders)"
        validation = [split for split in there if split in VALIDATION]
        if "train" in there and "test" not in there and len(validation) == 1:
            chosen["test"] = chosen[validation[0]]
            said += f", {validation[0]} is test too"
        return chosen, said
    out = held_out(paths, ids)
    if not out.any():
        return {"train": np.arange(len(paths))}, (
            f"no split test (under {HELD_OUT} images none is held out: add images, or set "
            "--config.data.test_split=train)"
        )
    chosen = {"train": np.flatnonzero(~out), "test": np.flatnonzero(out)}
    return chosen, f"splits {_sizes(chosen)} (by name)"


def _about_classes(classes: Classes, source: str, splits: Mapping[str, np.ndarray]) -> str:
    if not source:
        return "no classes"
    counts = collections.Counter(classes.ids)
    names = classes.names or range(classes.count)
    each = [f"{name} {counts[i]:,}" for i, name in enumerate(names)]
    about = f"{classes.count:,} classes from {source}: {_few(each)}"
    trained = {classes.ids[i] for i in splits.get("train", ())}
    untrained = [str(name) for i, name in enumerate(names) if i not in trained]
    return about + (f" (none to train on of {_few(untrained)})" if untrained else "")


def _sizes(splits: Mapping[str, np.ndarray]) -> str:
    return ", ".join(f"{split} {len(positions):,}" for split, positions in splits.items())


def _count(count: int, noun: str, what: str = "") -> str:
    """Such as "3 images without a label"; "" for none."""
    plural = "" if count == 1 else "s"
    return f"{count:,} {noun}{plural} {what}".strip() if count else ""


def _few(words: Sequence[str]) -> str:
    """The first words, and how many more there are."""
    more = f" and {len(words) - _NAMED:,} more" if len(words) > _NAMED else ""
    return ", ".join(words[:_NAMED]) + more
