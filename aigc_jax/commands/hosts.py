"""Several processes that train as one: their flags, how they meet, and what is told of their end.

JAX is imported where it is needed, so that a mistake in a flag is told at once.
"""

import contextlib
import faulthandler
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
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
told, dropped, last_words = False, False, sys.argv[1]
for line in sys.stdin.buffer:
    if line == b"all have met\\n":
        last_words = sys.argv[2]
        continue
    if line[:1] in (b"I", b"W", b"E", b"F") and line[1:5].isdigit():  # else it goes on
        dropped = any(word in line[:120] for word in noise)
    if told or dropped:
        continue
    told = b"JAX distributed service detected fatal errors" in line
    sys.stderr.buffer.write(last_words.encode() + b"\\n" if told else line)
    sys.stderr.buffer.flush()
"""
ENDED = (
    "launch.py: another process of this run has ended, so this one ends too: the log of the other "
    "says why. Start all of them again, and training goes on from the newest checkpoint"
)


# What a cluster that JAX does not know may set; of these JAX itself reads the first alone.
ENVIRONMENT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
UNKNOWN_CLUSTER = (
    "--distributed found no cluster that JAX knows (SLURM: start by srun; Open MPI, a TPU pod, "
    f"Kubernetes), nor {', '.join(ENVIRONMENT)}: set these three, or give --coordinator=host:port, "
    "--processes=N and --process=I"
)


class Hosts(NamedTuple):
    """How processes meet: address is None where the cluster tells it, as on a TPU pod.

    `timeout` is in seconds, for all of them to come.
    """

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
        return _of_environment(timeout)
    if address is None and processes is None and process is None:
        return None
    if address is None or processes is None or process is None:
        raise SettingError(
            "several processes need all of --coordinator=host:port, --processes=N and --process=I"
        )
    return _checked(Hosts(address, processes, process, timeout), FLAGS[1:4], "--")


def _of_environment(timeout: int) -> Hosts:
    """The processes as the environment's variables name them, or left to the cluster."""
    address, *numbers = (os.environ.get(name, "") for name in ENVIRONMENT)
    if not any(numbers):  # an address alone is what JAX takes in place of the cluster's
        return Hosts(None, None, None, timeout)
    for name, value in zip(ENVIRONMENT[1:], numbers, strict=True):
        if not value.isdecimal():
            raise SettingError(f"${name} is a number beside ${ENVIRONMENT[0]}, not {value!r}")
    return _checked(Hosts(address, *map(int, numbers), timeout), ENVIRONMENT, "$")


def _checked(hosts: Hosts, names: Sequence[str], sign: str) -> Hosts:
    """Raises SettingError where an address or a number, given under these names, cannot be one."""
    told = [f"{sign}{name}" for name in names]
    host, _, port = hosts.address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise SettingError(f"{told[0]} is host:port such as 10.0.0.1:1234, not {hosts.address!r}")
    last = max(hosts.processes, 1) - 1
    if not 0 <= hosts.process <= last or hosts.processes < 1:
        raise SettingError(
            f"{told[2]} is 0 to {last} of {told[1]}={hosts.processes}, not {hosts.process}"
        )
    return hosts


def joined() -> bool:
    """Whether this process is one of several that have met."""
    if "jax" not in sys.modules:
        return False
    import jax

    return jax.distributed.is_initialized()


