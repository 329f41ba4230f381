"""The misuses of every command that `stress_misuse.py` tries, and what is expected of each.

In arguments {run} is a copy of a small run, {other} a run that is not touched, {data} the folder of
pictures, {new} a folder that is not there, and {scene} the one that the copy lies in.
"""

import pathlib
import signal
from collections.abc import Callable, Iterator
from typing import NamedTuple

from stress_scene import SMALL, training


class Case(NamedTuple):
    """A misuse and what is expected of it.

    Attributes:
      name: of the case.
      arguments: of launch.py.
      word: what the one line names; of several, one of them.
      run: the run of which a copy lies in the scene; "" for none.
      damage: what is done to the scene first.
      codes: exit codes that are right; with 0 among them it is no misuse, or not always one.
      limit: seconds until its end.
      lines: whether it may tell in several lines (a list of keys).
      signals: as `forks.run` takes them.
      locked: whether another process trains the run meanwhile.
    """

    name: str
    arguments: tuple[str, ...]
    word: str | tuple[str, ...] = ""
    run: str = ""
    damage: Callable[[pathlib.Path], object] | None = None
    codes: tuple[int, ...] = (1,)
    limit: float = 20.0
    lines: bool = False
    signals: tuple[tuple[float | str, int], ...] = ()
    locked: bool = False


DIGITS = "--config=configs/ddpm_digits.py:smoke"
NEW = "--workdir={new}"
RUN = "--workdir={run}"
COMMANDS = ("sample", "evaluate", "report", "denoise", "translate", "encode", "export")
NEEDS = {"denoise": ("--input={data}/grey",), "translate": ("--input={data}/colour",)}
# Runs that a command works on.
OF = {"denoise": "vae", "encode": "vae", "translate": "cyclegan", "sample": "gan"}


def flags() -> Iterator[Case]:
    """Flags that cannot be, or not together."""
    lines = [
        ("--nonsense", "nonsense"),
        ("--mode=paint", "paint"),
        ("--mode=sample", "--config"),
        ("", "--config"),
        ("extra words", "extra"),
        ("--config=configs/none.py", "none.py"),
        ("--config=configs/ddpm_digits.py:none", "none"),
        (f"{DIGITS}+ {NEW}", "variant"),
        ("--config=configs", "configs"),
        ("--config=README.md", "README.md"),
        ("--config=launch.py", "launch.py"),
        ("--config=", ""),
        (f"{DIGITS} --config.none=1", "none"),
        (f"{DIGITS} --config.train.step=1", "steps"),
        (f"{DIGITS} --config.train=1", "train"),
        (f"{DIGITS} --config.train.steps", "steps"),
        (f"{DIGITS} --config.train.steps.more=1", "steps"),
        (f"{DIGITS} --seed=1", "config.seed"),
        (f"{DIGITS} --steps=1", "train.steps"),
        (f"{DIGITS} --output=x", "output"),
        (f"{DIGITS} --from_step=-1", "from_step"),
        (f"{DIGITS} --from_step=x", "from_step"),
        (f"{DIGITS} --from_step=7 {NEW}", "7"),
        (f"{DIGITS} --processes=2", "coordinator"),
        (f"{DIGITS} --processes=2 --process=2 --coordinator=localhost:1", "--process"),
        (f"{DIGITS} --processes=0 --process=0 --coordinator=localhost:1", "--process"),
        (f"{DIGITS} --processes=2 --process=-1 --coordinator=localhost:1", "--process"),
        (f"{DIGITS} --processes=2 --process=1 --coordinator=localhost", "host:port"),
        (f"{DIGITS} --processes=2 --process=1 --coordinator=localhost:x", "host:port"),
        (f"{DIGITS} --processes=2 --process=1 --coordinator=localhost:99999", "host:port"),
        (
            f"{DIGITS} --processes=2 --process=1 --coordinator=localhost:1 --join_timeout=1",
            "answer",
        ),
        (f"{DIGITS} --processes=2 --process=1 --coordinator=no.such:1 --join_timeout=1", "no.such"),
        (f"{DIGITS} --processes=2 --process=0 --coordinator=localhost:7 --join_timeout=0", "join"),
        (
            f"{DIGITS} --processes=2 --process=0 --coordinator=localhost:39987 --join_timeout=3",
            "meet",
        ),
        (f"{DIGITS} --distributed --processes=2", "distributed"),
        (f"{DIGITS} --distributed --join_timeout=3", "cluster"),
        (f"{DIGITS} --distributed=maybe", "distributed"),
        (f"{DIGITS} --debug=maybe", "debug"),
        (f"{DIGITS} --workdir=/dev/null/x", "/dev/null"),
        (f"{DIGITS} --workdir=/dev/null", "/dev/null"),
        (f"{DIGITS} --workdir=/proc/x", "/proc"),
        (f"{DIGITS} --workdir=/sys", "/sys"),
        (f"{DIGITS} --workdir=README.md", "README.md"),
        (f"{DIGITS} --workdir={{new}}/{'x' * 300}", "x"),
        (f"{DIGITS} --workdir={{other}}/best", "best"),
    ]
    for line, word in lines:
        # XLA itself ends the process that nobody came to meet, once our line is told.
        codes = (1, -6) if word == "meet" else (1,)
        yield Case(f"flags {line}", tuple(line.split()), word, codes=codes)
    yield Case("a NUL in --workdir", (DIGITS, "--workdir=a\0b"), "workdir")
    yield Case("a surrogate in --workdir", (DIGITS, "--workdir={new}/\udc80"), "UTF-8")


