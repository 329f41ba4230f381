"""Misuses every command in hundreds of ways, and judges how it ends.

    python benchmarks/stress_misuse.py
    python benchmarks/stress_misuse.py --only='damage|weights' --root=scene

A misuse must end by itself with exit code 1, in time, without a traceback, with one line on stderr
that names what is wrong, and leave every file as it was. Prints what failed and the counts.
"""

import argparse
import contextlib
import fcntl
import json
import os
import pathlib
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator

import forks
import stress_cases
import stress_files
import stress_scene as scenes
from common import machine
from stress_cases import Case

# {pattern of "config key value": why that is no mistake}
ALLOWED = {
    r"data\.data_dir .*": "where TFDS is to prepare its data",
    r"network\.attention \(\)": "none",
    r"evaluation\.(statistics|reference_split|weights) .*": "smoke evaluates no samples",
    r"vae\.perceptual\.weights .*": "no perceptual network is asked for",
    r"gan\.augment\.policy \(\)": "none",
    r"network\.(attention|multipliers|hidden|.*\.hidden) 3": "one number is a tuple of it",
}
# Values that no setting of a type can have, and such as few can.
WRONG = {
    bool: ("maybe", "2"),
    int: ("-1", "x", "1.5", "99999999999999999999"),
    float: ("nan", "-1e9", "x", "inf"),
    str: ("nonsense", "../x"),
    tuple: ("('x',)", "(-1,)", "3", "()"),
    type(None): ("nonsense", "-1"),
}
GENERATED = ("ddpm_digits", "vae_digits", "gan_digits")


def settings_out_of_range() -> Iterator[Case]:
    """Each key of some configs with a value that is not of its type, and with one out of range."""
    import importlib

    from aigc_jax.checks import flatten

    for name in GENERATED:
        config = importlib.import_module(f"configs.{name}").get_config("smoke")
        for number, (key, value) in enumerate(flatten(config.to_dict()).items()):
            wrong = WRONG.get(type(value), ())
            for i in range(min(2, len(wrong))):
                new = wrong[(2 * number + i) % len(wrong)]
                case = f"{name} {key} {new!r}"
                allowed = any(re.fullmatch(f"{pattern}", f"{key} {new}") for pattern in ALLOWED)
                yield Case(
                    f"setting: {case}",
                    (
                        f"--config=configs/{name}.py:smoke",
                        f"--config.{key}={new}",
                        "--workdir={new}",
                    ),
                    (key.rpartition(".")[2], new),
                    codes=(0, 1) if allowed else (1,),
                )


def all_cases() -> Iterator[Case]:
    """Every case, those that take long last."""
    yield from stress_cases.flags()
    yield from stress_cases.flags_of_commands()
    yield from settings_out_of_range()
    yield from stress_cases.other_runs()
    yield from stress_files.data()
    yield from stress_files.weights()
    yield from stress_files.damages()
    yield from stress_cases.signals()


def attempt(case: Case, root: pathlib.Path) -> tuple[list[str], str]:
    """(what is wrong with how a case ended: kinds, and in words; what it wrote)."""
    scene = root / f"scene-{os.getpid()}"
    shutil.rmtree(scene, ignore_errors=True)
    scene.mkdir()
    if case.run:
        shutil.copytree(root / "runs" / case.run, scene / "run")
    if case.damage:
        case.damage(scene)
    places = {
        "{run}": scene / "run",
        "{new}": scene / "new",
        "{scene}": scene,
        "{data}": root / "data",
        "{other}": root / "runs" / "diffusion",
    }
    arguments = list(case.arguments)
    for name, path in places.items():
        arguments = [argument.replace(name, str(path)) for argument in arguments]
    watched = (scene, root / "data", root / "runs" / "diffusion")
    with _locked(scene / "run") if case.locked else contextlib.nullcontext():
        before = [scenes.contents(folder) for folder in watched]
        outcome = forks.run(*arguments, timeout=case.limit, signals=case.signals)
        after = [scenes.contents(folder) for folder in watched]
    changed = [
        path
        for pair in zip(before, after, strict=True)
        for path in scenes.differing(*pair)
        # What succeeds writes; but it loses nothing.
        if outcome.code == 1 or path in pair[0]
    ]
    said = f"{outcome.out[-300:]}\n{outcome.err[-1500:]}\n($ launch.py {' '.join(arguments)})"
    return judged(case, outcome, changed), said


def judged(case: Case, outcome: forks.Outcome, changed: list[str]) -> list[str]:
    """What is wrong with how a case ended, each with the kind of it first."""
    found, text = [], outcome.out + outcome.err
    if outcome.code is None:
        found.append(f"hangs: no end in {case.limit} s")
    elif outcome.code == 0 and 0 not in case.codes:
        found.append("silent acceptances: exit code 0")
    elif outcome.code not in case.codes:
        found.append(f"other exit codes: {outcome.code}, not {case.codes}")
    if "Traceback" in text or "does not know this error" in text:
        found.append("tracebacks: " + outcome.err.strip()[-200:])
    lines = [line for line in outcome.err.splitlines() if line.strip()]
    if outcome.code == 1 and len(lines) != 1 and not case.lines:
        found.append(f"several lines: {len(lines)}")
    words = (case.word,) if isinstance(case.word, str) else case.word
    if outcome.code == 1 and not any(word in outcome.err for word in words):
        found.append(f"unnamed: no {case.word!r}")
    # A stop or an end by Ctrl-C of a run that goes on may leave what a kill may leave.
    partial = [path for path in changed if outcome.code == 1 or "partial" in path]
    if outcome.code == 1 and partial:
        found.append(f"losses: changed {', '.join(partial[:4])}")
    elif changed and not case.arguments[0].startswith("--config"):
        kept = [p for p in changed if not p.endswith("report.html")]
        if kept and outcome.code != 0:
            found.append(f"losses: changed {', '.join(kept[:4])}")
    return found


@contextlib.contextmanager
def _locked(workdir: pathlib.Path) -> Iterator[None]:
    """The lock of a run, held by this process."""
    from aigc_jax.runs import lock

    with (workdir / lock.NAME).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps({"host": "here", "process": 1, "since": "now", "beats": 0}))
        file.flush()
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="a pattern that names of cases hold")
    parser.add_argument("--root", help="keeps the small runs there, for the next time")
    parser.add_argument("--part", default="0/1", help="I/N: every Nth case from the Ith on")
    options = parser.parse_args()
    forks.prepare()
    root = pathlib.Path(options.root or tempfile.mkdtemp(prefix="stress-"))
    scenes.make_pictures(root / "data")
    scenes.make_runs(root / "runs", root / "data")
    first, parts = map(int, options.part.split("/"))
    cases = [case for case in all_cases() if re.search(options.only, case.name)][first::parts]
    counts: Counter = Counter(
        dict.fromkeys(("tracebacks", "silent acceptances", "hangs", "losses", "several lines"), 0)
    )
    print(f"{machine()}; {len(cases)} cases in {root}", flush=True)
    began = time.monotonic()
    for case in cases:
        found, said = attempt(case, root)
        counts["cases"] += 1
        counts["failing"] += bool(found)
        for fault in found:
            counts[fault.partition(":")[0]] += 1
        if found:
            print(f"\n{case.name}: {'; '.join(found)}\n{said}", flush=True)
    shutil.rmtree(root / f"scene-{os.getpid()}", ignore_errors=True)
    listed = ", ".join(f"{name} {count}" for name, count in counts.items())
    print(f"{listed} ({(time.monotonic() - began) / 60:.1f} min)", flush=True)


if __name__ == "__main__":
    main()
