"""The network of diffusers' UNet2DModel in our words, and back: its config and its tensors.

UNet2DModel (huggingface.co/docs/diffusers, release 0.42) in the configuration of
google/ddpm-cifar10-32, or in that of diffusers' own example of unconditional training, is our UNet,
exact to the last bit. Needs neither diffusers nor torch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from aigc_jax.errors import SettingError
from aigc_jax.networks import torch_names
from aigc_jax.networks.unet import UNet

RELEASE = "0.42.1"
CONFIG = "config.json"

# UNet2DModel's own value where its config is silent, and the only value that UNet computes.
# Ours is always written, so that the folder means the same to a release with other defaults.
FIXED = {
    "center_input_sample": (False, False),
    "time_embedding_type": ("positional", "positional"),
    "time_embedding_dim": (None, None),
    "mid_block_type": ("UNetMidBlock2D", "UNetMidBlock2D"),
    "mid_block_scale_factor": (1, 1),
    "downsample_type": ("conv", "conv"),
    "upsample_type": ("conv", "conv"),
    "act_fn": ("silu", "silu"),
    "add_attention": (True, True),
    "class_embed_type": (None, None),
    "num_train_timesteps": (None, None),
}
# What UNet has under the same name, with UNet2DModel's own values.
ALIKE = {"freq_shift": 0, "flip_sin_to_cos": True, "downsample_padding": 1, "norm_eps": 1e-5}
# What varies, with UNet2DModel's own values.
FREE = ALIKE | {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (224, 448, 672, 896),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "dropout": 0.0,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "num_class_embeds": None,
    "resnet_time_scale_shift": "default",
    "attn_norm_num_groups": None,
}

MODULES = {
    "time_0": "time_embedding.linear_1",
    "time_1": "time_embedding.linear_2",
    "label": "class_embedding",
    "norm_out": "conv_norm_out",
    "embedding": "time_emb_proj",
    "shortcut": "conv_shortcut",
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "out": "to_out.0",
}
PARTS = {
    "block": "resnets",
    "attention": "attentions",
    "downsample": "downsamplers",
    "upsample": "upsamplers",
}
# How early releases, and so many checkpoints, spell an attention.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def network_of(unet: Mapping[str, Any]) -> tuple[dict[str, Any], int, int]:
    """The arguments of UNet, the image size and the input channels of a UNet2DModel's config.

    Those of ALIKE are left out where they are UNet's own, as are the channels of a head where every
    attention has the same number of heads.

    Raises:
      ValueError: the config asks for what UNet does not have; every such setting is named.
    """
    _check_known(unet)
    unet = {**FREE, **unet}
    size = unet["sample_size"]
    size = size[0] if isinstance(size, list | tuple) and len(set(size)) == 1 else size
    if not isinstance(size, int):
        raise SettingError(f"{CONFIG} must give sample_size, one side of a square, not {size!r}")
    channels = unet["block_out_channels"]
    if any(n % channels[0] for n in channels):
        raise SettingError(f"block_out_channels={channels} are no multiples of their first")
    attends = _attends(unet["down_block_types"], unet["up_block_types"], len(channels))
    network = {
        "out_channels": unet["out_channels"],
        "width": channels[0],
        "multipliers": tuple(n // channels[0] for n in channels),
        "blocks": unet["layers_per_block"],
        "attention": tuple(size >> i for i, yes in enumerate(attends) if yes),
        **_heads(unet["attention_head_dim"], _attended(channels, attends)),
        "dropout": unet["dropout"],
        "groups": unet["norm_num_groups"],
        "num_classes": (unet["num_class_embeds"] or 1) - 1,
    }
    if unet["resnet_time_scale_shift"] == "scale_shift":
        network["scale_shift"] = True
    network |= {key: unet[key] for key in ALIKE if unet[key] != getattr(UNet, key)}
    return network, size, unet["in_channels"]


def _check_known(unet: Mapping[str, Any]) -> None:
    """Raises ValueError, naming them all, for settings that UNet does not have."""
    name = unet.get("_class_name", "UNet2DModel")
    if name != "UNet2DModel":
        raise SettingError(f"{CONFIG} is of a {name}; only a UNet2DModel can be read")
    wrong = [
        f"{key}={unet.get(key, default)!r} (only {ours!r})"
        for key, (default, ours) in FIXED.items()
        if unet.get(key, default) != ours
    ]
    wrong += [
        f"{key}={value!r} (not known)"
        for key, value in unet.items()
        if not key.startswith("_") and key not in FIXED and key not in FREE
    ]
    if unet.get("downsample_padding", 1) not in (0, 1):
        wrong.append(f"downsample_padding={unet['downsample_padding']!r} (only 0 or 1)")
    groups = unet.get("norm_num_groups", FREE["norm_num_groups"])
    if groups is None:
        wrong.append("norm_num_groups=None (only a number)")
    # Of "scale_shift" the attention in the middle has a norm only where this key gives it one.
    of_attention = {"default": None, "scale_shift": groups}
    shift = unet.get("resnet_time_scale_shift", "default")
    if shift not in of_attention:
        wrong.append(f"resnet_time_scale_shift={shift!r} (only {' or '.join(of_attention)})")
    elif (norm := unet.get("attn_norm_num_groups")) != of_attention[shift]:
        wrong.append(f"attn_norm_num_groups={norm!r} (only {of_attention[shift]!r})")
    if wrong:
        raise SettingError(f"{CONFIG} asks for what UNet does not have: {', '.join(wrong)}")


def _attends(down: Sequence[str], up: Sequence[str], levels: int) -> list[bool]:
    """Whether each resolution has attention, from the finest, by the names of the blocks."""
    for key, types, plain in (
        ("down_block_types", down, "DownBlock2D"),
        ("up_block_types", up, "UpBlock2D"),
    ):
        unknown = sorted(set(types) - {plain, f"Attn{plain}"})
        if unknown or len(types) != levels:
            raise SettingError(f"{key}={list(types)} must be {levels} of {plain} and Attn{plain}")
    attends = [kind.startswith("Attn") for kind in down]
    if attends != [kind.startswith("Attn") for kind in reversed(up)]:
        raise SettingError(
            f"down_block_types={list(down)} and up_block_types={list(up)} attend at different "
            "resolutions; UNet does at the same ones both ways"
        )
    return attends


def config_of(network: Mapping[str, Any], *, image_size: int, in_channels: int) -> dict[str, Any]:
    """The config.json of a UNet2DModel that computes what UNet(**network) does.

    Raises:
      ValueError: heads that one attention_head_dim cannot express, or inputs that UNet2DModel does
        not take.
    """
    net = UNet(**network)
    if net.augment_dim or net.second_time:
        raise SettingError(
            "diffusers' UNet2DModel takes neither an augmentation label (network.augment_dim) nor "
            "a second time (network.second_time), so this network cannot be written for it"
        )
    channels = [net.width * m for m in net.multipliers]
    attends = [image_size >> i in net.attention for i in range(len(channels))]
    head_dim = net.head_dim or None
    if net.heads > 1 and head_dim is None:
        attended = _attended(channels, attends)
        if len(attended) > 1 or attended[0] % net.heads:
            raise SettingError(
                f"network.heads={net.heads} over {attended} channels: diffusers gives every head "
                "the same number of channels, so it needs heads=1 or attention at one width"
            )
        head_dim = attended[0] // net.heads
    groups = min(net.groups, net.width)
    return {
        "_class_name": "UNet2DModel",
        "_diffusers_version": RELEASE,
        **{key: ours for key, (_, ours) in FIXED.items()},
        **{key: getattr(net, key) for key in ALIKE},
        "sample_size": image_size,
        "in_channels": in_channels,
        "out_channels": net.out_channels,
        "block_out_channels": channels,
        "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        "layers_per_block": net.blocks,
        "dropout": net.dropout,
        "attention_head_dim": head_dim,
        "norm_num_groups": groups,
        "num_class_embeds": net.num_classes + 1 if net.num_classes else None,
        "resnet_time_scale_shift": "scale_shift" if net.scale_shift else "default",
        "attn_norm_num_groups": groups if net.scale_shift else None,
    }


def from_tensors(
    tensors: Mapping[str, np.ndarray],
    *,
    network: Mapping[str, Any],
    image_size: int,
    in_channels: int,
) -> dict[str, Any]:
    """The parameters of UNet(**network) from the tensors of a UNet2DModel, by diffusers' names.

    Raises:
      ValueError: tensors that are missing, unexpected or of another shape, all named.
    """
    levels = len(UNet(**network).multipliers)
    template = _template(network, image_size, in_channels)
    tensors = {_modern(key): value for key, value in tensors.items()}
    torch_names.compare(
        {_key(path, levels): _to_torch(path, zero).shape for path, zero in template.items()},
        {key: value.shape for key, value in tensors.items()},
        what="the checkpoint does not fit its config.json",
    )
    params = {path: _from_torch(path, tensors[_key(path, levels)]) for path in template}
    return unflatten_dict(params)


def to_tensors(
    params: Mapping[str, Any], *, network: Mapping[str, Any], image_size: int, in_channels: int
) -> dict[str, np.ndarray]:
    """The tensors of a UNet2DModel, by diffusers' names; the inverse of from_tensors."""
    levels = len(UNet(**network).multipliers)
    flat = {path: np.asarray(value) for path, value in flatten_dict(params).items()}
    template = _template(network, image_size, in_channels)
    torch_names.compare(
        {"/".join(path): zero.shape for path, zero in template.items()},
        {"/".join(path): value.shape for path, value in flat.items()},
        what="the parameters are not this network's",
    )
    return {_key(path, levels): _to_torch(path, value) for path, value in flat.items()}


