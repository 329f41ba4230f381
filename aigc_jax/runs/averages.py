"""The averages that a run keeps beside its own, and those of any length made of its snapshots.

A name of an average, as --ema and `config.evaluations` give it, is a half-life of `ema.others`, or
posthoc/SIGMA_REL of what --mode=ema has made: a folder of its own with checkpoints, each of all
that a model computes with.
"""

import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from aigc_jax import streams
from aigc_jax.errors import MissingError, SettingError
from aigc_jax.family import Family, Variables
from aigc_jax.runs import folder as folders
from aigc_jax.training import ema, sharding
from aigc_jax.training.checkpoint import CheckpointError, Checkpoints, ForeignError
from aigc_jax.training.step import TrainState

SNAPSHOTS, POSTHOC = "snapshots", "posthoc"  # folders of a run
LEFT = 0.1  # most of a profile, by its root mean square, that the stored ones may leave out


def check_half_life(half_life: float, settings: ema.Settings) -> None:
    """Raises SettingError where a run keeps no average of this half-life."""
    if half_life not in settings.others:
        have = _listed(settings.others) or "none"
        raise SettingError(
            f"no average of half-life {half_life:g} is kept: there are {have} beside the run's own "
            f"of {settings.half_life:g}; ema.others names them before a run begins"
        )


def _listed(numbers: Iterable[float]) -> str:
    return ", ".join(f"{x:g}" for x in numbers)


def parsed(average: str | float, settings: ema.Settings) -> tuple[str, str]:
    """(name of the average within a state, its folder within the run) of a name; "" for neither.

    Raises:
      SettingError: no such name, or a half-life that the run does not average by.
    """
    kind, _, number = str(average).rpartition("/")
    try:
        value = float(number)
    except ValueError:
        value = 0.0
    if kind not in ("", POSTHOC) or not 0 < value < float("inf"):
        raise SettingError(
            f"--ema is a half-life of ema.others, such as 5000, or what --mode=ema has made, such "
            f"as {POSTHOC}/0.07, not {average!r}"
        )
    if kind == POSTHOC:
        return "", str(posthoc_folder(pathlib.Path(), value))
    if value == settings.half_life:
        return "", ""
    check_half_life(value, settings)
    return ema.half_life_name(value), ""


def weights_word(raw: bool, average: str | float) -> list[str]:
    """Which weights, as a part of a file's name; [] for the run's own average."""
    named = [f"ema_{average}".replace("/", "_")] if average else []
    return ["raw"] if raw else named


def posthoc_folder(workdir: pathlib.Path, sigma_rel: float) -> pathlib.Path:
    """Where a run keeps the averages of a relative width that were made of its snapshots."""
    return workdir / POSTHOC / f"{sigma_rel:.12g}"


def alike(settings: ema.Settings, images: float) -> str:
    """In words which averages of a run of so many images are the same, "" where none are."""
    bound = settings.ramp * images or math.inf
    same = [life for life in dict.fromkeys((settings.half_life, *settings.others)) if life >= bound]
    if len(same) < 2:
        return ""
    return (
        f"the averages of half-life {_listed(same)} are the same: until the end of this run "
        f"ema.ramp={settings.ramp:g} bounds them by {bound:.0f} images"
    )


