"""Weights from elsewhere and for elsewhere: whether they fit, and folders of diffusers."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from aigc_jax.family import DataSpec
from aigc_jax.formats import diffusers, schedulers
from aigc_jax.runs import folder as folders
from aigc_jax.training import sharding


def from_diffusers(source: str | pathlib.Path, network: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters in a folder of diffusers, as {"net": tree of host arrays}.

    Args:
      network: settings of the UNet that is to hold them, as in `config.network`.

    Raises:
      FileNotFoundError: no such folder lies there.
      ValueError: it holds another network; the settings that differ are named.
    """
    found = diffusers.read(source)
    ours = _effective(network, found.image_size)
    differing = [
        f"network.{key}: {ours[key]} here, {value} there"
        for key, value in _effective(found.network, found.image_size).items()
        if key in ours and ours[key] != value and key != "dropout"
    ]
    if differing:
        raise ValueError(f"{source} holds another network: " + "; ".join(differing))
    return {"net": found.params}


def diffusers_shape(source: str | pathlib.Path) -> tuple[tuple[int, int, int], int]:
    """(shape of an image, number of classes or 0) of the network in a folder of diffusers.

    Raises:
      FileNotFoundError: no such folder lies there.
      ValueError: a network that ours is not.
    """
    network, size, channels = diffusers.read_network(source)
    return (size, size, channels), network["num_classes"]


def to_diffusers(
    output: str | pathlib.Path,
    params: Mapping[str, Any],
    spec: DataSpec,
    *,
    network: Mapping[str, Any],
    diffusion: Mapping[str, Any],
    sampling: Mapping[str, Any],
) -> None:
    """Writes a diffusion model as a folder that diffusers' DDPMPipeline and DDIMPipeline load.

    Called on every process; the first one writes.

    Args:
      output: the folder.
      params: {"net": tree}, of a UNet.
      spec: of the data that it was trained on.
      network, diffusion, sampling: these sections of its config.

    Raises:
      ValueError: data that are no square images, or a network that diffusers does not have.
    """
    if spec.kind != "image":
        raise ValueError(f"diffusers' pipelines draw images, not {spec.kind}")
    height, width, channels = spec.shape
    if height != width:
        raise ValueError(f"diffusers' pipelines draw square images, not {height}x{width}")
    arguments = {key: value for key, value in network.items() if key not in ("name", "dtype")}
    arguments["out_channels"] = channels
    arguments["num_classes"] = spec.classes if diffusion["conditional"] else 0
    process = ("timesteps", "schedule", "prediction", "beta_min", "beta_max")
    scheduler = schedulers.config_of(
        **{key: diffusion[key] for key in process},
        **{key: sampling[key] for key in ("variance", "clip", "spacing")},
    )
    whole = jax.tree.map(np.asarray, sharding.fetch(params["net"]))
    if jax.process_index() == 0:
        diffusers.write(
            output,
            whole,
            network=arguments,
            image_size=height,
            in_channels=channels,
            scheduler=scheduler,
        )


def check_process(source: str | pathlib.Path, diffusion: Mapping[str, Any]) -> None:
    """Raises ValueError where weights were trained for another diffusion: samples would be noise.

    A diffusers folder without a scheduler says nothing about it.

    Args:
      source: a run, or a folder of diffusers.
      diffusion: that section of our config.
    """
    source = pathlib.Path(source)
    if folders.is_run(source):
        theirs = folders.read(source, "config.json").get("diffusion", {})
    else:
        theirs = schedulers.process_of(diffusers.read_scheduler(source))
    keys = ["timesteps", "schedule", "prediction"]
    if diffusion["schedule"] != "cosine":  # which has no ends to choose
        keys += ["beta_min", "beta_max"]
    differing = [
        f"diffusion.{key}: {diffusion[key]} here, {theirs[key]} there"
        for key in keys
        if key in theirs and diffusion[key] != theirs[key]
    ]
    if differing:
        raise ValueError(f"{source} holds weights of another diffusion: {'; '.join(differing)}")


def check_fit(
    source: str | pathlib.Path, found: Mapping[str, Any], expected: Mapping[str, Any]
) -> None:
    """Raises ValueError where weights lack, exceed or mis-shape those that a model has.

    Args:
      source: where they come from, for the message.
      found: {player: tree of arrays}, or {name: tree} of statistics.
      expected: the same of the model, abstract or not; what `found` leaves out is not missed.
    """
    for player, tree in found.items():
        if player not in expected:
            raise ValueError(f"{source} has a player {player!r}; here are {', '.join(expected)}")
        theirs, ours = _shapes(tree), _shapes(expected[player])
        wrong = [
            f"{name} is {theirs.get(name, 'absent')} there, {ours.get(name, 'absent')} here"
            for name in sorted(theirs.keys() | ours.keys())
            if theirs.get(name) != ours.get(name)
        ]
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise ValueError(
                f"the weights in {source} do not fit config.network: {'; '.join(wrong[:3])}{more}"
            )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): tuple(leaf.shape) for path, leaf in leaves}


def _effective(network: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    """A UNet's arguments such that equal networks have equal ones."""
    heights = [image_size >> i for i in range(len(network["multipliers"]))]
    return {
        **network,
        "multipliers": list(network["multipliers"]),
        "attention": [height for height in heights if height in network["attention"]],
        "groups": min(network["groups"], network["width"]),
    }
