"""What a run's folder says of its starts, and where a run that goes back puts what it had made."""

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from aigc_jax import files
from aigc_jax.runs.averages import POSTHOC

# Folders of what belongs to a checkpoint, whose step stands in each name.
OF_STEPS = ("samples", "reconstructions", "evaluations", "generated")
STEP = re.compile(r"(?:^|step|scheduled-)(\d{8})")


class Session(NamedTuple):
    """One start of a training.

    Attributes:
      run: the identity of the run.
      from_step: of the checkpoint that it goes back to; None where it goes on from the newest.
      changes: settings and data that are others than before, in words.
      origin: what the run's report shall say of its command: {"config", "command", "base"}.
    """

    run: str
    from_step: int | None
    changes: list[str]
    origin: Mapping[str, Any]


def sessions(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The starts that `origin.json` lists; [] where there is none, or a damaged one."""
    try:
        return list(json.loads((workdir / "origin.json").read_text())["sessions"])
    except (OSError, ValueError, LookupError, TypeError):  # a report's loss
        return []


def went_back_to(workdir: pathlib.Path) -> int | None:
    """The step of the checkpoint that a run went back to last; None where it never did."""
    steps = [session["from_step"] for session in sessions(workdir) if "from_step" in session]
    return steps[-1] if steps else None


def add_session(
    workdir: pathlib.Path,
    session: Session,
    parameters: int,
    step: int,
    environment: Mapping[str, Any],
) -> None:
    """Notes in `origin.json` what command starts or resumes a run at `step`, and where.

    Args:
      parameters: how many there are.
      environment: as `environment.describe` gives it.
    """
    this = {"step": step, **environment}
    if session.from_step is not None:
        this |= {"from_step": session.from_step, "changes": session.changes}
    content = {"parameters": parameters, "sessions": [*sessions(workdir), this]}
    files.write_json(workdir / "origin.json", {**session.origin, **content})


def supersede(workdir: pathlib.Path, step: int) -> None:
    """Moves what a run made beyond a step that it goes back to into a folder of its own.

    That is `superseded-N/` with pictures, evaluations, samples and a copy of the metrics; the next
    ones get the names that these had. Checkpoints set themselves aside.
    """
    number = len(list(workdir.glob("superseded-*")))
    aside = workdir / f"superseded-{number}"
    metrics = workdir / "metrics.jsonl"
    if metrics.is_file():
        files.write_text(aside / metrics.name, metrics.read_text())
    made = [path.relative_to(workdir) for path in sorted((workdir / POSTHOC).glob("*"))]
    for folder in (*OF_STEPS, *made):
        for path in sorted((workdir / folder).glob("*")):
            found = STEP.search(path.name)
            if found and int(found[1]) > step:
                files.move(path, aside / folder / path.name)
    print(f"{workdir}: what was made beyond step {step} now lies in {aside}", flush=True)


def supersede_samples(workdir: pathlib.Path) -> None:
    """Moves `generated/` aside: with another config.sampling its names would say the same again."""
    if (workdir / "generated").is_dir():
        number = len(list(workdir.glob("superseded-*")))
        aside = workdir / f"superseded-{number}" / "generated"
        files.move(workdir / "generated", aside)
        print(f"{workdir}: samples by another config.sampling now lie in {aside}", flush=True)
