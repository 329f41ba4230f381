"""Takes the disk away from every command that writes, and judges how it ends.

    sudo python benchmarks/stress_disks.py

Each command works on a disk of its own (a tmpfs, whose mount takes root) that is full, read-only,
without inodes, or has something else where its output is to lie. It must end by itself with exit
code 1 and one line, lose nothing that was there, leave nothing half written, and work once the disk
does.
"""

import argparse
import contextlib
import os
import pathlib
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator

import forks
import stress_scene as scenes
from common import machine
from stress_cases import NEEDS, OF

LIMIT = 20.0  # seconds to the end of a command, most of them its start
TRAIN = ("--config.train.steps=8", "--config.optimizer.decay_steps=4")
COMMANDS = {
    "start": (),  # of a training in a new folder
    "resume": (),
    "sample": ("--num=4",),
    "sample npz": ("--num=4", "--save=npz"),
    "sample gif": ("--num=4", "--frames=2", "--gif"),
    "evaluate": ("--num=40",),
    "report": (),
    "export": (),
    "encode": (),
    "denoise": (),
}


@contextlib.contextmanager
def disk(place: pathlib.Path, run: pathlib.Path) -> Iterator[None]:
    """A tmpfs at a place with a copy of a run, and room for as much again."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", place], check=True)
    try:
        shutil.copytree(run, place / "run")
        yield
    finally:
        subprocess.run(["umount", "-l", place], check=True)
        place.rmdir()


def full(place: pathlib.Path, left: int = 0) -> Callable[[], None]:
    """Fills a disk but for so many bytes; returns what gives them back."""
    free = shutil.disk_usage(place).free
    (place / "filling").write_bytes(bytes(max(free - left, 0)))
    return (place / "filling").unlink


def read_only(place: pathlib.Path) -> Callable[[], None]:
    """Mounts a disk read-only; returns what makes it writable again."""
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    return lambda: subprocess.run(["mount", "-o", "remount,rw", place], check=True) and None


def without_inodes(place: pathlib.Path) -> Callable[[], None]:
    """Leaves a disk no inode; returns what gives them back."""
    used = os.statvfs(place)
    count = used.f_files - used.f_ffree
    subprocess.run(["mount", "-o", f"remount,nr_inodes={count}", place], check=True)
    more = ["mount", "-o", "remount,nr_inodes=10000", place]
    return lambda: subprocess.run(more, check=True) and None


# Folders of outputs in whose place a file is put; in a report's a folder.
IN_THE_WAY = ("generated", "evaluations", "samples", "diffusers", "codes", "denoised")


def in_the_way(place: pathlib.Path) -> Callable[[], None]:
    """Puts something else where outputs are to lie; returns what puts back what was there."""
    moved = []
    for path in (*(place / "run" / name for name in IN_THE_WAY), place / "new"):
        if path.exists():
            moved.append((path, path.rename(path.with_name(f"was-{path.name}"))))
        path.write_text("someone's")
    (place / "run" / "report.html").unlink(missing_ok=True)
    (place / "run" / "report.html").mkdir()

    def mend() -> None:
        for path in (*(place / "run" / name for name in IN_THE_WAY), place / "new"):
            path.unlink()
        for path, was in moved:
            was.rename(path)
        (place / "run" / "report.html").rmdir()

    return mend


FAULTS = {
    "something in the way": in_the_way,
    "full": full,
    # Enough to begin: the disk is full in the middle of a save, a picture or a file.
    "8 KiB left": lambda place: full(place, 8 << 10),
    "64 KiB left": lambda place: full(place, 64 << 10),
    "256 KiB left": lambda place: full(place, 256 << 10),
    "1 MiB left": lambda place: full(place, 1 << 20),
    "read-only": read_only,
    "no inodes": without_inodes,
}


def arguments(command: str, place: pathlib.Path, data: pathlib.Path) -> list[str]:
    """What gives a command on the disk at a place."""
    mode, workdir = command.partition(" ")[0], f"--workdir={place / 'run'}"
    if mode == "start":
        return [*scenes.training("vae", data), f"--workdir={place / 'new'}"]
    if mode == "resume":
        return [*scenes.training("diffusion", data), *TRAIN, workdir]
    needs = [word.replace("{data}", str(data)) for word in NEEDS.get(mode, ())]
    return [f"--mode={mode}", *needs, *COMMANDS[command], workdir]


def attempt(command: str, fault: str, root: pathlib.Path) -> tuple[list[str], str, float]:
    """(what is wrong with how a command ended, its kind first; what it wrote; seconds)."""
    mode = command.partition(" ")[0]
    run = "diffusion" if mode == "resume" else OF.get(mode, "diffusion")
    place, found = root / f"disk-{os.getpid()}", []
    environment = {"TMPDIR": str(place), "JAX_COMPILATION_CACHE_DIR": str(place / "cache")}
    given = arguments(command, place, root / "data")
    with disk(place, root / "runs" / run):
        mend = FAULTS[fault](place)
        before = scenes.contents(place)
        before.pop("filling", None)
        outcome = forks.run(*given, timeout=60, environment=environment)
        after = scenes.contents(place)
        mend()
        text = outcome.out + outcome.err
        lines = [line for line in outcome.err.splitlines() if line.strip()]
        if outcome.seconds > LIMIT:
            found.append(f"slow ends: {outcome.seconds:.0f} s")
        if outcome.code not in (0, 1):
            found.append(f"other exit codes: {outcome.code}")
        # What is left may do: a report takes little.
        if outcome.code == 0 and "left" not in fault:
            found.append("silent acceptances: exit code 0")
        if "Traceback" in text or "does not know this error" in text:
            found.append("tracebacks: " + outcome.err.strip()[-200:])
        if outcome.code == 1 and len(lines) != 1:
            found.append(f"several lines: {len(lines)}")
        # A run that goes on notes so, and sets aside what was half saved.
        own = ("config.json", "origin.json", "metrics.jsonl", "report.html", "tensorboard")
        lost = [p for p in before if after.get(p) != before[p] and not p.endswith(own)]
        kept = "checkpoints/00000002"  # only the newest two stay
        lost = [p for p in lost if kept not in p or outcome.code != 0] if mode == "resume" else lost
        if lost and outcome.code == 1:
            found.append(f"losses: {', '.join(lost[:3])}")
        if any(".partial-" in path for path in after):
            found.append("halves: " + next(path for path in after if ".partial-" in path))
        if outcome.code == 1:
            again = forks.run(*given, timeout=90)
            if again.code != 0:
                found.append(f"not mended: {again.code}, {again.err.strip()[-300:]}")
    return found, f"{outcome.out[-300:]}\n{outcome.err[-900:]}", outcome.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=list(COMMANDS), help="commands")
    parser.add_argument("--root", help="keeps the small runs there, for the next time")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("mounts disks of its own, which takes root")
    forks.prepare()
    root = pathlib.Path(options.root or tempfile.mkdtemp(prefix="stress-"))
    scenes.make_pictures(root / "data")
    scenes.make_runs(root / "runs", root / "data")
    kinds = ("tracebacks", "silent acceptances", "slow ends", "losses", "halves", "several lines")
    counts, began = Counter(dict.fromkeys(kinds, 0)), time.monotonic()
    print(f"{machine()}; runs in {root}", flush=True)
    slowest = 0.0
    for command in options.only:
        for fault in FAULTS:
            found, said, seconds = attempt(command, fault, root)
            slowest = max(slowest, seconds)
            counts["cases"] += 1
            counts["failing"] += bool(found)
            for what in found:
                counts[what.partition(":")[0]] += 1
            if found:
                print(f"\n{command}, {fault}: {'; '.join(found)}\n{said}", flush=True)
    listed = ", ".join(f"{name} {count}" for name, count in counts.items())
    print(
        f"{listed}; the slowest command took {slowest:.1f} s "
        f"({(time.monotonic() - began) / 60:.1f} min)",
        flush=True,
    )


if __name__ == "__main__":
    main()
