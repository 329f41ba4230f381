"""The one way results reach the disk: whole or not at all, and never over what someone has.

A file or a folder is written under a hidden name beside its place and renamed when it is complete.
A kill leaves that hidden name, which the next process that writes beside it removes.

What may be written again is what only we write and the same command makes anew: the files of a run
in its own folder, and samples there, whose names say all that they depend on. All else (a folder
that someone names, results of someone's images, codes, an export) gets new names only: `check`
refuses before the work what is there already.
"""

import contextlib
import functools
import itertools
import json
import os
import pathlib
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from aigc_jax.errors import SettingError

INSTEAD = "name another --output, or move it away"
ELSEWHERE = "move it away, or write elsewhere by --output or --workdir"
OUTPUT_IN_INPUT = "the output {} would lie in the input {}: name a folder outside it by --output"
PROBE = 4096  # bytes written and removed to see whether a folder can be written to


class OutputError(SettingError):
    """An output that cannot be written where it should be; one line that says what to do."""


def expanded(path: str | pathlib.Path) -> pathlib.Path:
    """A path that someone gave, "~" being their home folder, which no shell makes of --output=~/x.

    Every path of a flag, an argument of a command, a config or the environment goes through here.
    """
    return pathlib.Path(path).expanduser()


@contextlib.contextmanager
def made(path: pathlib.Path) -> Iterator[None]:
    """Makes a folder for its block, after which it is removed again if it holds nothing.

    So are the folders above it that it was made with.
    """
    new = [place for place in (path, *path.parents) if not place.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for place in new:
            with contextlib.suppress(OSError):  # it holds something, or could not be made
                place.rmdir()


@contextlib.contextmanager
def replacing(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a path to write to, which takes the place of `path` when the block ends well.

    A kill or an error leaves what was there before. Makes the folder.

    Raises:
      OSError: it could not be written; the message names the file.
    """
    path = pathlib.Path(path)
    partial = _partial(path)
    with _named(path), made(path.parent):
        _remove_abandoned(path.parent.absolute())
        try:
            yield partial
            partial.replace(path)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


@contextlib.contextmanager
def folder(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a folder to fill, which is to be found at `path` when the block ends well, whole.

    A kill or an error leaves nothing there. A folder that holds something already, or that none can
    take the place of, is yielded itself: it keeps what it holds, and gets the new files one by one.

    Raises:
      OSError: it could not be made; the message names it.
      OutputError: it is complete, but something came to lie at `path` meanwhile; the message names
        the folder beside it that holds the results.
    """
    path = pathlib.Path(path).resolve()  # nothing takes the place of a link to an empty folder
    if _is_filled_in_place(path):
        yield path
        return
    partial = _partial(path)
    with contextlib.ExitStack() as stack:
        with _named(path):
            stack.enter_context(made(path.parent))
            stack.callback(shutil.rmtree, partial, ignore_errors=True)
            _remove_abandoned(path.parent)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
        yield partial
        try:
            partial.replace(path)
        except OSError as error:
            names = (path.with_name(f"{path.name}-{i}") for i in itertools.count(1))
            free = next(name for name in names if not os.path.lexists(name))
            with _named(free):
                partial.rename(free)
            raise OutputError(
                f"the results are in {free}: {path} came to hold something else ({error.strerror})"
            ) from error


def move(path: pathlib.Path, place: pathlib.Path) -> None:
    """Moves a file or folder to a new name on the same disk, whose folder is made."""
    place.parent.mkdir(parents=True, exist_ok=True)
    path.rename(place)


def write_text(path: str | pathlib.Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text)


def write_json(path: str | pathlib.Path, content: Any) -> None:
    """Writes JSON whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_arrays(path: str | pathlib.Path, arrays: Mapping[str, Any]) -> None:
    """Writes arrays as .npz, uncompressed, whole or not at all."""
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)  # given a name, it would add a suffix of its own


def check(
    *paths: str | pathlib.Path, folders: bool = False, new: bool = True, size: int = 0
) -> None:
    """Raises OutputError where outputs cannot be written; called before the work, leaves no trace.

    Args:
      paths: where they are to lie, all on one disk.
      folders: whether they are folders, of which an empty one may be there.
      new: whether what is there already is refused; else only what stands in the way, such as a
        folder where a file is to lie.
      size: bytes that they will take, where that is known.
    """
    for path in map(pathlib.Path, paths):
        _check_text(path)
        if path.is_dir():
            if not folders:
                raise OutputError(f"{path} is a folder, in the way of a file: {ELSEWHERE}")
            if new and _holds_something(path):
                raise OutputError(f"{path} is not empty: {INSTEAD}")
        elif os.path.lexists(path) and (folders or new):
            if folders:
                raise OutputError(f"{path} is a file, in the way of a folder: {ELSEWHERE}")
            raise OutputError(f"{path} is there already: {INSTEAD}")
        final = path.resolve() if folders else path.absolute()
        filled = final.is_dir() and (not new or _is_filled_in_place(final))
        place = final if filled else final.parent
        _check_writable(next(p for p in (place, *place.parents) if os.path.lexists(p)), path, size)


def _check_text(path: pathlib.Path) -> None:
    """Raises OutputError where a path is no text, which checkpoints' names must be."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise OutputError(f"{str(path)!r} is no valid UTF-8: {ELSEWHERE}") from error


def check_apart(
    output: str | pathlib.Path, source: str | pathlib.Path, told: str = OUTPUT_IN_INPUT
) -> None:
    """Raises OutputError where an output would lie in the folder that is read, or be that folder.

    Links and ".." are followed. `told` is what to say of the two, the output first.
    """
    source, output = expanded(source), expanded(output)
    place = output.resolve()
    for above in (place, *place.parents):
        if above.exists() and source.exists() and above.samefile(source):
            raise OutputError(told.format(output, source))


def _check_writable(place: pathlib.Path, path: pathlib.Path, size: int) -> None:
    if not place.is_dir():
        raise OutputError(f"{place} is no folder, so there can be no {path}: {ELSEWHERE}")
    if error := _refusal(place):
        raise OutputError(
            f"{path} cannot be written, {place} takes no file ({error.strerror}): write "
            "elsewhere by --output or --workdir"
        ) from error
    free = shutil.disk_usage(place).free
    if free < size:
        raise OutputError(
            f"{path} takes {size / 1e6:,.0f} MB, but {place} has {free / 1e6:,.0f} MB free: make "
            "room, or name another --output"
        )


def _refusal(place: pathlib.Path) -> OSError | None:
    """Why a folder takes no file; None of one that does."""
    try:
        with tempfile.TemporaryFile(dir=place) as probe:
            probe.write(bytes(PROBE))
    except OSError as error:
        return error
    return None


def _is_filled_in_place(path: pathlib.Path) -> bool:
    """Whether a folder is there that no other can take the place of.

    It holds something, is a mount point such as a volume of Docker, or lies in someone else's.
    """
    if not path.is_dir():
        return False
    return _holds_something(path) or path.is_mount() or _refusal(path.parent) is not None


def _holds_something(path: pathlib.Path) -> bool:
    return path.is_dir() and any(path.iterdir())


@contextlib.contextmanager
def _named(path: pathlib.Path) -> Iterator[None]:
    """Errors of writing with the name of what was not written, which not every library says."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # of a library, in its own words
            raise OSError(f"could not write {path}: {error}") from error
        raise OSError(error.errno, error.strerror, str(path)) from error


def _partial(path: pathlib.Path) -> pathlib.Path:
    """The hidden name that this process writes to first; not too long whatever the final one."""
    name = os.fsencode(path.name)[:100].decode(errors="ignore")
    return path.with_name(f".{name}.partial-{socket.gethostname()}-{os.getpid()}")


@functools.cache  # once a process and folder: one of 50,000 images is not searched for each
def _remove_abandoned(folder: pathlib.Path) -> None:
    """Removes what processes of this host left half written and will not finish."""
    pattern = re.compile(rf"\..*\.partial-{re.escape(socket.gethostname())}-(\d+)")
    for entry in folder.iterdir():
        found = pattern.fullmatch(entry.name)
        if found and not _alive(int(found[1])):
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)  # sends nothing
    except ProcessLookupError:
        return False
    except PermissionError:  # someone else's
        pass
    return True