def flags_of_commands() -> Iterator[Case]:
    """Flags of the commands that work on a run."""
    lines = {
        "sample": (
            ("--num=0", "num"), ("--num=-3", "num"), ("--num=x", "num"), ("--num=1.5", "num"),
            ("--seed=x", "seed"), ("--seed=-1", "seed"),
            ("--labels=1", "labels"), ("--sampler=ddim", "sampler"), ("--steps=0", "steps"),
            ("--guidance=2", "guidance"), ("--batch=0", "batch"), ("--step=3", "3"),
            ("--step=-1", "-1"), ("--best", "best"), ("--best --step=4", "--best"),
            ("--dtype=int8", "dtype"), ("--frames=-1", "frames"),
            ("--gif", "frames"), ("--save=jpg", "save"),
            ("--output={data}/text.txt", "text.txt"), ("--output=/proc", "/proc"),
            ("--input={data}", "input"), ("--num=1000000000000 --save=npz", "MB"),
            ("--config=configs/vae_digits.py", "family"), ("--config.seed=3", "config"),
            ("--from_step=2", "from_step"), ("--evaluations=fid", "evaluations"),
        ),
        "evaluate": (
            ("--evaluations=nonsense", "nonsense"), ("--evaluations=likelihood", "likelihood"),
            ("--num=0", "num"), ("--steps=3", "steps"), ("--step=9", "9"), ("--best", "best"),
            ("--output=x", "output"), ("--evaluations=,", ""), ("--evaluations=fid --num=1", ""),
        ),
        "report": (("--step=3", "step"), ("--output=x", "output"), ("--seed=1", "seed")),
        "denoise": (
            ("--input=", "input"), ("--input={data}/none", "none"),
            ("--input={data}/empty", "empty"),
            ("--input={data}/texts", "texts"), ("--input={data}/text.txt", "text.txt"),
            ("--input={data}/broken", "broken"), ("--input={data}/huge", "huge"),
            ("--input={data}/truncated", "truncated"), ("--input={data}/cut.zip", "cut.zip"),
            ("--input={data}/no.zip", "no.zip"), ("--input={data}/nothing.zip", "nothing.zip"),
            ("--input={data}/outward.zip", "../out.png"),
            ("--input={data}/grey --output={data}/grey", "input"),
            ("--input={data}/grey --output={data}/grey/out", "input"),
            ("--input={data}/grey --output={data}/colour", "not empty"),
            ("--input={data}/grey --output={data}/text.txt", "text.txt"),
            ("--input={data}/grey --output=/proc/x", "/proc"),
            ("--input={data}/grey --batch=0", "batch"),
            ("--input={data}/grey --step=1", "1"),
            ("--input={data}/grey --direction=a2b", "direction"),
            ("--input={data}/grey --best --step=4", "--best"),
        ),
        "translate": (
            ("--input=", "input"), ("--input={data}/none", "none"),
            ("--input={data}/empty", "empty"),
            ("--input={data}/broken", "broken"), ("--input={data}/huge", "huge"),
            ("--input={data}/cut.zip", "cut.zip"),
            ("--input={data}/colour --direction=c2d", "direction"),
            ("--input={data}/colour --output={data}/colour/x", "input"),
            ("--input={data}/colour --best", "best"), ("--input={data}/colour --seed=1", "seed"),
        ),
        "encode": (
            ("--output={data}/text.txt", "text.txt"), ("--output=/proc/x", "/proc"),
            ("--step=5", "5"), ("--input={data}/grey", "input"), ("--best --step=2", "--best"),
        ),
        "export": (
            ("--output={data}", "not empty"), ("--output={data}/text.txt", "text.txt"),
            ("--output=/proc/x", "/proc"), ("--step=5", "5"), ("--raw", "raw"), ("--num=3", "num"),
        ),
    }  # fmt: skip
    for command, several in lines.items():
        run = OF.get(command, "diffusion" if command == "export" else "gan")
        for line, word in several:
            arguments = (f"--mode={command}", RUN, *line.split())
            yield Case(f"{command} {line}", arguments, word, run, lines="--config" in line)
    for words in ("-1", "10", "cat", "1,x", ",", "3.0"):
        yield Case(
            f"labels {words}", ("--mode=sample", RUN, f"--labels={words}"), "label", "labels"
        )


