"""launch.py many times over: each run a fork of a process that has imported everything already.

Importing takes seconds, so that hundreds of runs would take hours. No backend of JAX is started
before a fork.
"""

import importlib
import os
import pathlib
import resource
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Small programs that compile at once and are found again by the next process.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax-stress"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


class Outcome(NamedTuple):
    """How a run ended.

    Attributes:
      code: its exit code; -N of one that signal N ended; None of one that did not end in time.
      seconds: until then.
      out, err: what it wrote.
    """

    code: int | None
    seconds: float
    out: str
    err: str


def prepare() -> None:
    """Imports all that runs need; called once, before the first of them."""
    os.chdir(ROOT)
    os.environ.update(ENVIRONMENT)
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    sys.path.insert(0, str(ROOT))
    launch = importlib.import_module("launch")
    for module in launch.COMMANDS.values():
        importlib.import_module(module)


def run(
    *arguments: object,
    timeout: float = 60.0,
    kill_after: float | None = None,
    signals: Sequence[tuple[float | str, int]] = (),
    devices: int = 1,
    before: Callable[[], None] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Outcome:
    """launch.py with arguments, in a fork of this process.

    Args:
      timeout: seconds after which it counts as one that hangs.
      kill_after: seconds after which it is killed, if it still runs.
      signals: (when, number) of signals to send one after another: once so many seconds have
        passed, or once a text is in what it wrote to stdout.
      devices: of its CPU.
      before: called in the fork first.
      environment: of the fork, beside its own.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began = time.monotonic()
        process = os.fork()
        if process == 0:
            _child(
                [str(argument) for argument in arguments], out, err, devices, before, environment
            )
        due = [*signals, *([(kill_after, signal.SIGKILL)] if kill_after is not None else ())]
        code = _wait(process, began, timeout, due, out)
        seconds = time.monotonic() - began
        return Outcome(code, seconds, text(out), text(err))


def text(file: IO[bytes]) -> str:
    """All that a process wrote to a file."""
    file.seek(0)
    return file.read().decode(errors="replace")


def is_due(when: float | str, passed: float, out: IO[bytes]) -> bool:
    """Whether so many seconds have passed, or a text is in what a process wrote."""
    if isinstance(when, str):
        return when.encode() in os.pread(out.fileno(), 1 << 20, 0)
    return passed > when


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _wait(process: int, began: float, timeout: float, due: list, out: IO[bytes]) -> int | None:
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        passed = time.monotonic() - began
        if passed > timeout:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return None
        if due and is_due(due[0][0], passed, out):
            os.kill(process, due.pop(0)[1])
        time.sleep(0.002)


def _child(arguments, out, err, devices, before, environment) -> None:
    """What the fork does, to its end."""
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        os.environ.update(environment or {})
        os.environ["JAX_NUM_CPU_DEVICES"] = str(devices)
        flag = f"--xla_force_host_platform_device_count={devices}"
        os.environ["XLA_FLAGS"] = f"{os.environ['XLA_FLAGS']} {flag}"
        sys.argv = ["launch.py", *arguments]
        if before:
            before()
        import launch

        launch.program()
        sys.stdout.flush()
        os._exit(0)
    except BaseException as error:  # as Python itself ends
        import traceback

        traceback.print_exception(error)
        sys.stderr.flush()
        os._exit(1)
