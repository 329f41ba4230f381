"""Where a command ends: which errors are told in one line, which signals end it, and exit codes."""

import contextlib
import errno
import json
import os
import pathlib
import re
import signal
import sys
import traceback
import warnings
import zipfile
from collections.abc import Iterator
from typing import Any, NoReturn

from PIL import UnidentifiedImageError

from aigc_jax.commands import hosts
from aigc_jax.errors import UserError

# Exit codes: 0 finished, 1 an error, and these.
STOPPED = 75  # training was asked to stop, and has saved: the same command goes on (EX_TEMPFAIL)
INTERRUPTED = 130  # ended at once by Ctrl-C (128 + SIGINT)
AGAIN = 1.0  # seconds until an interrupt that was lost is raised again
REPORT = (
    "aigc_jax does not know this error: please report it, with the lines above, the command, and "
    "what `pip freeze` prints"
)
SPACE = "make room, then give the same command again"
RIGHTS = "check who owns it and whether its disk is mounted read-only, or name another folder"
OF_SYSTEM = {
    errno.ENOSPC: SPACE,
    errno.EDQUOT: SPACE,
    errno.EACCES: RIGHTS,
    errno.EPERM: RIGHTS,
    errno.EROFS: RIGHTS,
    errno.ENOENT: "check the path",
    errno.EEXIST: "something else is in the way: move it, or name another folder",
    errno.ENOTDIR: "a file stands where a folder is needed: move it, or name another folder",
    errno.EISDIR: "a folder stands where a file is needed: move it, or name another path",
    errno.ENAMETOOLONG: "name a shorter path",
    errno.ELOOP: "a link there leads to itself: remove it, or name another path",
    errno.EMFILE: "raise the limit of open files (`ulimit -n 4096`)",
    errno.ENFILE: "this machine has too many open files",
    errno.EIO: "the disk does not answer: check it, then give the same command again",
    errno.ECONNRESET: "the network failed: give the same command again",
    errno.ETIMEDOUT: "the network or a network disk does not answer: give the command again",
    errno.ENOTEMPTY: "something else was written there meanwhile: move it, or name another folder",
    errno.ESTALE: "the network disk was mounted anew: give the same command again",
}
# What libraries write about another process that is gone.
PEERS = re.compile(
    r"Connection closed by peer|Connection reset by peer|heartbeat timeout|"
    r"Gloo \w+ failed|CoordinationServiceError|NCCL .*(remote|abort)",
)
MEMORY = re.compile(r"RESOURCE_EXHAUSTED|[Oo]ut of memory")


def explain(error: BaseException) -> str | None:
    """What to tell of an error in one line; None of one that nobody expected."""
    errors = list(_causes(error))
    if hosts.joined() and any(PEERS.search(str(cause)) for cause in errors):
        return (
            "another process of this run has ended or cannot be reached: its log says why. Start "
            "all of them again, and training goes on from the newest checkpoint"
        )
    for cause in errors:
        told = str(cause) if isinstance(cause, UserError) else _of_library(cause)
        if told:
            return told
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__


def _of_library(error: BaseException) -> str | None:
    """What to tell of an error that Python or a library raised, where its cause is a known one."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, json.JSONDecodeError):
        return f"a file that should hold JSON is damaged ({text}): restore it from a backup"
    if isinstance(error, zipfile.BadZipFile | UnidentifiedImageError):
        return f"a damaged file: {text}"
    if isinstance(error, OSError) and error.errno in OF_SYSTEM:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; {OF_SYSTEM[error.errno]}"
    for number, advice in OF_SYSTEM.items():  # TensorStore's errors have the words alone
        if f": {os.strerror(number)}" in text or re.search(rf"OS error {number}\b", text):
            return f"{text[:300]}; {advice}"
    # After these: a disk without inodes is an exhausted resource too.
    if isinstance(error, MemoryError) or MEMORY.search(str(error)):
        return (
            "out of memory: lower train.batch_size (--batch of other commands), take a narrower "
            f"network or a lower precision, or more devices with train.sharding=fsdp ({text[:200]})"
        )
    return None


def end(code: object) -> NoReturn:
    """Ends the process with an exit code, or a message and 1, whatever threads a library left."""
    if code == STOPPED:
        hosts.leave()
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # whoever read it has gone
            stream.flush()
    os._exit(code if isinstance(code, int) else 0)


def end_by_interrupt() -> None:
    """Makes Ctrl-C end a command also where the error that it raises is lost on its way.

    Callbacks of the garbage collector swallow it, and extensions make other errors of it: it is
    raised again every second, and whatever ends the command then counts as the interrupt.
    """

    def again(number: int, frame: Any) -> NoReturn:
        signal.setitimer(signal.ITIMER_REAL, AGAIN)
        raise KeyboardInterrupt

    def unraisable(lost: Any) -> None:
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            sys.__unraisablehook__(lost)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it stays ignored
        signal.signal(signal.SIGINT, again)
        signal.signal(signal.SIGALRM, again)
        sys.unraisablehook = unraisable


def warn_in_one_line() -> None:
    """Shows what this package warns of as a line, without the place in its code."""
    plain, package = warnings.formatwarning, str(pathlib.Path(__file__).parents[1])

    def told(message: Any, category: type, filename: str, *others: Any, **named: Any) -> str:
        if category is UserWarning and filename.startswith(package):
            return f"warning: {message}\n"
        return plain(message, category, filename, *others, **named)

    warnings.formatwarning = told


def tell(error: BaseException, debug: bool) -> SystemExit:
    """The end of a command that failed: a line, or the traceback of an error nobody expected."""
    interrupted = signal.setitimer(signal.ITIMER_REAL, 0)[0] > 0
    if interrupted or isinstance(error, KeyboardInterrupt):
        print("launch.py: interrupted", file=sys.stderr)
        return SystemExit(INTERRUPTED)
    told = explain(error)
    if debug or told is None:
        traceback.print_exception(error)
    return SystemExit(f"launch.py: {told or REPORT}")
