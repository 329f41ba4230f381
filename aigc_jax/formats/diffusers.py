"""UNet checkpoints as folders of Hugging Face diffusers, both ways, exact to the last bit.

The layout is that of UNet2DModel in the configuration of google/ddpm-cifar10-32, alone or inside
a DDPMPipeline (huggingface.co/docs/diffusers, release 0.42). Needs neither diffusers nor torch.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from safetensors.numpy import save_file

from aigc_jax import files
from aigc_jax.errors import MissingError
from aigc_jax.formats import torch_file, unet2d
from aigc_jax.formats.unet2d import CONFIG, RELEASE

WEIGHTS = "diffusion_pytorch_model.safetensors"
SCHEDULER = "scheduler_config.json"


class Checkpoint(NamedTuple):
    """What a folder holds.

    Attributes:
      network: keyword arguments of UNet, without dtype.
      params: what UNet.init gives under "params", as float32 numpy arrays.
      scheduler: the raw scheduler_config.json, {} where there is none; see `schedulers.process_of`.
      image_size: side of its square images, in pixels.
      in_channels: of its images.
    """

    network: dict[str, Any]
    params: dict[str, Any]
    scheduler: dict[str, Any]
    image_size: int
    in_channels: int


def read(folder: str | pathlib.Path) -> Checkpoint:
    """Reads a UNet2DModel, alone, in a pipeline with unet/ and scheduler/, or in a flat pipeline.

    The last of num_class_embeds rows is taken for "no label".

    Raises:
      FileNotFoundError: the folder, its config or its weights are absent.
      ValueError: a network that UNet is not, or tensors that are missing, unexpected or of another
        shape, all named.
    """
    unet, scheduler = _parts(files.expanded(folder))
    network, image_size, in_channels = unet2d.network_of(_config(unet))
    params = unet2d.from_tensors(
        torch_file.read(_weights(unet)),
        network=network,
        image_size=image_size,
        in_channels=in_channels,
    )
    return Checkpoint(network, params, _read_scheduler(scheduler), image_size, in_channels)


def read_network(folder: str | pathlib.Path) -> tuple[dict[str, Any], int, int]:
    """The network, image size and input channels of `Checkpoint`, without reading its weights.

    Raises as `read`, but for the weights.
    """
    unet, _ = _parts(files.expanded(folder))
    return unet2d.network_of(_config(unet))


def read_scheduler(folder: str | pathlib.Path) -> dict[str, Any]:
    """The scheduler of `Checkpoint`, without reading its weights."""
    _, scheduler = _parts(files.expanded(folder))
    return _read_scheduler(scheduler)


def write(
    folder: str | pathlib.Path,
    params: Mapping[str, Any],
    *,
    network: Mapping[str, Any],
    image_size: int,
    in_channels: int,
    scheduler: Mapping[str, Any],
) -> None:
    """Writes a folder for DDPMPipeline.from_pretrained and DDIMPipeline.from_pretrained.

    A network with labels is for UNet2DModel.from_pretrained(folder, subfolder="unet"): those
    pipelines pass no label. The folder is complete or not there.

    Args:
      params: what UNet.init gives under "params".
      network: keyword arguments of UNet.
      scheduler: arguments of diffusers' DDPMScheduler, such as `schedulers.config_of` gives.

    Raises:
      ValueError: a network that UNet2DModel is not, or parameters that are not this network's.
    """
    shapes = {"network": network, "image_size": image_size, "in_channels": in_channels}
    config, tensors = unet2d.config_of(**shapes), unet2d.to_tensors(params, **shapes)
    scheduler = {"_class_name": "DDPMScheduler", "_diffusers_version": RELEASE, **scheduler}
    index = {
        "_class_name": "DDPMPipeline",
        "_diffusers_version": RELEASE,
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "unet": ["diffusers", "UNet2DModel"],
    }
    with files.folder(folder) as place:
        with files.replacing(place / "unet" / WEIGHTS) as partial:
            # diffusers reads the framework from the metadata, and refuses a file without it.
            save_file(tensors, partial, metadata={"format": "pt"})
        files.write_json(place / "unet" / CONFIG, config)
        files.write_json(place / "scheduler" / SCHEDULER, scheduler)
        files.write_json(place / "model_index.json", index)


def _parts(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Where the network lies, and the path that its scheduler has where there is one."""
    if not folder.is_dir():
        raise MissingError(
            f"no folder {folder}: download a checkpoint first, for example with "
            f"`hf download google/ddpm-cifar10-32 --local-dir {folder}`"
        )
    nested = (folder / "unet").is_dir()
    unet = folder / "unet" if nested else folder
    return unet, (folder / "scheduler" if nested else folder) / SCHEDULER


def _config(unet: pathlib.Path) -> dict[str, Any]:
    return json.loads(_existing(unet / CONFIG).read_text())


def _read_scheduler(path: pathlib.Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _weights(folder: pathlib.Path) -> pathlib.Path:
    """The weights of a folder, as safetensors or as the .bin of older releases."""
    path = folder / WEIGHTS
    older = path.with_suffix(".bin")
    return older if older.is_file() and not path.is_file() else _existing(path)


def _existing(path: pathlib.Path) -> pathlib.Path:
    if path.is_file():
        return path
    raise MissingError(
        f"no {path}: a UNet2DModel's folder holds {CONFIG} and {WEIGHTS}, itself or in unet/"
    )
