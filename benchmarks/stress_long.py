"""Trains a tiny run for very long, and watches its memory, open files and threads.

    python benchmarks/stress_long.py --steps=100000

Rows of metrics, evaluations, pictures and checkpoints come at intervals. Prints what the process
holds at every tenth of the run, the growth from the first tenth on, and what the run's files take.
"""

import argparse
import os
import pathlib
import re
import tempfile
import threading
import time

import forks
from common import machine

SETTINGS = (
    "--config=configs/vae_digits.py:smoke",
    "--config.train.batch_size=8",
    "--config.optimizer.schedule=constant",
    "--config.log.samples=4",
    "--config.evaluation.examples=8",
    "--config.evaluation.count=8",
)


def held() -> tuple[float, int, int]:
    """(MiB in memory, open files, threads) of this process."""
    status = pathlib.Path("/proc/self/status").read_text()
    resident = int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024
    threads = int(re.search(r"Threads:\s+(\d+)", status)[1])
    return resident, len(os.listdir("/proc/self/fd")), threads


def watch(workdir: pathlib.Path, steps: int, every: float = 0.2) -> None:
    """Prints what this process holds whenever another tenth of the run is done."""

    def look() -> None:
        path, tenth = workdir / "metrics.jsonl", 1
        while tenth <= 10:
            time.sleep(every)
            if not path.exists():
                continue
            with path.open("rb") as file:
                file.seek(max(path.stat().st_size - 4096, 0))
                found = re.findall(rb'"step": (\d+)', file.read())
            if found and int(found[-1]) >= steps * tenth // 10:
                resident, files, threads = held()
                print(f"held {found[-1].decode()} {resident:.1f} {files} {threads}", flush=True)
                tenth += 1

    threading.Thread(target=look, daemon=True).start()


def size(path: pathlib.Path) -> float:
    """MB of a file, or of all in a folder."""
    paths = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(p.stat().st_size for p in paths) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds")
    options = parser.parse_args()
    steps = options.steps
    workdir = pathlib.Path(tempfile.mkdtemp(prefix="stress-")) / "long"
    forks.prepare()
    outcome = forks.run(
        *SETTINGS,
        f"--config.train.steps={steps}",
        f"--config.log.every={max(steps // 1000, 1)}",
        *(f"--config.log.{key}={max(steps // 100, 1)}" for key in ("eval_every", "sample_every")),
        f"--config.checkpoint.every={max(steps // 200, 1)}",
        f"--workdir={workdir}",
        timeout=options.timeout,
        before=lambda: watch(workdir, steps),
    )
    print(f"{machine()}; exit code {outcome.code}, {outcome.seconds:.0f} s {outcome.err[-500:]}")
    rows = [line.split()[1:] for line in outcome.out.splitlines() if line.startswith("held ")]
    for step, *found in rows:
        print("step {}: {} MiB, {} open files, {} threads".format(step, *found))
    if rows:
        print(f"growth from step {rows[0][0]} on: {float(rows[-1][1]) - float(rows[0][1]):.1f} MiB")
    for name in ("metrics.jsonl", "tensorboard", "samples", "checkpoints", ""):
        print(f"{name or 'the whole folder'}: {size(workdir / name):.1f} MB")


if __name__ == "__main__":
    main()
