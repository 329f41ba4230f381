"""The weaker version of a model that autoguidance leads samples away from: `sampling.weak`.

Karras et al. 2024 (arXiv:2406.02507) take an earlier snapshot of the same training, or a model that
had less of it. Here it has the same network, process and prediction.
"""

import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

from aigc_jax import files
from aigc_jax.checks import flatten
from aigc_jax.errors import MissingError, SettingError
from aigc_jax.family import DataSpec
from aigc_jax.runs import folder as folders
from aigc_jax.runs import weights
from aigc_jax.training.checkpoint import complete_steps

# Settings of a model, beside its network and process, that its weak version shares.
OF_MODEL = ("family", "diffusion.conditional", "diffusion.variance", "diffusion.ends")


def located(source: str) -> tuple[pathlib.Path, int | None, bool]:
    """(run, step or None for its newest, whether its best checkpoint is meant) of `sampling.weak`.

    Args:
      source: RUN, RUN@STEP or RUN/best.

    Raises:
      MissingError: no run there.
    """
    path, step = files.expanded(source), None
    parent, at, last = source.rpartition("@")
    if at and last.isdigit() and not folders.is_run(path):
        path, step = files.expanded(parent), int(last)
    if step is None and (found := folders.run_of(path)):
        return found[0], None, found[1]
    if not folders.is_run(path):
        raise MissingError(
            f"sampling.weak={source}: no run in {path}; give a run's folder, or RUN@STEP for an "
            "earlier checkpoint"
        )
    return path, step, False


def resolved(source: str) -> str:
    """`sampling.weak` with the step of its checkpoint, RUN@STEP, as results state it.

    Raises:
      MissingError: no run there, or one without such a checkpoint.
    """
    run, step, best = located(source)
    steps = [complete_steps(run / name) for name in ("checkpoints", "best")]
    there = steps[1] if best else sorted({*steps[0], *steps[1]})
    newest = (steps[1] if best else steps[0])[-1:]
    if step is None and newest:
        return f"{run}@{newest[0]}"
    if step not in there:
        have = ", ".join(map(str, there)) or "none"
        raise MissingError(f"sampling.weak={source}: no such checkpoint (there are: {have})")
    return f"{run}@{step}"


def word(source: str) -> str:
    """What tells a weak model, as `resolved` gives it, from others in a file's name."""
    run, _, step = source.rpartition("@")
    place = hashlib.sha256(str(pathlib.Path(run).resolve()).encode()).hexdigest()[:8]
    return f"{pathlib.Path(run).name}@{step}_{place}"


def check(
    source: str, own: Mapping[str, Any], diffusion: Mapping[str, Any], spec: DataSpec
) -> None:
    """Raises SettingError, naming what differs, where a run is no version of the same model.

    Args:
      source: `sampling.weak`.
      own: {setting: value} of the model's config, whose section `diffusion` is given too.
      spec: of its data.
    """
    run, *_ = located(source)
    theirs, there = flatten(folders.read(run, "config.json")), folders.read_spec(run)
    pairs = {key: (own[key], theirs[key]) for key in own if _shared(key) and key in theirs}
    pairs["shape of an example"] = tuple(spec.shape), tuple(there.shape)
    if own.get("diffusion.conditional"):
        pairs["classes"] = spec.classes, there.classes
    differing = [f"{key}: {a} here, {b} there" for key, (a, b) in pairs.items() if a != b]
    differing += weights.process_differences(run, diffusion)
    if differing:
        raise SettingError(
            f"sampling.weak={source} is no weaker version of this model: {'; '.join(differing)}"
        )


def _shared(key: str) -> bool:
    """Whether a setting has to be the same in both models."""
    of_network = key.startswith("network.") and key.split(".")[-1] not in weights.OF_TRAINING
    return of_network or key in OF_MODEL
