"""Packages that results are checked against; a test that needs one skips where it is absent."""

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
