"""What several commands share: their data, their sampling settings, the family once more."""

import pathlib
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import jax
import numpy as np

from aigc_jax import build, checks
from aigc_jax.data import datasets
from aigc_jax.diffusion.solvers import check_read
from aigc_jax.errors import SettingError
from aigc_jax.evaluation.results import NEUTRAL
from aigc_jax.family import DataSpec, Family, Variables
from aigc_jax.runs import folder as folders
from aigc_jax.runs import weak
from aigc_jax.runs.examples import RealData, training_codes
from aigc_jax.training.recipe import recipe
from aigc_jax.training.step import Recipe

# Flags of `sample` and `evaluate` that replace values of `config.sampling`.
OF_SAMPLING = ("sampler", "steps", "guidance", "autoguidance", "weak")
# Settings that older runs of families that have them do not hold: `build` says which families do.
LATER = {"autoguidance", "weak"}


def data_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The section `data`, checked: arguments of `datasets.load`, and the two splits of a run."""
    beside = {"train_split": str, "test_split": str}
    return checks.arguments("data", datasets.load, config["data"], ("splits",), beside)


def open_data(config: Mapping[str, Any], splits: Iterable[str] = ()) -> RealData:
    """The data set of a config, with its splits for training and testing and those named.

    Says what was found in a folder of images, and where the two splits are not the same one and yet
    share examples.
    """
    data = data_settings(config)
    train, test = data.pop("train_split"), data.pop("test_split")
    dataset = datasets.load(**data, splits=tuple(dict.fromkeys((train, test, *splits))))
    both, said = dataset.shared(train, test), [dataset.about] if dataset.about else []
    if both and train != test:
        said.append(
            f"warning: data.train_split={train} and data.test_split={test} share {both:,} "
            "examples: what is measured on these says nothing of new ones"
        )
    if said and jax.process_index() == 0:
        print(*said, sep="\n", flush=True)
    return RealData(data["name"], dataset, train, test, config["train"]["batch_size"])


def recipe_of(config: Mapping[str, Any], family: Family, spec: DataSpec) -> Recipe:
    """What a config says of a run's steps."""
    sections = {name: config[name] for name in ("optimizer", "ema", "augment")}
    train = {key: config["train"][key] for key in ("batch_size", "microbatches")}
    return recipe(family, spec, **train, **sections)


def rebuilder(config: Mapping[str, Any], spec: DataSpec) -> Callable[[Mapping[str, Any]], Family]:
    """(other values of `config.sampling`) -> the family that samples so."""

    def rebuild(overrides: Mapping[str, Any]) -> Family:
        return build.build({**config, "sampling": {**config["sampling"], **overrides}}, spec)

    return rebuild


def check_given(config: Mapping[str, Any], given: Iterable[str], sampler: str | None) -> None:
    """Raises SettingError where a setting given on the command line would be ignored by samplers.

    Args:
      given: keys of the config.
      sampler: given in place of the config's, or None.
    """
    if "sampler" not in config["sampling"]:  # a family that samples in one way
        return
    changed = [own.get("sampling") for own in config["evaluations"].values() if hasattr(own, "get")]
    of_evaluations = [own["sampler"] for own in changed if own and "sampler" in own]
    names = [key.removeprefix("sampling.") for key in given if key.startswith("sampling.")]
    check_read([sampler or config["sampling"]["sampler"], *of_evaluations], names)


def with_sampling(
    workdir: pathlib.Path, config: Mapping[str, Any] | None, settings: Mapping[str, Any] | None
) -> tuple[dict[str, Any], list[str]]:
    """A run's config, or the one given, with other values of `config.sampling`.

    Args:
      config: None for the run's own.
      settings: {key of `config.sampling`: value}, None for a value that stays.

    Returns:
      The config, whose `sampling.weak` names a checkpoint, and what differs from how the run itself
      samples, as parts of a file's name.

    Raises:
      FileNotFoundError: neither a run nor a config, or no such weak model.
      ValueError: a run of an earlier version, or a setting that the family's sampling lacks.
    """
    recorded = None
    if config is None or folders.is_run(workdir):
        recorded = folders.read(workdir, "config.json")
        folders.read_spec(workdir)  # a run of an earlier version says so before its keys are read
    config = folders.as_dict(recorded if config is None else config)
    given = {key: value for key, value in (settings or {}).items() if value is not None}
    for key in given.keys() - config["sampling"].keys() - LATER:
        known = ", ".join(config["sampling"]) or "no settings"
        raise SettingError(
            f"family {config['family']!r} has no {key!r} of sampling to set: it has {known}"
        )
    if "sampler" in given:
        check_read([given["sampler"]], given)
    sampling = config["sampling"] | given
    if sampling.get("weak"):
        sampling["weak"] = weak.resolved(sampling["weak"])
    own = (recorded or config)["sampling"]
    keys = dict.fromkeys((*given, *sampling))  # in the order in which they were asked for
    differing = [key for key in keys if sampling[key] != own.get(key, NEUTRAL.get(key))]
    said = sampling | ({"weak": weak.word(sampling["weak"])} if sampling.get("weak") else {})
    words = [f"{key}_{said[key]}" for key in differing]
    return config | {"sampling": sampling}, words


class LazyData:
    """The data of a config, opened when they are first asked for: most samples need none."""

    def __init__(self, config: Mapping[str, Any], mesh: Any) -> None:
        self._mesh = mesh
        self.open = cache(lambda: open_data(config))

    def codes(self, family: Family, variables: Variables) -> Mapping[str, np.ndarray]:
        """The codes of training data, as `runs.model.load` takes them to fit a prior."""
        return training_codes(family, variables, self.open(), self._mesh)
