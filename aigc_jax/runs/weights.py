"""Weights from elsewhere and for elsewhere: whether they fit, and folders of diffusers."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from aigc_jax.checks import flatten
from aigc_jax.errors import SettingError
from aigc_jax.family import DataSpec
from aigc_jax.formats import diffusers, schedulers, unet2d
from aigc_jax.networks.unet import UNet
from aigc_jax.runs import folder as folders
from aigc_jax.training import sharding

# Settings of a network that training may choose, whatever weights it starts from.
OF_TRAINING = ("dropout",)
# Settings of diffusion without which weights say nothing.
OF_PROCESS = ("process", "prediction", "sigma_data")


def from_diffusers(source: str | pathlib.Path) -> dict[str, Any]:
    """The parameters in a folder of diffusers, as {"net": tree of host arrays}.

    Raises:
      FileNotFoundError: no such folder lies there.
      ValueError: a network that ours is not.
    """
    return {"net": diffusers.read(source).params}


def diffusers_network(
    source: str | pathlib.Path, network: Mapping[str, Any], shape: tuple[int, ...] | None
) -> tuple[dict[str, Any], list[str]]:
    """The settings of a UNet with which it takes the weights in a folder of diffusers.

    Args:
      network: `config.network`; what training may choose is taken from there.
      shape: of the images, since attention is named by heights of maps; None for those that the
        folder's network was trained on.

    Returns:
      (settings as in `config.network`, where they differ from it in words).

    Raises:
      FileNotFoundError: no such folder lies there.
      ValueError: a network that ours is not.
    """
    found, size, _ = diffusers.read_network(source)
    height = shape[0] if shape else size
    levels = range(len(found["multipliers"]))
    attention = tuple(height >> i for i in levels if size >> i in found["attention"])
    of_data = ("out_channels", "num_classes")
    taken = {key: value for key, value in found.items() if key not in of_data}
    taken |= {key: network[key] for key in ("name", *OF_TRAINING)} | {"attention": attention}
    ours, theirs = (_effective(settings, height) for settings in (network, taken))
    differing = [
        f"network.{key}: {ours[key]} here, {value} there"
        for key, value in theirs.items()
        if ours[key] != value
    ]
    return taken, differing


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
        raise SettingError(f"diffusers' pipelines draw images, not {spec.kind}")
    height, width, channels = spec.shape
    if height != width:
        raise SettingError(f"diffusers' pipelines draw square images, not {height}x{width}")
    arguments = {key: value for key, value in network.items() if key != "name"}
    arguments["out_channels"] = channels
    arguments["num_classes"] = spec.classes if diffusion["conditional"] else 0
    scheduler = schedulers.config_of(
        **{key: diffusion[key] for key in ("process", "prediction")},
        **{key: sampling[key] for key in ("variance", "clip")},
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

    Args as of `process_differences`.
    """
    if differing := process_differences(source, diffusion):
        raise SettingError(f"{source} holds weights of another diffusion: {'; '.join(differing)}")


def process_differences(source: str | pathlib.Path, diffusion: Mapping[str, Any]) -> list[str]:
    """How the diffusion that weights were trained for differs from ours, in words.

    A diffusers folder without a scheduler says nothing about it.

    Args:
      source: a run, or a folder of diffusers.
      diffusion: that section of our config.
    """
    if run := folders.run_of(source):
        theirs = folders.read(run[0], "config.json").get("diffusion", {})
    else:
        theirs = schedulers.process_of(diffusers.read_scheduler(source))
    ours, theirs = (
        flatten({key: section[key] for key in OF_PROCESS if key in section})
        for section in (diffusion, theirs)
    )
    if ours.get("prediction") != "edm":
        ours.pop("sigma_data", None)  # which nothing else reads
    if ours.get("process.schedule") == "cosine":  # which has no ends to choose
        ours = {key: ours[key] for key in ours if not key.startswith("process.beta")}
    return [
        f"diffusion.{key}: {ours[key]} here, {theirs[key]} there"
        for key in ours
        if key in theirs and ours[key] != theirs[key]
    ]


