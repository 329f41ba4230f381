"""Packages that results are checked against; a test that needs one skips where it is absent."""

import functools
import importlib
import importlib.machinery
import importlib.util
import sys
import types
from typing import Any
from unittest import mock

import pytest

TORCHVISION = (
    "torchvision",
    "torchvision.datasets",
    "torchvision.models",
    "torchvision.transforms",
    "torchvision.transforms.functional",
)


def torch_fidelity(module: str) -> Any:
    """A module of torch-fidelity, such as "metric_fid".

    The package imports torchvision at once, for data sets that no metric needs, and torchvision has
    no CPU build for every torch: an empty one stands in while it is imported.
    """
    return _imported(f"torch_fidelity.{module}", {})


def k_diffusion() -> Any:
    """The module of k-diffusion's samplers.

    The package imports all that it trains and judges with, and the samplers what they need for
    adaptive steps and for noise of their own, none of which tests need.
    """
    found = importlib.util.find_spec("k_diffusion")
    if found is None:
        pytest.skip("no k_diffusion")
    package = types.ModuleType("k_diffusion")
    package.__path__ = list(found.submodule_search_locations)
    names = ("torchdiffeq", "torchsde")
    return _imported(
        "k_diffusion.sampling", {"k_diffusion": package, **{name: _Empty(name) for name in names}}
    )


def _imported(module: str, stand_ins: dict[str, types.ModuleType]) -> Any:
    """A module, imported while others stand in for torchvision and more."""
    pytest.importorskip("torch")
    if "torchvision" not in sys.modules:
        stand_ins = stand_ins | {name: _Empty(name) for name in TORCHVISION}
    with mock.patch.dict(sys.modules, stand_ins):
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            pytest.skip(f"no {error.name}")


class _Empty(types.ModuleType):
    """A module in which every name is a class that does nothing."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []
        self.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return sys.modules.get(f"{self.__name__}.{name}") or type(name, (), {})


def lpips(network: str) -> Any:
    """`lpips.LPIPS` of "alexnet" or "vgg16", with its linear layers and random convolutions.

    The package takes the convolutions from torchvision, of which the two networks stand in here.
    """
    package = _lpips()
    sys.modules["torch"].manual_seed(0)
    net = {"alexnet": "alex", "vgg16": "vgg"}[network]
    return package.LPIPS(net=net, pnet_rand=True, verbose=False)


@functools.cache
def _lpips() -> Any:
    for name in ("torch", "scipy.ndimage", "tqdm"):  # before, since they are not imported twice
        pytest.importorskip(name)
    torchvision = types.ModuleType("torchvision")
    torchvision.models = types.SimpleNamespace(alexnet=_alexnet, vgg16=_vgg16)
    with mock.patch.dict(sys.modules, {"torchvision": torchvision}):
        return pytest.importorskip("lpips")


def _vgg16(**_: Any) -> Any:
    from torch import nn

    layers, before = [], 3
    for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        if width:
            layer = nn.Conv2d(before, width, 3, padding=1)
            nn.init.normal_(layer.weight, std=(2 / (9 * before)) ** 0.5)
            layers += [layer, nn.ReLU()]
            before = width
        else:
            layers.append(nn.MaxPool2d(2))
    return types.SimpleNamespace(features=nn.Sequential(*layers))


def _alexnet(**_: Any) -> Any:
    from torch import nn

    return types.SimpleNamespace(
        features=nn.Sequential(
            *(nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)),
        )
    )
