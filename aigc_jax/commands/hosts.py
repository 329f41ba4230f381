"""Several processes that train as one: their flags, how they meet, and what is told of their end.

JAX is imported where it is needed, so that a mistake in a flag is told at once.
"""

import contextlib
import faulthandler
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from aigc_jax.errors import RunError, SettingError

# Flags of every command that computes.
FLAGS = ("distributed", "coordinator", "processes", "process", "join_timeout")
# Seconds after which a process that no longer answers is taken for dead; each one sends a sign of
# life in a thread of the runtime, which neither Python nor a long compilation holds up.
SILENCE = 40
# The runtime ends a process whose neighbours are gone by writing pages and aborting. Run as a
# process of its own, this passes on what is written, and one line instead of those pages.
FILTER = """
import signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
noise = (b"coordination_service", b"preemption_sync_manager", b"GRPC error", b":UNKNOWN:Error")
told, last_words = False, sys.argv[1]
for line in sys.stdin.buffer:
    if line == b"all have met\\n":
        last_words = sys.argv[2]
        continue
    if told or any(word in line[:120] for word in noise):
        continue
    told = b"JAX distributed service detected fatal errors" in line
    sys.stderr.buffer.write(last_words.encode() + b"\\n" if told else line)
    sys.stderr.buffer.flush()
"""
ENDED = (
    "launch.py: another process of this run has ended, so this one ends too: the log of the other "
    "says why. Start all of them again, and training goes on from the newest checkpoint"
)


class Hosts(NamedTuple):
    """How processes meet: address is None where the cluster tells it, as on a TPU pod."""

    address: str | None
    processes: int | None
    process: int | None
    timeout: int


def of_flags(flags: Mapping[str, Any]) -> Hosts | None:
    """The processes that flags speak of; None of a command that runs alone.

    Args:
      flags: values of those of `distributed`, `coordinator`, `processes`, `process` and
        `join_timeout` that a command takes.

    Raises:
      SettingError: flags that do not go together.
    """
    address, processes, process = (
        flags.get(name) for name in ("coordinator", "processes", "process")
    )
    timeout = flags.get("join_timeout") or 60
    if flags.get("distributed"):
        if address is not None or processes is not None or process is not None:
            raise SettingError(
                "--distributed finds the processes by itself: leave --coordinator, --processes and "
                "--process out, or give these three alone"
            )
        return Hosts(None, None, None, timeout)
    if address is None and processes is None and process is None:
        return None
    if address is None or processes is None or process is None:
        raise SettingError(
            "several processes need all of --coordinator=host:port, --processes=N and --process=I"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise SettingError(f"--coordinator is host:port such as 10.0.0.1:1234, not {address!r}")
    if processes < 1 or not 0 <= process < processes:
        raise SettingError(
            f"--process is 0 to {max(processes, 1) - 1} of --processes={processes}, not {process}"
        )
    return Hosts(address, processes, process, timeout)


def joined() -> bool:
    """Whether this process is one of several that have met."""
    if "jax" not in sys.modules:
        return False
    import jax

    return jax.distributed.is_initialized()


def join(hosts: Hosts) -> None:
    """Waits until all processes have met; from then on one that ends is told in one line.

    Raises:
      RunError: they did not meet within the time, or there is no cluster that JAX knows.
    """
    import jax

    if hosts.address is not None:
        _reach(hosts)
    apart = _apart(hosts)
    _filter_the_runtimes_last_words(f"launch.py: {apart}")
    try:
        with _waiting(hosts):
            jax.distributed.initialize(
                hosts.address,
                hosts.processes,
                hosts.process,
                initialization_timeout=hosts.timeout,
                heartbeat_timeout_seconds=SILENCE,
            )
    except (RuntimeError, ValueError) as error:  # XLA's own errors are RuntimeErrors
        reason = str(error).strip().splitlines()[0][:200]
        raise RunError(f"{apart} ({reason})") from error
    os.write(2, b"all have met\n")  # to the filter


def _apart(hosts: Hosts) -> str:
    """What to tell where processes do not meet."""
    if hosts.address is None:
        return (
            "no cluster that JAX knows was found, or not all of its processes came: start the same "
            "command on each, or give --coordinator=host:port, --processes and --process instead "
            "of --distributed"
        )
    return (
        f"the {hosts.processes} processes did not meet at {hosts.address} within {hosts.timeout} "
        "s: start all of them with the same --coordinator and --processes, each with a --process "
        "of its own, or wait longer by --join_timeout"
    )


def _reach(hosts: Hosts) -> None:
    """Waits until the first process answers, or until its address can be taken, of the first."""
    host, _, port = hosts.address.rpartition(":")
    host = host.strip("[]")
    if hosts.process == 0:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one just left is free
            try:
                probe.bind(("", int(port)))
            except OSError as error:
                raise RunError(
                    f"port {port} of this machine is in use ({error.strerror}): an earlier run may "
                    "still be there; end it, or take another port in --coordinator"
                ) from error
        return
    deadline, reason = time.monotonic() + hosts.timeout, ""
    with _waiting(hosts):
        while time.monotonic() < deadline:
            try:
                socket.create_connection((host, int(port)), timeout=2).close()
                return
            except OSError as error:
                reason = error.strerror or str(error)
            time.sleep(0.2)
    raise RunError(
        f"no answer from {hosts.address} in {hosts.timeout} s ({reason}): start the process with "
        "--process=0 on that machine, check --coordinator and the firewall, or wait longer by "
        "--join_timeout"
    )


@contextlib.contextmanager
def _waiting(hosts: Hosts, every: float = 5.0) -> Iterator[None]:
    """Says every few seconds that and for what it waits."""
    done, began = threading.Event(), time.monotonic()
    where = f"at {hosts.address}" if hosts.address else "of the cluster"
    who = f"process {hosts.process} of {hosts.processes}" if hosts.address else "this process"

    def say() -> None:
        while not done.wait(every):
            waited = min(time.monotonic() - began, hosts.timeout)
            line = f"{who} waits for the others {where}: {waited:.0f} of {hosts.timeout} s"
            print(line, file=sys.stderr, flush=True)

    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _filter_the_runtimes_last_words(apart: str) -> None:
    """Sends what is written to file descriptor 2, but not `sys.stderr`, through `FILTER`."""
    terminal = os.dup(2)
    command = [sys.executable, "-S", "-c", FILTER, apart, ENDED]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=terminal, stdout=terminal)
    os.dup2(process.stdin.fileno(), 2)
    sys.stderr = os.fdopen(terminal, "w", buffering=1)
    if faulthandler.is_enabled():  # by absl; else its pages would pass the filter by
        faulthandler.enable(file=2)