def check_same_data(
    source: pathlib.Path,
    own: Mapping[str, Any],
    settings: Mapping[str, Any],
    shape: tuple[int, ...],
    there: tuple[int, ...],
) -> None:
    """Raises SettingError where a teacher learned other data: its answers would be of those.

    Args:
      own, settings: {setting: value} of the config and of the teacher's, which says less where it
        is a folder of diffusers.
      shape, there: of an example, here and there.
    """
    keys = ("data.name", "data.path", "data.image_size", "data.channels", "data.crop")
    pairs = {key: (own[key], settings.get(key, own[key])) for key in keys}
    pairs["shape of an example"] = tuple(shape), tuple(there)
    wrong = [f"{key}: {a} here, {b} there" for key, (a, b) in pairs.items() if a != b]
    if wrong:
        raise SettingError(f"{source} holds a teacher of other data: {'; '.join(wrong)}")


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
            raise SettingError(f"{source} has a player {player!r}; here are {', '.join(expected)}")
        theirs, ours = _shapes(tree), _shapes(expected[player])
        wrong = [
            f"{name} is {theirs.get(name, 'absent')} there, {ours.get(name, 'absent')} here"
            for name in sorted(theirs.keys() | ours.keys())
            if theirs.get(name) != ours.get(name)
        ]
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise SettingError(
                f"the weights in {source} do not fit config.network: {'; '.join(wrong[:3])}{more}"
            )


def relabelled(found: Any, new: Any, there: int, here: int) -> tuple[Any, str]:
    """A new model with the weights of one with other labels, and what became of them in words.

    Arrays of one name and shape are taken over. The others depend on labels and stay new: tables of
    classes, gains of each class, heads that tell classes apart. A layer that takes labels beside
    other inputs, one-hot and behind them, keeps what it has learned of the others.

    Args:
      found: tree of arrays, which must differ from `new` by its labels alone.
      new: tree of the new model.
      there, here: how many classes each of them knows; 0 for none.
    """
    theirs, partly, anew = _by_name(found), [], []

    def taken(path: Any, own: Any) -> Any:
        name = _name(path)
        their = theirs.pop(name, None)
        if their is not None and their.shape == own.shape:
            return their
        inputs = _shared_inputs(their, own, there, here) if path[-1].key == "kernel" else 0
        if not inputs:
            anew.append(name)
            return own
        partly.append(name)
        their, own = np.asarray(their), np.asarray(own)
        return np.concatenate([their[..., :inputs, :], own[..., inputs:, :]], axis=-2)

    made = jax.tree_util.tree_map_with_path(taken, new)
    total = len(jax.tree.leaves(new))
    words = f"{total - len(anew) - len(partly)} of {total} arrays are taken over"
    words += f" ({there} classes there, {here} here)"
    for what, names in (
        ("new", anew),
        ("taken but for their labels", partly),
        ("left out", sorted(theirs)),
    ):
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        words += f"; {what}: {', '.join(names[:4])}{more}" if names else ""
    return made, words


def _shared_inputs(their: Any, own: Any, there: int, here: int) -> int:
    """How many inputs of two kernels [..., inputs, outputs] are no labels, which come last."""
    if their is None or their.ndim != own.ndim or own.ndim < 2:
        return 0
    if (*their.shape[:-2], their.shape[-1]) != (*own.shape[:-2], own.shape[-1]):
        return 0
    a, b = their.shape[-2], own.shape[-2]
    return b - here if a - there == b - here else min(a, b)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _by_name(tree: Any) -> dict[str, Any]:
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in _by_name(tree).items()}


def _effective(network: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    """A UNet's arguments such that equal networks have equal ones."""
    heights = [image_size >> i for i in range(len(network["multipliers"]))]
    own = {key: getattr(UNet, key) for key in (*unet2d.ALIKE, "head_dim")}
    return {
        **own,
        **network,
        "multipliers": list(network["multipliers"]),
        "attention": [height for height in heights if height in network["attention"]],
        "groups": min(network["groups"], network["width"]),
    }