class Snapshots:
    """Stores what averages of other lengths are made of, while a run trains.

    Args:
      workdir: folder of the run; gets snapshots/.
      settings: which averages these are, how often and how many.
      run, from_step: as the run's `Checkpoints` take them.
    """

    def __init__(
        self, workdir: pathlib.Path, settings: ema.Settings, run: str, from_step: int | None
    ) -> None:
        self._settings, self._names = settings, list(ema.tracked(settings))
        # None is removed by Orbax: which ones stay is not a matter of their age.
        self._checkpoints = Checkpoints(workdir / SNAPSHOTS, keep=None, clean=True, run=run)
        if from_step is not None:
            self._checkpoints.set_aside_after(from_step, superseded=True)

    def save(self, state: TrainState, step: int) -> None:
        """Stores those of a state; a run that was killed finds some of its steps done already."""
        steps = self._checkpoints.steps()
        every, most = self._settings.snapshot_every, self._settings.snapshots
        kept = ema.kept([*steps, step], every, most)
        for old in steps:
            if old not in kept:
                self._checkpoints.remove(old)
        if step in kept and step not in steps:
            averages = {name: state.averages[name] for name in self._names}
            self._checkpoints.save(step, {"averages": averages}, {})

    def close(self) -> None:
        """Waits until the newest is written."""
        self._checkpoints.close()


class Reconstruction(NamedTuple):
    """Averages of some relative widths, as they would have been at one step.

    Attributes:
      variables: {relative width: all that a model computes with}, on the devices.
      step: of the checkpoint that everything but the averages is of.
      left: {relative width: share of its profile that could not be made, by root mean square}.
    """

    variables: Mapping[float, Variables]
    step: int
    left: Mapping[float, float]


def reconstruct(
    workdir: pathlib.Path,
    family: Family,
    settings: ema.Settings,
    sigma_rels: Sequence[float],
    *,
    step: int | None = None,
    mode: str = "replicated",
) -> Reconstruction:
    """The averages of other lengths at the step of a checkpoint, of all snapshots until then.

    Args:
      settings: of the run.
      sigma_rels: the relative widths.
      step: of the checkpoint; None for the newest.
      mode: how they lie on the devices; see `sharding.state_sharding`.

    Raises:
      MissingError: the run has no snapshots, or no checkpoint.
      SettingError: a width that the snapshots cannot make; which they can is said.
    """
    names = ema.tracked(settings)
    if not names:
        raise MissingError(
            f"{workdir} stores no snapshots: train with --config.ema.snapshot_every=N, about a "
            "thirtieth of train.steps"
        )
    params, extra = jax.eval_shape(family.init, streams.init(0)[0])
    own = {player: params[player] for player in family.averaged}
    averages = {"averages": dict.fromkeys(names, own)}
    rest = {
        "params": {player: tree for player, tree in params.items() if player not in own},
        "extra": {name: extra[name] for name in family.transferred if name in extra},
    }
    mesh = sharding.make_mesh()
    averages, rest = (sharding.laid_out(tree, mesh, mode) for tree in (averages, rest))
    filled = {name: part for name, part in rest.items() if jax.tree.leaves(part)}
    run = folders.identity(workdir).get("run", "")
    found = _read(workdir / "checkpoints", run, {**averages, **filled}, step)
    if found is None:
        raise MissingError(f"no complete checkpoint in {workdir / 'checkpoints'}: train first")
    newest, *_, end = found
    snapshots = Checkpoints(workdir / SNAPSHOTS, keep=None, run=run)
    try:
        steps = [s for s in snapshots.steps() if s < end]
        if not steps:
            raise MissingError(
                f"no snapshots until step {end} in {workdir / SNAPSHOTS}: the run stores one every "
                f"{settings.snapshot_every} steps (ema.snapshot_every)"
            )

        def read(s: int) -> Any:
            return newest if s == end else snapshots.restore_parts(averages, s)[0]

        made, left = _sums(read, [*steps, end], names, sigma_rels, end)
    finally:
        snapshots.close()
    others, extra = newest.get("params", {}), newest.get("extra", {})
    variables = {s: Variables({**others, **average}, extra) for s, average in made.items()}
    return Reconstruction(variables, end, left)


def _read(folder: pathlib.Path, run: str, target: Any, step: int | None) -> Any:
    """Parts of a checkpoint as by `Checkpoints.restore_parts`; None where there is no folder."""
    checkpoints = Checkpoints(folder, run=run)
    try:
        return checkpoints.restore_parts(target, step)
    finally:
        checkpoints.close()