def _template(network: Mapping[str, Any], size: int, channels: int) -> dict[tuple, np.ndarray]:
    """Every parameter's path with zeros of its shape that take no memory."""
    x, t = jnp.zeros((1, size, size, channels)), jnp.zeros((1,))
    variables = jax.eval_shape(UNet(**network).init, jax.random.key(0), x, t)
    flat = flatten_dict(variables["params"])
    return {path: np.broadcast_to(np.float32(0), s.shape) for path, s in flat.items()}


def _key(path: tuple[str, ...], levels: int) -> str:
    """("up_3_block_0", "conv1", "kernel") is "up_blocks.0.resnets.0.conv1.weight" of 4 levels."""
    *modules, leaf = path
    names = [MODULES.get(module, module) for module in modules]
    place, *rest = modules[0].split("_")
    if place == "middle":
        names[0] = f"mid_block.{PARTS[rest[0]]}.{rest[1]}"
    elif place in ("down", "up"):
        level, part, *index = rest
        # diffusers counts the blocks on the way up in the order they run.
        i = int(level) if place == "down" else levels - 1 - int(level)
        names[0] = f"{place}_blocks.{i}.{PARTS[part]}.{index[0] if index else 0}"
    return ".".join([*names, "bias" if leaf == "bias" else "weight"])


