"""The few TensorFlow calls that TFDS's builders make while they prepare, on the standard library.

Only the process that prepares data (aigc_jax.data.prepare) puts it in place; training reads what
was prepared and needs nothing of the kind.
"""

import glob
import importlib.machinery
import io
import os
import pathlib
import shutil
import sys
import types
from typing import IO

import numpy as np
from PIL import Image


class _Encoded:
    """Encoded bytes that answer `.numpy()`, as an eager tensor does."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def numpy(self) -> bytes:
        return self._data


class _StandIn(types.ModuleType):
    """A module that says what to do where a builder asks for more than it holds."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(
            f"this data set's builder calls {self.__name__}.{name}, which needs TensorFlow: "
            "prepare it where TensorFlow is installed, with tfds.builder(NAME, "
            "file_format='array_record').download_and_prepare(), and copy its folder into data_dir"
        )


def install() -> None:
    """Puts the stand-in where `import tensorflow` finds it, also where TensorFlow is installed."""
    sys.modules["tensorflow"] = _tensorflow()


def _tensorflow() -> types.ModuleType:
    gfile = _module(
        "tensorflow.io.gfile",
        GFile=_open,
        copy=_copy,
        exists=os.path.exists,
        glob=lambda pattern: sorted(glob.glob(os.fspath(pattern))),
        isdir=os.path.isdir,
        listdir=lambda path: sorted(os.listdir(path)),
        makedirs=lambda path: os.makedirs(path, exist_ok=True),
        remove=os.remove,
        rmtree=shutil.rmtree,
        walk=os.walk,
    )
    # TFDS names these in `except` clauses and isinstance checks; nothing is ever one of them.
    names = ("UnimplementedError", "FailedPreconditionError", "PermissionDeniedError")
    names += ("AbortedError", "NotFoundError", "OpError")
    errors = {name: type(name, (OSError,), {}) for name in names}
    module = _module(
        "tensorflow",
        __version__="2.99.0",
        Tensor=type("Tensor", (), {}),
        executing_eagerly=lambda: True,
        io=_module("tensorflow.io", gfile=gfile),
        image=_module("tensorflow.image", encode_png=_encode_png, encode_jpeg=_encode_jpeg),
        compat=_module("tensorflow.compat", as_text=_as_text, as_bytes=_as_bytes),
        dtypes=_module("tensorflow.dtypes", DType=type("DType", (), {})),
        errors=_module("tensorflow.errors", **errors),
    )
    module.__spec__ = importlib.machinery.ModuleSpec("tensorflow", None)
    return module


def _module(name: str, **attributes: object) -> types.ModuleType:
    module = _StandIn(name)
    vars(module).update(attributes)
    return module


class _Reader(io.BufferedReader):
    """Stays readable after its `with` block, as TensorFlow's reader does and celeb_a needs."""

    def __exit__(self, *_: object) -> None:
        pass  # closed with its last reference


def _open(name: str, mode: str = "r") -> IO:
    return _Reader(io.FileIO(name)) if mode == "rb" else pathlib.Path(name).open(mode)


def _copy(source: str, target: str, overwrite: bool = False) -> None:
    if not overwrite and os.path.exists(target):
        raise FileExistsError(target)
    shutil.copyfile(source, target)


def _encode_png(image: np.ndarray) -> _Encoded:
    return _encode(image, format="png")


def _encode_jpeg(image: np.ndarray, quality: int = 95, **_: object) -> _Encoded:
    return _encode(image, format="jpeg", quality=quality)


def _encode(image: np.ndarray, **options: object) -> _Encoded:
    if image.dtype != np.uint8:
        raise TypeError(f"only uint8 images can be encoded without TensorFlow, not {image.dtype}")
    buffer = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[-1] == 1 else image).save(buffer, **options)
    return _Encoded(buffer.getvalue())


def _as_text(value: str | bytes | pathlib.Path) -> str:
    return value.decode() if isinstance(value, bytes) else os.fspath(value)


def _as_bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()
