"""Lists the experiments with their data, size, cost and scores; or how two configs differ."""

import argparse
import fnmatch
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from aigc_jax import api, build, files, streams
from aigc_jax.checks import flatten
from aigc_jax.commands import common
from aigc_jax.data.describe import describe
from aigc_jax.errors import SettingError
from aigc_jax.planning import programs
from aigc_jax.report.words import number
from aigc_jax.runs import folder as folders
from aigc_jax.training import sharding

FLAGS: tuple[str, ...] = ("diff", "only")
FOLDER = (64, 64, 3)  # what a folder's images are taken to be, where a config does not say
ABSENT = "(absent)"


def main(flags: argparse.Namespace) -> None:
    """Runs the command as its flags say."""
    run(diff=flags.diff, only=flags.only)


def run(*, diff: Sequence[str] | None = None, only: Sequence[str] | None = None) -> None:
    """Prints the list, or how two configs differ.

    Args:
      diff: two configs, each an experiment by name with variants, a file, or a run's folder.
      only: patterns of names, such as ddpm_*.

    Raises:
      ValueError: not two of them, no such experiment, a pattern that fits none.
    """
    if diff:
        if len(diff) != 2:
            raise SettingError("--diff takes two, such as --diff=ddpm_cifar,ddpm_cifar:cosine")
        print("\n".join(difference(*map(config_of, diff))))
        return
    chosen = [name for name in names() if matches(name, only)]
    if not chosen:
        raise SettingError(f"--only={','.join(only)} fits none of {', '.join(names())}")
    width = max(map(len, chosen))
    print(line(Experiment._fields, width), flush=True)
    for name in chosen:  # each as soon as it is known
        print(line(described(name), width), flush=True)


class Experiment(NamedTuple):
    """One line of the list, in words.

    Attributes:
      parameters: of all players together.
      gflops: of matrix products and convolutions of a training step, an image.
      published, ours: the first score that it is known by, and the one that we measured.
    """

    name: str
    family: str
    data: str
    parameters: str
    gflops: str
    published: str
    ours: str


def names() -> list[str]:
    """Of all experiments in configs/."""
    return sorted(path.stem for path in api.CONFIGS.glob("[!_]*.py"))


def matches(name: str, patterns: Sequence[str] | None) -> bool:
    """Whether a name fits one of some patterns such as ddpm_*; all fit none."""
    return not patterns or any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def line(cells: Sequence[str], width: int) -> str:
    """A line of the list; the first column is so wide, the last as it comes."""
    widths = (width, 16, 24, 10, 7, 24)
    padded = [cell.ljust(w) for cell, w in zip(cells, widths, strict=False)]
    return "  ".join([*padded, cells[-1]]).rstrip()


def described(name: str) -> Experiment:
    """An experiment by its config alone: nothing is downloaded, compiled or read but that."""
    config = folders.as_dict(api.config(name))
    data = config["data"]
    shape = (data["image_size"],) * 2 + (3,) if data["image_size"] else FOLDER
    taken = ("train_split", "data_dir", "channels", "image_size", "crop")
    spec = describe(
        data["name"],
        **{key: data[key] for key in taken},
        shape=shape if data["name"] == "folder" else None,
        classes=0 if data["name"] == "folder" else None,
    )
    family = build.build(config, spec)
    params, _ = jax.eval_shape(family.init, streams.init(0)[0])
    parameters = sum(x.size for x in jax.tree.leaves(params))
    recipe = common.recipe_of(config, family, spec)
    mesh, size = sharding.make_mesh(jax.devices()[:1]), config["train"]["batch_size"]
    parts = programs.training(recipe, spec, mesh, batch_size=size, mode="replicated")
    flops = sum(part.often * part.flops() for part in parts) / size
    published = [f"{metric} {number(value)}" for metric, value, _ in config["published"]]
    return Experiment(
        name,
        config["family"],
        f"{data['name']} {'x'.join(map(str, spec.shape))}",
        f"{parameters / 1e6:.3g} M" if parameters >= 1e5 else f"{parameters:,}",
        f"{flops / 1e9:.3g}",
        next(iter(published), "–"),
        ours().get(name, "–"),
    )


def ours() -> dict[str, str]:
    """{experiment: what we measured}, the last column of the README's table."""
    found = {}
    for row in (api.CONFIGS.parent / "README.md").read_text().splitlines():
        cells = [cell.strip() for cell in row.split("|")]
        if match := re.fullmatch(r"`(\w+)`", cells[1] if len(cells) == 7 else ""):
            found[match[1]] = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", cells[5])
    return found


def config_of(name: str) -> Mapping[str, Any]:
    """The config of a run in a folder, of an experiment by name, or in a file."""
    folder = files.expanded(name)
    if folders.is_run(folder):
        return folders.read(folder, "config.json")
    if folder.is_dir():
        raise SettingError(f"{folder} holds no run: name a run's folder, an experiment or a file")
    try:
        return folders.as_dict(api.config(name))
    except LookupError as error:  # an unknown variant
        raise SettingError(f"{name}: {error.args[0]}") from error


def difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Lines "key: of a -> of b", keys in order; and a word where there is none."""
    flat = flatten(a), flatten(b)
    keys = sorted(flat[0].keys() | flat[1].keys())
    pairs = [(key, *(one.get(key, ABSENT) for one in flat)) for key in keys]
    return [f"{key}: {x} -> {y}" for key, x, y in pairs if x != y] or ["the same"]
