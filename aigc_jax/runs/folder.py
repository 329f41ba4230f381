"""A run's folder: its config, its data's spec, and whether a command continues the same run."""

import difflib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from aigc_jax import files
from aigc_jax.checks import flatten
from aigc_jax.errors import MissingError, SettingError
from aigc_jax.family import DataSpec, Field

# Settings that may change when a run goes on: they do not touch what is computed from here on.
FREE = (
    "checkpoint",
    "data.data_dir",
    "data.in_memory",
    "data.path",
    "ema.snapshots",
    "evaluation",
    "evaluations",
    "init_from",  # read at step 0 only
    "log",
    "published",
    "sampling",
    "train.max_skipped",
    "train.microbatches",
    "train.remat",
    "train.sharding",
    "train.steps_per_dispatch",
    "train.steps",
)

# Keys of a config without which no command can take a run.
OF_EVERY_RUN = ("family", "data", "train", "sampling")


class RunMismatch(SettingError):
    """A command whose config is not that of the run in its workdir."""


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lines "key: old -> new" for settings that change the result."""
    old, new = flatten(as_dict(old)), flatten(as_dict(new))

    def free(key: str) -> bool:
        parent, _, last = key.rpartition(".")
        schedules = {flat.get(f"{parent}.schedule") for flat in (old, new)}
        if last in ("decay_steps", "decay_start") and schedules == {"constant"}:
            return True  # they follow train.steps in a config, and nothing reads them
        return any(key == name or key.startswith(name + ".") for name in FREE)

    return [
        f"{key}: {old.get(key, '(absent)')} -> {new.get(key, '(absent)')}"
        for key in sorted(old.keys() | new.keys())
        if not free(key) and not _same(old.get(key), new.get(key))
    ]


def _same(old: Any, new: Any) -> bool:
    """Whether two values are equal; NaN, which a config may hold, equals itself."""
    return old == new or (old != old and new != new)


def as_dict(config: Any) -> dict[str, Any]:
    """A ConfigDict (or mapping) as plain JSON values."""
    plain = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return json.loads(json.dumps(plain))


def with_settings(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The config with other values of some settings, {"diffusion.conditional": True}."""
    config = as_dict(config)
    for key, value in values.items():
        *path, last = key.split(".")
        section = config
        for name in path:
            section = section[name]
        section[last] = value
    return config


def read(workdir: pathlib.Path, name: str) -> dict[str, Any]:
    """`config.json` or `spec.json` of a run."""
    path = workdir / name
    if not path.is_file():
        if not any((workdir / other).exists() for other in ("config.json", "spec.json")):
            check_run(workdir)
        raise MissingError(f"{path} is not there, or no file: restore it from a backup")
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise _damaged(path, error) from error
    if not isinstance(found, dict):
        raise _damaged(path, f"{type(found).__name__} instead of keys")
    lost = [key for key in OF_EVERY_RUN if key not in found] if name == "config.json" else []
    if lost and is_run(workdir):
        read_spec(workdir)  # says so of a run of an earlier version
    if lost:
        raise _damaged(path, f"no {', '.join(lost)}")
    return found


def _damaged(path: pathlib.Path, why: object) -> SettingError:
    return SettingError(f"{path} is damaged ({why}): restore it from a backup")


def is_run(folder: pathlib.Path) -> bool:
    """Whether a folder is a run of ours, which every command takes it for by its spec.json."""
    return (folder / "spec.json").is_file()


def check_run(workdir: pathlib.Path) -> None:
    """Raises FileNotFoundError, with the names of runs beside it, where a folder is no run."""
    refuse_best(workdir)
    if is_run(workdir):
        return
    hint = ""
    if own := sorted((workdir / "runs").glob("*/*/spec.json")):  # of an ablation
        raise MissingError(
            f"{workdir} holds an ablation and no run of its own: name one of its {len(own)} runs, "
            f"such as --workdir={own[0].parent}"
        )
    if workdir.parent.is_dir():
        runs = [p.name for p in workdir.parent.iterdir() if is_run(p)]
        near = difflib.get_close_matches(workdir.name, runs, n=3, cutoff=0.3) or runs[:3]
        hint = f" (runs beside it: {', '.join(near)})" if near else ""
    raise MissingError(f"no run in {workdir}{hint}: train first, or name its folder by --workdir")


def run_of(path: str | pathlib.Path) -> tuple[pathlib.Path, bool] | None:
    """(a run, whether its best checkpoint is meant) of a path RUN or RUN/best; None of others."""
    path = files.expanded(path)
    if is_run(path):
        return path, False
    return (path.parent, True) if path.name == "best" and is_run(path.parent) else None