def _modern(key: str) -> str:
    module, _, leaf = key.rpartition(".")
    parent, _, name = module.rpartition(".")
    if ".attentions." in key and name in OLD_ATTENTION:
        return f"{parent}.{OLD_ATTENTION[name]}.{leaf}"
    return key


def _to_torch(path: tuple[str, ...], value: np.ndarray) -> np.ndarray:
    if path[-1] == "kernel":
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        if path[-2] == "shortcut":  # linear here, a 1x1 convolution there
            value = value[:, :, None, None]
    return np.ascontiguousarray(value, np.float32)


def _from_torch(path: tuple[str, ...], value: np.ndarray) -> np.ndarray:
    if path[-1] == "kernel":
        if path[-2] == "shortcut":
            value = value[:, :, 0, 0]
        value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
    return np.ascontiguousarray(value, np.float32)


def _attended(channels: list[int], attends: list[bool]) -> list[int]:
    """The widths that have attention, the middle's among them."""
    return sorted({channels[-1], *(n for n, yes in zip(channels, attends, strict=True) if yes)})


def _heads(head_dim: int | None, attended: list[int]) -> dict[str, int]:
    """UNet's `heads`, or its `head_dim` where attentions of several widths have several numbers."""
    if head_dim is None:
        return {"heads": 1}
    if any(n % head_dim for n in attended):
        raise SettingError(
            f"attention_head_dim={head_dim} (8 where config.json is silent) does not divide each "
            f"of {attended}, the channels that have attention"
        )
    heads = {n // head_dim for n in attended}
    return {"heads": heads.pop()} if len(heads) == 1 else {"heads": 1, "head_dim": head_dim}
