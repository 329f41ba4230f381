"""Several processes that train a toy as one, and what becomes of them.

    python tests/processes.py ROOT

makes runs in ROOT, and ROOT/outcomes.json of what each process wrote and its exit code. The
processes are forks of one that has imported everything, which takes longer than their training.
"""

import json
import os
import pathlib
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import toys

from aigc_jax.commands import boundary, hosts
from aigc_jax.errors import SettingError
from aigc_jax.training import sharding
from aigc_jax.training.checkpoint import complete_steps
from aigc_jax.training.meter import Meter

DEVICES, LIMIT = 4, 100.0  # devices of all of them; seconds until a process is said to hang
# What one process has compiled the next one finds, however small.
CACHE = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
QUIET = {"log.eval_every": 0, "log.sample_every": 0, "checkpoint.best": ""}
# Over more steps Adam makes more of the noise of gradients near zero.
LONG = {**QUIET, "optimizer.learning_rate": 1e-4, "checkpoint.every": 10_000}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def struck(when: int, number: int, pace: float) -> None:
    """Sends this process a signal once a step is done; from then on a step takes `pace` seconds."""
    add = Meter.add

    def counted(meter: Any, step: int, metrics: Any) -> None:
        add(meter, step, metrics)
        if step == when:
            meter._checkpoints.wait()  # so that the last save is whole
            os.kill(os.getpid(), number)
        time.sleep(pace * (step >= when))

    Meter.add = counted


def agreed(process: int) -> None:
    """Prints what processes find out about each other."""
    print("on all:", sharding.on_all(True), sharding.on_all(process == 0))
    print("from the first:", sharding.from_first(bytes([process, 7])).hex())
    for name, own in (("same", b"1"), ("other", bytes([process]))):
        try:
            sharding.check_same({"nothing": [], "this": [b"0", own]})
            print(name, "is the same")
        except SettingError as error:
            print(name, error)


def child(process: int, env: Mapping[str, str], workdir: pathlib.Path, changes: Any) -> None:
    """What launch.py does of a process, to its end."""
    os.environ.update(env)
    try:
        hosts.join(hosts.of_flags({"distributed": True, "join_timeout": 60}))
        if changes.pop("agree", False):
            agreed(process)
        state = toys.train(workdir, "one", changes)
        code = boundary.STOPPED if int(state.step) < changes.get("train.steps", 6) else 0
    except Exception as error:
        code = boundary.tell(error, False).code
    if code == 0:
        hosts.leave()  # as the interpreter does in its end
    boundary.end(code)


def together(
    workdir: pathlib.Path, count: int, changes: Mapping[str, Any], **strike: Any
) -> list[dict[str, Any]]:
    """The processes' ends: [{"code", "said"}]; the last one is struck, if that is asked for."""
    port, files, running = free_port(), [], {}
    sys.stdout.flush()
    for i in range(count):
        files.append(tempfile.TemporaryFile("w+"))  # noqa: SIM115 (read once all have ended)
        slurm = {"JOB_ID": 1, "STEP_NODELIST": "127.0.0.1", "NTASKS": count, "PROCID": i}
        env = {f"SLURM_{name}": str(value) for name, value in slurm.items()}
        env |= {"SLURM_LOCALID": "0", "JAX_COORDINATOR_PORT": str(port)}
        env |= toys.environment(DEVICES // count) | CACHE
        pid = os.fork()
        if pid == 0:
            for stream in (1, 2):
                os.dup2(files[-1].fileno(), stream)
            if strike and i == count - 1:
                struck(**strike)
            elif strike:
                struck(strike["when"], 0, strike["pace"])
            child(i, env, workdir, dict(changes))
        running[pid] = i
    ends: dict[int, int] = {}
    deadline = time.monotonic() + LIMIT
    while len(ends) < count:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            ends[running[pid]] = os.waitstatus_to_exitcode(status)
        elif time.monotonic() > deadline:
            for pid in running.keys() - {p for p, i in running.items() if i in ends}:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    outcomes = []
    for i, file in enumerate(files):
        file.seek(0)
        outcomes.append({"code": ends[i], "said": file.read()})
    return outcomes


def main(root: pathlib.Path) -> None:
    hosts.SILENCE = 10  # seconds that the test of a kill takes
    runs = {"two": together(root / "two", 2, {"agree": True})}
    strike = {"when": 5, "number": signal.SIGKILL, "pace": 0.0}
    runs["killed"] = together(root / "killed", 2, QUIET, **strike)
    left = complete_steps(root / "killed" / "checkpoints")
    runs["resumed"] = together(root / "killed", 2, QUIET)
    strike = {"when": 3, "number": signal.SIGTERM, "pace": 0.05}
    runs["stopped"] = together(root / "stopped", 4, {**LONG, "train.steps": 2000}, **strike)
    saved = complete_steps(root / "stopped" / "checkpoints")
    steps = (saved or [0])[-1] + 2
    runs["continued"] = together(root / "stopped", 2, {**LONG, "train.steps": steps})
    outcome = {"runs": runs, "left": left, "saved": saved, "steps": steps}
    (root / "outcomes.json").write_text(json.dumps(outcome))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