def refuse_best(workdir: pathlib.Path) -> None:
    """Raises ValueError where a workdir is RUN/best, which is no run of its own."""
    run, best = run_of(workdir) or (workdir, False)
    if best:
        raise SettingError(
            f"{workdir} holds the best checkpoint of a run: say --workdir={run} --best"
        )


def write_spec(workdir: pathlib.Path, spec: DataSpec) -> None:
    """Writes `spec.json`: what the run's data are."""

    def plain(fields: Mapping[str, Field]) -> dict[str, Any]:
        found = {name: field._asdict() for name, field in fields.items()}
        for field in found.values():
            if not field["names"]:
                del field["names"]
        return found

    content = {
        "fields": plain(spec.fields),
        "conditions": plain(spec.conditions),
        "sizes": dict(spec.sizes),
    }
    files.write_json(workdir / "spec.json", content)


def read_spec(workdir: pathlib.Path) -> DataSpec:
    """The spec of the data that a run was trained on.

    Raises:
      FileNotFoundError: no run there.
      ValueError: a run of an earlier version, or a damaged file.
    """
    spec = read(workdir, "spec.json")
    if "fields" not in spec:
        raise SettingError(
            f"{workdir} holds a run of an earlier version, whose checkpoints this one cannot read: "
            "train it again in another --workdir, or go back to commit 075cb69 to use it"
        )

    def typed(fields: Mapping[str, Any]) -> dict[str, Field]:
        return {
            name: Field(
                field["kind"],
                tuple(field["shape"]),
                field["classes"],
                tuple(field.get("names", ())),
            )
            for name, field in fields.items()
        }

    try:
        return DataSpec(typed(spec["fields"]), typed(spec["conditions"]), dict(spec["sizes"]))
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise _damaged(workdir / "spec.json", f"{type(error).__name__}: {error}") from error


def identity(workdir: pathlib.Path) -> dict[str, Any]:
    """`identity.json` of a run: {"run": a name of its own, "data": what its data were}; else {}."""
    path = workdir / "identity.json"
    return read(workdir, path.name) if path.is_file() else {}


def write_identity(workdir: pathlib.Path, run: str, data: Mapping[str, Any]) -> None:
    """Writes `identity.json`, by which checkpoints and data are known to belong to a run."""
    files.write_json(workdir / "identity.json", {"run": run, "data": dict(data)})


def changes(workdir: pathlib.Path, config: Mapping[str, Any]) -> list[str]:
    """Lines "key: old -> new" for settings by which `config` would change the run in `workdir`."""
    read_spec(workdir)  # a run of an earlier version says so, instead of listing every key
    return differences(read(workdir, "config.json"), config)


def check_same(workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Raises RunMismatch, listing keys, where `config` would change the run in `workdir`."""
    changed = changes(workdir, config)
    if changed:
        raise mismatch(workdir, "another config", changed)


def mismatch(workdir: pathlib.Path, what: str, changed: Sequence[str]) -> RunMismatch:
    """The error of a command that would change the run in `workdir`, which is one with `what`."""
    return RunMismatch(
        f"{workdir} holds a run with {what}:\n  "
        + "\n  ".join(changed)
        + "\nGive the same to resume it, another --workdir to start anew, or --from-step=N to go "
        "on from the checkpoint of step N with these"
    )


def check_same_spec(workdir: pathlib.Path, spec: DataSpec) -> None:
    """Raises RunMismatch, in words, where data differ from those that a run was trained on."""
    old, wrong = read_spec(workdir), []
    for name in {**spec.fields, **old.fields}:
        here, there = (_described(found.fields.get(name)) for found in (spec, old))
        if here != there:
            wrong.append(f"{name} is {here} here, {there} in the run")
    if spec.classes != old.classes:
        wrong.append(f"{spec.classes} classes here, {old.classes} in the run")
        here, there = (found.class_names for found in (spec, old))
        for word, names, others in (("new", here, there), ("gone", there, here)):
            only = [name for name in names if others and name not in others]
            wrong[-1] += f" ({word}: {', '.join(only)})" * bool(only)
    if wrong:
        raise RunMismatch(
            f"{workdir} holds a run on other data: {'; '.join(wrong)}. Give the data that it began "
            f"with, or start anew in another --workdir, from its weights by --config.init_from"
        )


def _described(field: Field | None) -> str:
    return f"{field.kind} of {'x'.join(map(str, field.shape))}" if field else "absent"
