"""A run's folder belongs to one training at a time: a locked file says whose it is.

The lock is the system's (flock), which ends with its process however that ends. Some network disks
keep locks of other machines from each other: there the owner's signs of life count, since it writes
the file anew every few seconds.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, TextIO

from aigc_jax import files
from aigc_jax.errors import RunError

NAME = ".lock"
BEAT = 10.0  # seconds between signs of life
PATIENCE = 60.0  # seconds without one after which an owner on another machine is taken for dead
STARTED = time.strftime("%Y-%m-%d %H:%M:%S")


class LockError(RunError):
    """Another training owns the folder."""


@contextlib.contextmanager
def owned(workdir: pathlib.Path) -> Iterator[None]:
    """Owns a run's folder while its block runs; makes the folder, and removes it if still empty.

    Raises:
      LockError: another training owns it.
    """
    with files.made(workdir), _locked(workdir / NAME) as file:
        before = _read(file)
        if before:
            _take_over(workdir, file, before)
        _write(file, 0)
        done = threading.Event()
        beating = threading.Thread(target=_beat, args=(file, done), daemon=True)
        beating.start()
        try:
            yield
        finally:
            done.set()
            beating.join()


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[TextIO]:
    """The open file of a lock that this process holds; removed at the end."""
    while True:
        with path.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _in_use(path.parent, _read(file)) from None
            except OSError as error:
                print(f"{path.parent}: its disk has no locks ({error.strerror})", flush=True)
            # Another process may have removed the file between its opening and its locking.
            if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                try:
                    yield file
                finally:
                    path.unlink(missing_ok=True)
                return


def _in_use(workdir: pathlib.Path, owner: dict[str, Any]) -> LockError:
    return LockError(
        f"{workdir} is being trained by process {owner.get('process', '?')} on "
        f"{owner.get('host', '?')} since {owner.get('since', '?')}: end that one first, or give "
        "another --workdir"
    )


def _take_over(workdir: pathlib.Path, file: TextIO, owner: dict[str, Any]) -> None:
    """Says that an owner is gone; of another machine, only after a while without a sign of life."""
    who = f"process {owner.get('process')} on {owner.get('host')}"
    if owner.get("host") != socket.gethostname():
        print(
            f"{workdir} belonged to {who}: waiting {PATIENCE:.0f} s for a sign of life from it",
            flush=True,
        )
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            time.sleep(min(1.0, PATIENCE / 10))
            if _read(file) != owner:
                raise _in_use(workdir, _read(file))
    print(f"{workdir}: {who} ended without leaving it; taken over", flush=True)


def _beat(file: TextIO, done: threading.Event) -> None:
    """Writes who owns the folder again and again, until it is done."""
    beats = 0
    while not done.wait(BEAT):
        beats += 1
        with contextlib.suppress(OSError):  # a full disk is told by whoever writes results
            _write(file, beats)


def _write(file: TextIO, beats: int) -> None:
    owner = {"host": socket.gethostname(), "process": os.getpid(), "since": STARTED, "beats": beats}
    file.truncate(0)
    file.write(json.dumps(owner))
    file.flush()


def _read(file: TextIO) -> dict[str, Any]:
    """What a lock's file says; {} where it says nothing that can be read."""
    try:
        file.seek(0)
        found = json.loads(file.read())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
