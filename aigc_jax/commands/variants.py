"""The runs of an ablation: what its config names, each with a config and a folder of its own."""

import copy
import difflib
import functools
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from ml_collections import ConfigDict

from aigc_jax import checks, files
from aigc_jax.checks import OR_EMPTY, flatten
from aigc_jax.commands import validation
from aigc_jax.errors import SettingError
from aigc_jax.report import ablation as report
from aigc_jax.runs import folder as folders
from aigc_jax.training.checkpoint import complete_steps

BASE = "base"
NAME = re.compile(r"\w[\w.+=-]*")  # of a variant, and of its folder
Settings = Sequence[tuple[str, Any]]  # ("part.key", value)

# What the config of an ablation holds; see `configs.bases.ablation`.
OF_AN_ABLATION = {
    "family": str,
    "base": Mapping,
    "seeds": tuple[validation.Seed, ...],
    "metrics": Annotated[tuple[str, ...], OR_EMPTY],
    "most_runs": checks.Count,
}


class Cell(NamedTuple):
    """One run of an ablation.

    Attributes:
      variant, seed: which it is.
      config: of an ordinary run.
      folder: where it lies, an ordinary run's too.
    """

    variant: str
    seed: int
    config: ConfigDict
    folder: pathlib.Path

    @property
    def name(self) -> str:
        """Such as "cosine/seed_3"."""
        return f"{self.variant}/{self.folder.name}"

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.config.train.steps

    def done(self) -> int:
        """Steps that are trained and saved."""
        return max(complete_steps(self.folder / "checkpoints"), default=0)

    def finished(self) -> bool:
        """Whether it is trained, and evaluated where it shall be."""
        evaluated = not self.config.evaluation.at_end or report.evaluated(self.folder, self.steps)
        return self.done() >= self.steps and evaluated

    def state(self) -> str:
        """How far it is, in words."""
        done = self.done()
        if self.finished():
            return "finished"
        if done >= self.steps:
            return "trained, to be evaluated"
        return f"at step {done:,} of {self.steps:,}" if done else f"{self.steps:,} steps"


def cells(config: Mapping[str, Any], workdir: pathlib.Path) -> list[Cell]:
    """All runs of an ablation, the base's first; each config is checked as far as one can be alone.

    Raises:
      ValueError: no config of an ablation; a variant with an unknown key or one that cannot be, two
        that are the same; too many runs.
    """
    if "variants" not in config or "base" not in config:
        raise SettingError(
            "--mode=ablate takes the config of an ablation, such as configs/ablations/NAME.py; "
            "docs/ablations.md says how to write one"
        )
    for name in config:
        checks.one_of("a key of an ablation's config", name, (*OF_AN_ABLATION, "variants"))
    for name, kind in OF_AN_ABLATION.items():
        checks.value(name, config.get(name), kind)
    seeds, base = tuple(config["seeds"]), ConfigDict(config["base"])
    if len(set(seeds)) < len(seeds):
        raise SettingError(f"config.seeds names one twice: {checks.shown(seeds)}")
    found = {name: varied(base, name, own) for name, own in config["variants"]}
    plain = {name: folders.as_dict(one) for name, one in found.items()}
    of_base = folders.as_dict(base)
    if of_base not in plain.values():
        found, plain = {BASE: base, **found}, {BASE: of_base, **plain}
    names = sorted(found, key=lambda name: plain[name] != of_base)  # the base's first
    for i, name in enumerate(names):
        same = [other for other in names[:i] if plain[other] == plain[name]]
        if same:
            raise SettingError(
                f"variants {same[0]!r} and {name!r} are the same config: take one of them out"
            )
    count = len(names) * len(seeds)
    if count > config["most_runs"]:
        raise SettingError(
            f"{len(names)} variants of {len(seeds)} seeds are {count} runs, and config.most_runs "
            f"is {config['most_runs']}: name fewer, or set it to {count}"
        )
    for name in names:
        try:
            validation.check(found[name])
        except ValueError as error:
            raise SettingError(f"variant {name!r}: {error}") from error
    runs = files.expanded(workdir) / "runs"
    return [
        Cell(name, seed, seeded(found[name], seed), runs / name / f"seed_{seed}")
        for name in names
        for seed in seeds
    ]


def varied(base: ConfigDict, name: str, settings: Settings) -> ConfigDict:
    """The base with a variant's settings: ("part.key", value), a mapping for a whole part.

    Raises:
      ValueError: a name that no folder could have, a key that the base lacks, a value of another
        kind.
    """
    if not NAME.fullmatch(name):
        raise SettingError(
            f"the variant {name!r} names a folder: take letters, digits and _ . + = - for it"
        )
    config = copy.deepcopy(base)  # with what follows from other settings, as decay_steps does
    known = {*flatten(folders.as_dict(base)), *sections(folders.as_dict(base))}
    with config.unlocked():
        for key, value in settings:
            if key == "seed":
                raise SettingError(f"variant {name!r} sets seed: config.seeds says which there are")
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise SettingError(f"variant {name!r} sets {key!r}, which the base lacks{hint}")
            *path, last = key.split(".")
            part = functools.reduce(getattr, path, config)
            try:
                part[last] = ConfigDict(value) if hasattr(value, "items") else value
            except (TypeError, ValueError) as error:
                raise SettingError(f"variant {name!r}, {key}: {error}") from error
    return config


def sections(config: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Names of the parts of a config: "network", "network.generator"."""
    found = []
    for key, value in config.items():
        if isinstance(value, Mapping):
            found += [prefix + key, *sections(value, f"{prefix}{key}.")]
    return found


def seeded(config: ConfigDict, seed: int) -> ConfigDict:
    """The config with another seed, locked."""
    config = copy.deepcopy(config)
    with config.unlocked():
        config.seed = seed
    return config.lock()


def picked(all_cells: Sequence[Cell], only: Iterable[str] | None, shard: str | None) -> list[Cell]:
    """Those that are asked for.

    Args:
      only: variants, or single runs as VARIANT/seed_N; None for all.
      shard: "i/n", see `ablate.run`; None for all.

    Raises:
      ValueError: no such variant, run or shard.
    """
    chosen = list(all_cells)
    if only:
        for name in only:
            known = [cell.name if "/" in name else cell.variant for cell in chosen]
            checks.one_of("--only", name, dict.fromkeys(known))
        chosen = [cell for cell in chosen if cell.variant in only or cell.name in only]
    if shard is None:
        return chosen
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not match or not int(match[1]) < int(match[2]):
        raise SettingError(
            f"--shard={shard} is i/n with i from 0 to n - 1, such as 0/4 on the first of 4 machines"
        )
    return chosen[int(match[1]) :: int(match[2])]
