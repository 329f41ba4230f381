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
import uuid
from collections.abc import Iterator
from typing import Any, TextIO

from aigc_jax import files
from aigc_jax.errors import RunError, SettingError

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
    name = uuid.uuid4().hex
    with files.made(workdir), _locked(workdir / NAME, name) as (file, certain):
        before = _read(file)
        if before:
            _take_over(workdir, file, before, certain)
        _write(file, name, 0)
        done = threading.Event()
        beating = threading.Thread(target=_beat, args=(file, name, done), daemon=True)
        beating.start()
        try:
            yield
        finally:
            done.set()
            beating.join()


def check_shared(workdir: pathlib.Path) -> None:
    """Raises SettingError where a process does not see the folder that the first one owns.

    Waits for what a network disk may remember for so long: that there was none.
    """
    deadline = time.monotonic() + PATIENCE
    while not (workdir / NAME).exists():
        if time.monotonic() > deadline:
            raise SettingError(
                f"{socket.gethostname()} does not see {workdir}, which the first process has made: "
                "name by --workdir a folder that all hosts share"
            )
        time.sleep(min(1.0, PATIENCE / 10))


@contextlib.contextmanager
def _locked(path: pathlib.Path, name: str) -> Iterator[tuple[TextIO, bool]]:
    """The open file of a lock, and whether the system holds it for us.

    Removed at the end, unless it is another owner's than that of this `name`.
    """
    while True:
        with path.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                certain = True
            except BlockingIOError:
                raise _in_use(path.parent, _read(file)) from None
            except OSError:  # a disk without locks: signs of life alone tell
                certain = False
            # Another process may have removed the file between its opening and its locking.
            if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                try:
                    yield file, certain
                finally:
                    if _read(file).get("name") == name:
                        path.unlink(missing_ok=True)
                return


def _in_use(workdir: pathlib.Path, owner: dict[str, Any]) -> LockError:
    return LockError(
        f"{workdir} is being trained by process {owner.get('process', '?')} on "
        f"{owner.get('host', '?')} since {owner.get('since', '?')}: end that one first, or give "
        "another --workdir"
    )


def _take_over(workdir: pathlib.Path, file: TextIO, owner: dict[str, Any], certain: bool) -> None:
    """Says that an owner is gone: at once where the system knows, else when it gives no sign."""
    who = f"process {owner.get('process')} on {owner.get('host')}"
    if owner.get("host") != socket.gethostname() or not certain:
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


def _beat(file: TextIO, name: str, done: threading.Event) -> None:
    """Writes who owns the folder again and again, until it is done."""
    beats = 0
    while not done.wait(BEAT):
        beats += 1
        with contextlib.suppress(OSError):  # a full disk is told by whoever writes results
            _write(file, name, beats)


def _write(file: TextIO, name: str, beats: int) -> None:
    owner = {"host": socket.gethostname(), "process": os.getpid(), "since": STARTED}
    file.truncate(0)
    file.write(json.dumps({**owner, "name": name, "beats": beats}))
    file.flush()


def _read(file: TextIO) -> dict[str, Any]:
    """What a lock's file says; {} where it says nothing that can be read."""
    try:
        file.seek(0)
        found = json.loads(file.read())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
