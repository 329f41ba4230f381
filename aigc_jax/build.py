"""From a config to its family: a literal table."""

import importlib
from collections.abc import Mapping
from typing import Any

from aigc_jax import checks
from aigc_jax.errors import SettingError, UnknownKeyError
from aigc_jax.family import DataSpec, Family

# {config.family: (the module whose `build` makes it, imported when it is asked for; the section
# of a config that it reads beside `network` and `sampling`)}
FAMILIES = {
    "diffusion": ("aigc_jax.diffusion.family", "diffusion"),
    "meanflow": ("aigc_jax.diffusion.meanflow", "diffusion"),
    "consistency": ("aigc_jax.diffusion.consistency", "diffusion"),
    "distillation": ("aigc_jax.diffusion.distillation", "diffusion"),
    "vae": ("aigc_jax.vae.plain", "vae"),
    "hierarchical_vae": ("aigc_jax.vae.hierarchical", "vae"),
    "vqvae": ("aigc_jax.vae.vector", "vae"),
    "gan": ("aigc_jax.gan.family", "gan"),
    "cyclegan": ("aigc_jax.gan.cyclegan", "cyclegan"),
}


class Sections(dict):
    """A config whose missing sections are the config's mistake, and said to be."""

    def __missing__(self, key: str) -> Any:
        raise SettingError(
            f"the config lacks the section {key!r}, which its family {self['family']!r} reads: "
            "a run of an older version? Give its config.json the keys of today, or train it again"
        )


def build(config: Mapping[str, Any], spec: DataSpec) -> Family:
    """The family that `config.family` names, for data of `spec`.

    Raises:
      ValueError: an unknown family; keys of the config that are unknown, missing or wrong. A family
        reads its sections through `checks.section` and `checks.arguments`, which name such keys, so
        that any other error is a bug in this package and is not caught.
    """
    checks.one_of("config.family", config["family"], FAMILIES)
    module = importlib.import_module(FAMILIES[config["family"]][0])
    networks = of_networks(config)
    try:
        return module.build(Sections({**config, "network": networks}), spec)
    except UnknownKeyError as error:
        if "remat" in error.keys:
            raise SettingError(
                "config.train.remat=True: a network of this experiment has no blocks whose "
                "activations could be computed again; set it to False"
            ) from error
        raise


def of_networks(config: Mapping[str, Any]) -> dict[str, Any]:
    """The section `network`, each network of which takes what `config.train` says of all.

    Raises:
      ValueError: a network that says it of its own, as runs of earlier versions did.
    """
    train, network = Sections(config)["train"], Sections(config)["network"]
    checks.value("network", network, Mapping)
    given = {"dtype": checks.entry("train", train, "precision", checks.DType)}
    if checks.entry("train", train, "remat", bool):
        given["remat"] = True  # networks without blocks have no such argument

    def handed_on(name: str, own: Mapping[str, Any]) -> dict[str, Any]:
        for key, of_train in (("dtype", "precision"), ("remat", "remat")):
            if key in own:
                raise SettingError(f"config.{name}.{key} is config.train.{of_train}: set it there")
        return {**own, **given}

    players = {key: own for key, own in network.items() if hasattr(own, "items")}
    if not players:
        return handed_on("network", network) if network else {}
    return {**network} | {key: handed_on(f"network.{key}", own) for key, own in players.items()}
