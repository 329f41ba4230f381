"""Several processes train, sample and evaluate as one; one is killed, stopped, or hangs.

    python benchmarks/stress_hosts.py --counts=2,4

For each number of processes one run is trained without a break. Others lose a process (SIGKILL) in
the middle, are asked to stop (SIGTERM) while they compile, have a process that no longer answers
(SIGSTOP) or one with another config; then all are started again. Every row of metrics, every
picture and every digest of a checkpoint must be that of the whole run; samples and results those of
one process but for rounding. Prints how each ended, in how many seconds, and what differs.
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import tempfile
import time
from collections.abc import Mapping, Sequence

import forks
import numpy as np
import stress_kills
from common import machine
from PIL import Image

STRIKES = {
    "killed": (("step 5/", signal.SIGKILL),),
    "asked to stop": ((2.0, signal.SIGTERM),),
    "silent": (("step 5/", signal.SIGSTOP), (100.0, signal.SIGKILL)),
}
TRAINING = ("--config.log.eval_every=6", "--config.log.sample_every=6")
DEVICES = 4  # of all processes together


def together(
    count: int,
    *arguments: object,
    signals: Sequence[tuple[float | str, int]] = (),
    of_last: Sequence[str] = (),
    timeout: float = 180.0,
) -> list[forks.Outcome]:
    """launch.py in so many processes that meet by SLURM's variables.

    `signals` go to the last of them, `forks.run`'s pairs of when and which, where the first process
    is the one that writes; `of_last` are more arguments of its.
    """
    port, running, outcomes = forks.free_port(), {}, {}
    began, due = time.monotonic(), list(signals)
    for i in range(count):
        out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        if not (process := os.fork()):
            slurm = {"JOB_ID": 1, "STEP_NODELIST": "127.0.0.1", "NTASKS": count, "PROCID": i}
            env = {f"SLURM_{name}": str(value) for name, value in slurm.items()}
            env |= {"SLURM_LOCALID": "0", "JAX_COORDINATOR_PORT": str(port)}
            given = [*map(str, arguments), "--distributed", *(of_last if i == count - 1 else ())]
            forks._child(given, out, err, DEVICES // count, None, env)
        running[process] = i, out, err
    last, first_out = process, next(iter(running.values()))[1]
    while running:
        passed = time.monotonic() - began
        if due and forks.is_due(due[0][0], passed, first_out) and last in running:
            os.kill(last, due.pop(0)[1])
        for process in [p for p in running if passed > timeout]:
            os.kill(process, signal.SIGKILL)
        process, status = os.waitpid(-1, os.WNOHANG)
        if process:
            i, *files = running.pop(process)
            code = None if passed > timeout else os.waitstatus_to_exitcode(status)
            outcomes[i] = forks.Outcome(code, passed, *map(forks.text, files))
        time.sleep(0.005)
    return [outcomes[i] for i in range(count)]


def trained(workdir: pathlib.Path, count: int, **more: object) -> list[forks.Outcome]:
    config, best, *settings = stress_kills.FAMILIES["vae"]
    best = f"--config.checkpoint.best={best}"
    settings += [*stress_kills.SETTINGS, *TRAINING, best, f"--workdir={workdir}"]
    return together(count, f"--config={config}", *settings, **more)


def told(name: str, outcomes: Sequence[forks.Outcome]) -> None:
    """Prints how processes ended, and the last line of those that failed."""
    codes = ", ".join(str(outcome.code) for outcome in outcomes)
    print(f"{name}: exit codes {codes}; {outcomes[0].seconds:.1f} s", flush=True)
    for outcome in outcomes:
        lines = outcome.err.strip().splitlines()
        if outcome.code not in (0, None, 75, -9) and lines:
            print(f"    {lines[-1]}", flush=True)
        if "Traceback" in outcome.err:
            print("    a traceback:\n" + outcome.err, flush=True)


def differing(ours: Mapping[str, object], theirs: Mapping[str, object]) -> list[str]:
    return sorted(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k))


def stress(count: int, strikes: Sequence[str], root: pathlib.Path) -> None:
    """All of it with one number of processes."""
    print(f"{count} processes", flush=True)
    whole = root / f"{count}-whole"
    told("  without a break", trained(whole, count))
    uses(root, count)
    expected = stress_kills.made(whole)
    for name in strikes:
        signals = STRIKES[name]
        workdir = root / f"{count}-{name.replace(' ', '-')}"
        told(f"  {name}", trained(workdir, count, signals=signals))
        told("    started again", trained(workdir, count))
        wrong = differing(stress_kills.made(workdir), expected)
        print(f"    differing from the whole run: {', '.join(wrong) or 'nothing'}", flush=True)
        shutil.rmtree(workdir)
    other = trained(root / "other", count, of_last=("--config.seed=1",))
    told("  one with another seed", other)


def uses(root: pathlib.Path, count: int) -> None:
    """Samples and results, by several processes and by one, of the run that several have made."""
    results = []
    for processes in (1, count):
        folder = root / f"{count}-used-by-{processes}"
        shutil.copytree(root / f"{count}-whole", folder)
        for mode in (("sample", "--num=20", "--save=png"), ("evaluate",)):
            flags = [f"--mode={mode[0]}", *mode[1:], f"--workdir={folder}"]
            told(f"  {mode[0]} on {processes}", together(processes, *flags))
        pictures = sorted((folder / "generated").rglob("*.png"))
        tables = sorted((folder / "evaluations").rglob("*.json"))
        found = [row for path in tables for row in json.loads(path.read_text())["rows"]]
        results.append((pictures, {row["metric"]: row["value"] for row in found}))
    (ours, values), (theirs, others) = results
    assert [p.name for p in ours] == [p.name for p in theirs]
    both = zip(ours, theirs, strict=True)
    most = max(
        np.abs(np.asarray(Image.open(a), int) - np.asarray(Image.open(b), int)).max()
        for a, b in both
    )
    print(f"  {len(ours)} pictures differ by at most {most} of 255")
    for metric in sorted(values.keys() | others.keys()):
        print(f"  {metric}: {values.get(metric)} on 1, {others.get(metric)} on {count}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--counts", default="2,4")
    parser.add_argument("--strikes", default=",".join(STRIKES))
    given = parser.parse_args()
    print(machine())
    forks.prepare()
    with tempfile.TemporaryDirectory() as root:
        for count in map(int, given.counts.split(",")):
            stress(count, given.strikes.split(","), pathlib.Path(root))


if __name__ == "__main__":
    main()
