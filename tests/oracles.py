"""Packages that results are checked against; a test that needs one skips where it is absent."""

import importlib
import importlib.machinery
import sys
import types
from typing import Any
from unittest import mock

import pytest


def torch_fidelity(module: str) -> Any:
    """A module of torch-fidelity, such as "metric_fid".

    The package imports torchvision at once, for data sets that no metric needs, and torchvision has
    no CPU build for every torch: an empty one stands in while it is imported.
    """
    pytest.importorskip("torch")
    names = (
        "torchvision",
        "torchvision.datasets",
        "torchvision.models",
        "torchvision.transforms",
        "torchvision.transforms.functional",
    )
    stand_ins = {name: _Empty(name) for name in names if "torchvision" not in sys.modules}
    with mock.patch.dict(sys.modules, stand_ins):
        try:
            return importlib.import_module(f"torch_fidelity.{module}")
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
