"""What every config holds, and all that is checked before a run compiles or writes anything."""

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from aigc_jax import build
from aigc_jax.checks import OR_EMPTY, Count, DType, Finite, OneOf, Range, Whole, one_of, value
from aigc_jax.commands import common
from aigc_jax.errors import SettingError
from aigc_jax.family import DataSpec, Family
from aigc_jax.runs import observer
from aigc_jax.runs.evaluations import (
    check_averages,
    check_density,
    check_draws,
    check_sampling,
    plan,
    scheduled,
    scheduled_names,
)
from aigc_jax.training import sharding
from aigc_jax.training.ema import settings_of

Seed = Annotated[int, Range(0, 2**63, below=True)]
Row = tuple[str, Finite, str]  # a published metric, its value, its source


class Train(NamedTuple):
    """The section `train`."""

    batch_size: Count
    steps: Count
    precision: DType
    remat: bool
    microbatches: Count
    sharding: Annotated[str, OneOf(sharding.MODES)]
    max_skipped: Whole
    steps_per_dispatch: Whole


class Log(NamedTuple):
    """The section `log`: in steps, 0 for never; and samples in a picture."""

    every: Whole
    eval_every: Whole
    sample_every: Whole
    first_sample: Whole
    samples: Whole


class Checkpoint(NamedTuple):
    """The section `checkpoint`: a run keeps at least its last one."""

    every: Whole
    keep: Count
    best: str
    best_mode: Annotated[str, OneOf(observer.BETTER)]


# What a config says of a run itself. Other sections become arguments: of `datasets.load` (data), of
# `training.recipe` (optimizer, ema, augment), of evaluations, and of a family's own `build`.
OF_A_RUN = {
    "family": Annotated[str, OneOf(build.FAMILIES)],
    "seed": Seed,
    "init_from": str,
    "published": Annotated[tuple[Row, ...], OR_EMPTY],
    "train": Train,
    "log": Log,
    "checkpoint": Checkpoint,
}
# And these, which are checked where they become arguments.
OF_ALL = ("data", "augment", "optimizer", "ema", "evaluation", "evaluations", "network", "sampling")


def check(config: Mapping[str, Any]) -> None:
    """Finds what is wrong with a config by itself, before its data are opened.

    Raises:
      ValueError: a key that is unknown or missing, or a value out of its range.
    """
    family = config.get("family", "")
    sections = build.Sections({"family": family, **config})
    for name, kind in OF_A_RUN.items():
        value(name, sections[name], kind)
    known = (*OF_A_RUN, *OF_ALL, build.FAMILIES[family][1])
    for name in config:
        one_of(f"a section of a config of family {family!r}", name, known)
    common.data_settings(sections)
    plan(sections["evaluations"], sections["evaluation"])


def check_lengths(config: Mapping[str, Any]) -> None:
    """Raises ValueError where a schedule in use is longer than the run, and never comes to its end.

    For a part of a schedule give the whole run's steps and stop it by a signal: it can go on.
    """
    optimizer = config["optimizer"]
    players = {"optimizer": optimizer} | {
        f"optimizer.{player}": own for player, own in optimizer.items() if hasattr(own, "items")
    }
    lengths = {}  # {key: steps} of the schedules that are in use
    for name, own in players.items():
        lengths[f"{name}.warmup"] = own.get("warmup", 0)
        if own.get("schedule", "constant") != "constant":
            lengths[f"{name}.decay_steps"] = own.get("decay_steps", 0)
    if config["family"] == "distillation":  # whose last stage must end within the run
        own = config["diffusion"]
        stages = (own["teacher_steps"] // own["student_steps"]).bit_length() - 1
        lengths[f"diffusion.stage_steps times its {stages} stages"] = stages * own["stage_steps"]
    if "gan" in config:
        lengths["gan.decay_steps"] = config["gan"]["decay_steps"]
    if "vae" in config:
        kl, adversary = config["vae"].get("kl"), config["vae"].get("adversary")
        if kl and kl["weight"] != "constant":
            lengths["vae.kl.steps"] = kl["steps"]
        if adversary and adversary["weight"]:
            lengths["vae.adversary.start"] = adversary["start"]
    steps = config["train"]["steps"]
    for name, length in lengths.items():
        if length > steps:
            raise SettingError(
                f"config.{name} is at most config.train.steps ({steps}), not {length}: what takes "
                "longer than the run never comes to its end"
            )


def validate(config: Mapping[str, Any], spec: DataSpec) -> Family:
    """The family of a config, once nothing can be wrong with the config for data of `spec`.

    Raises:
      ValueError: a setting that cannot be, or that the data or other settings rule out.
    """
    check(config)
    planned = plan(config["evaluations"], config["evaluation"])
    family = build.build(config, spec)
    if config["sampling"].get("weak"):
        raise SettingError(
            "config.sampling.weak guides samples of a trained model, and a run in training has no "
            "weaker one: give it and autoguidance to --mode=sample or evaluate"
        )
    common.recipe_of(config, family, spec)
    check_lengths(config)
    check_averages(planned, settings_of(config["ema"]))
    check_draws(family, [e.name for e in planned if e.draws])
    check_density(family, planned)
    check_sampling(planned, config["sampling"], common.rebuilder(config, spec))
    on_schedule, test_split = scheduled(planned, config["evaluation"]), config["data"]["test_split"]
    names = scheduled_names(on_schedule, family, spec, test_split)
    observer.check_settings(config["log"], config["checkpoint"], test_split=test_split, names=names)
    return family