def _sums(
    read: Callable[[int], Any],
    steps: Sequence[int],
    names: Mapping[str, float],
    sigma_rels: Sequence[float],
    end: int,
) -> tuple[dict[float, Any], dict[float, float]]:
    """({relative width: {player: average}}, {relative width: what is left of its profile}).

    What cannot be read is left out, and the others make up for it.

    Args:
      read: step -> {"averages": {name: {player: tree}}}.
      steps: that are there; end: the newest of them.
      names: {name of a stored average: its relative width}.
    """
    stored = [(width, step) for step in steps for width in names.values()]
    fits = {s: ema.coefficients(stored, s, end) for s in sigma_rels}
    for sigma_rel, (_, left) in fits.items():
        if left > LEFT:
            low, high = reachable(stored, end)
            raise SettingError(
                f"{len(steps)} snapshots of widths {_listed(names.values())} make no average of "
                f"relative width {sigma_rel:g}: ask for {low:g} to {high:g}"
            )
    sums: dict[float, Any] = {}
    for i, step in enumerate(tqdm(steps, desc="snapshots", disable=None, leave=False)):
        try:
            averages = read(step)["averages"]
        except ForeignError:
            raise
        except CheckpointError:  # it says so itself
            return _sums(read, [s for s in steps if s != step], names, sigma_rels, end)
        parts = [averages[name] for name in names]
        for sigma_rel, (weights, _) in fits.items():
            own = weights[i * len(names) : (i + 1) * len(names)].astype(np.float32)
            if sigma_rel in sums:
                sums[sigma_rel] = _weighted([sums[sigma_rel], *parts], np.float32([1.0, *own]))
            else:
                sums[sigma_rel] = _weighted(parts, own)
    return sums, {s: left for s, (_, left) in fits.items()}


@jax.jit
def _weighted(parts: Sequence[Any], weights: jax.Array) -> Any:
    """Trees of the same shape, each times its weight."""

    def of(*leaves: jax.Array) -> jax.Array:
        return sum(w * x for w, x in zip(weights, leaves, strict=True))

    return jax.tree.map(of, *parts)


def reachable(stored: Sequence[tuple[float, float]], end: float) -> tuple[float, float]:
    """The smallest and the largest relative width, in thousandths, that stored averages make."""
    narrowest, widest = (f(width for width, _ in stored) for f in (min, max))
    grid = np.arange(1, round(1000 * ema.WIDEST) + 1) / 1000

    def makes(sigma_rel: float) -> bool:
        return ema.coefficients(stored, float(sigma_rel), end)[1] <= LEFT

    below = [s for s in grid if s < narrowest and makes(s)]
    above = [s for s in grid if s > widest and makes(s)]
    return float(min(below, default=narrowest)), float(max(above, default=widest))


def save(
    workdir: pathlib.Path,
    family: Family,
    sigma_rel: float,
    made: Reconstruction,
    about: Mapping[str, Any],
    keep: int,
) -> pathlib.Path:
    """Writes a reconstructed average as a checkpoint in its own folder; returns that."""
    variables, folder = made.variables[sigma_rel], posthoc_folder(workdir, sigma_rel)
    averaged = {p: tree for p, tree in variables.params.items() if p in family.averaged}
    others = {p: tree for p, tree in variables.params.items() if p not in averaged}
    state = {"params": others, "ema": averaged, "extra": variables.extra}
    state = {name: part for name, part in state.items() if jax.tree.leaves(part)}
    run = folders.identity(workdir).get("run", "")
    checkpoints = Checkpoints(folder, keep=keep, clean=True, run=run)
    try:
        if made.step in checkpoints.steps():  # made again, maybe of fewer snapshots or more
            checkpoints.remove(made.step)
        checkpoints.save(made.step, state, {**about, "left": made.left[sigma_rel]})
    finally:
        checkpoints.close()
    return folder