def join(hosts: Hosts, trains: bool = True) -> None:
    """Waits until all processes have met; from then on one that ends is told in one line.

    Where not all come within `hosts.timeout`, the process ends with a line that names the address.

    Args:
      hosts: which these are.
      trains: SIGTERM makes all of them stop at one step (`training.stop`), and nothing else; False
        of commands without steps, which it ends.

    Raises:
      RunError: the address cannot be reached or taken, or there is no cluster that JAX knows.
    """
    import jax

    deadline, heard = time.monotonic() + hosts.timeout, _Heard(hosts)
    if hosts.address is not None:
        _reach(hosts, deadline)
    _filter_the_runtimes_last_words(f"launch.py: {heard.apart()}")
    jax.config.update("jax_enable_preemption_service", trains)
    try:
        with heard, _waiting(heard, deadline, ends=True):
            jax.distributed.initialize(
                hosts.address,
                hosts.processes,
                hosts.process,
                # Later than ours: it ends by writing pages and aborting.
                initialization_timeout=hosts.timeout + SILENCE,
                heartbeat_timeout_seconds=SILENCE,
            )
    except (LookupError, OSError, RuntimeError, ValueError) as error:  # of clusters, and of XLA
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        told = heard.apart() if heard.address else UNKNOWN_CLUSTER
        raise RunError(f"{told} ({reason})") from error
    os.write(2, b"all have met\n")  # to the filter


def leave() -> None:
    """Waits for the other processes, which would take one that just ends for dead."""
    if joined():
        import jax

        jax.distributed.shutdown()


class _Heard(logging.Filter):
    """What is known of the meeting; within its block JAX's log tells the address of a cluster.

    It is told nowhere else: where it does not answer, XLA aborts without naming it.
    """

    def __init__(self, hosts: Hosts) -> None:
        super().__init__()
        self._hosts, self._log = hosts, logging.getLogger("jax._src.distributed")
        self.address = hosts.address

    def __enter__(self) -> None:
        self._level = self._log.level
        self._log.setLevel(logging.INFO)
        self._log.addFilter(self)

    def __exit__(self, *_: object) -> None:
        self._log.removeFilter(self)
        self._log.setLevel(self._level)

    def filter(self, record: logging.LogRecord) -> bool:
        """Notes an address; what is told for information goes no further."""
        if record.msg.startswith("Connecting to JAX distributed service on"):
            self.address = record.args[0]
        return record.levelno > logging.INFO

    def waiting(self, left: float) -> str:
        """Who waits, where, and for how long yet in seconds."""
        address, processes, process, timeout = self._hosts
        who = f"process {process} of {processes}" if address else "this process"
        where = f"at {self.address}" if self.address else "of the cluster"
        return f"{who} waits for the others {where}: {timeout - left:.0f} of {timeout} s"

    def apart(self) -> str:
        """What to tell where processes do not meet."""
        count = (
            f"the {self._hosts.processes} processes" if self._hosts.processes else "all processes"
        )
        return (
            f"not {count} met at {self.address or 'an address of the cluster'} within "
            f"{self._hosts.timeout} s: start the same command for each of them, or wait longer by "
            "--join_timeout"
        )


def _reach(hosts: Hosts, deadline: float) -> None:
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
                    "still be there; end it, or take another port, in --coordinator or "
                    "$JAX_COORDINATOR_PORT of a cluster"
                ) from error
        return
    reason = ""
    with _waiting(_Heard(hosts), deadline):
        while time.monotonic() < deadline:
            try:
                socket.create_connection((host, int(port)), timeout=2).close()
                return
            except OSError as error:
                reason = error.strerror or str(error)
            time.sleep(0.2)
    raise RunError(
        f"no answer from {hosts.address} in {hosts.timeout} s ({reason}): start the first "
        "process on that machine, check the address and the firewall, or wait longer by "
        "--join_timeout"
    )


@contextlib.contextmanager
def _waiting(
    heard: _Heard, deadline: float, ends: bool = False, every: float = 5.0
) -> Iterator[None]:
    """Says every few seconds for what it waits; `ends` the process then, if it must.

    XLA cannot be interrupted while it waits.
    """
    done = threading.Event()

    def say() -> None:
        while not done.wait(max(0.0, min(every, deadline - time.monotonic()))):
            left = deadline - time.monotonic()
            if left > 0:
                print(heard.waiting(left), file=sys.stderr, flush=True)
            elif ends:
                print(f"launch.py: {heard.apart()}", file=sys.stderr, flush=True)
                os._exit(1)
            else:
                return

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