def other_runs() -> Iterator[Case]:
    """Runs that are not there, of another family, or of another config."""
    for command in COMMANDS:
        needs = (f"--mode={command}", *NEEDS.get(command, ()))
        yield Case(f"{command} of no run", (*needs, NEW), "no run")
        yield Case(f"{command} of a file", (*needs, "--workdir={data}/text.txt"), "text.txt")
        yield Case(f"{command} of pictures", (*needs, "--workdir={data}/grey"), "no run")
        yield Case(f"{command} of best/", (*needs, "--workdir={run}/best"), "--best", "diffusion")
    for command, runs in {
        "denoise": ("gan", "diffusion", "cyclegan", "points"),
        "encode": ("gan", "diffusion", "cyclegan", "points"),
        "translate": ("gan", "diffusion", "vae", "points"),
        "export": ("gan", "vae", "cyclegan", "points"),
        "sample": ("cyclegan",),
    }.items():
        for run in runs:
            needs = (f"--mode={command}", *NEEDS.get(command, ()))
            yield Case(f"{command} of {run}", (*needs, RUN), "", run)
    for run in ("vae", "gan", "points"):
        yield Case(f"digits in {run}", (DIGITS, *SMALL, RUN), "another config", run, lines=True)
    for setting in ("train.batch_size=8", "seed=1", "network.width=16", "optimizer.b1=0.5"):
        arguments = (DIGITS, *SMALL, f"--config.{setting}", RUN)
        name = f"another {setting}"
        yield Case(name, arguments, setting.partition("=")[0], "diffusion", lines=True)
        yield Case(f"sample, {name}", (*arguments, "--mode=sample"), "", "diffusion", lines=True)
    for step in (1, 3, 5, 400):
        arguments = (DIGITS, *SMALL, f"--from_step={step}", RUN)
        yield Case(f"from step {step}", arguments, str(step), "diffusion")
    arguments = (*training("diffusion", pathlib.Path()), "--config.train.steps=6", RUN)
    yield Case("two at a time", arguments, "is being trained", "diffusion", locked=True)


def signals() -> Iterator[Case]:
    """Ctrl-C in each command at several times, and other signals to training."""
    for command in COMMANDS:
        run = OF.get(command, "diffusion")
        arguments = (f"--mode={command}", *NEEDS.get(command, ()), RUN)
        for seconds in (0.1, 0.3, 0.6, 1.0, 1.6, 2.4):
            name, sent = f"Ctrl-C after {seconds} s: {command}", ((seconds, signal.SIGINT),)
            yield Case(name, arguments, "", run, codes=(0, 130), limit=40, signals=sent)
    arguments = (*training("diffusion", pathlib.Path()), "--config.train.steps=3000", NEW)
    begun = "step 20"  # of a line of metrics
    for seconds in (0.1, 0.3, 0.6, 1.0):
        sent = ((seconds, signal.SIGINT),)
        yield Case(f"Ctrl-C after {seconds} s: train", arguments, codes=(75, 130), signals=sent)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        once = ((begun, number),)
        yield Case(f"{number.name} once", arguments, codes=(75,), limit=60, signals=once)
        twice = (*once, ("stopping: saves", number))
        yield Case(f"{number.name} twice", arguments, codes=(75, 130), limit=60, signals=twice)
