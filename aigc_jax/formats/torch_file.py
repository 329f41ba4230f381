"""Weights from files of numpy, safetensors and PyTorch, and pickles of numpy's arrays.

PyTorch need not be installed. Its files are pickles, and a pickle may call anything: this reader
follows the layout that torch.save has written since 2017 (legacy, one stream) and since release 1.6
(a zip), and lets a pickle name nothing but a dict, an array, a tensor, a parameter and the types
below.
"""

import importlib.util
import io
import json
import math
import os
import pathlib
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from aigc_jax import files
from aigc_jax.errors import MissingError, SettingError

LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
BFLOAT16 = "bfloat16"  # numpy has none: it is read as uint16 and widened
STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": BFLOAT16,
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "?",
}
SAFETENSORS = {
    "F32": "<f4",
    "F64": "<f8",
    "F16": "<f2",
    "BF16": BFLOAT16,
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "<i1",
    "U8": "<u1",
    "BOOL": "?",
}
# numpy's pickles: what makes an array, by the name before numpy 2 and since, and types.
RECONSTRUCT = {("core.multiarray", "_reconstruct"), ("_core.multiarray", "_reconstruct")}
DTYPES = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}


class _Storage(NamedTuple):
    key: str
    kind: str
    count: int


class _Tensor(NamedTuple):
    """What a pickle says of a tensor: offset and strides count elements of its storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _DType:
    """A type of numpy as a pickle describes it."""

    def __init__(self, kind: str, *_: Any) -> None:
        if kind not in DTYPES:
            raise pickle.UnpicklingError(f"it asks for arrays of {kind}, which no state dict needs")
        self.kind = kind

    def __setstate__(self, state: tuple) -> None:
        if state[1] not in ("<", "|"):
            raise SettingError("its bytes are big-endian")


class _Array:
    """An array of numpy as a pickle describes it.

    numpy's own classes would take whatever state a forged pickle gives them, object pointers too.
    """

    values: np.ndarray

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, raw = state
        _checked("the type of an array", dtype, _DType)
        flat = np.frombuffer(_checked("an array's content", raw, bytes), f"<{dtype.kind}")
        self.values = flat.reshape(shape, order="F" if fortran else "C")


def read(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a .npz, a .safetensors, a PyTorch .pt or .pth, or a pickle of numpy's arrays.

    The content tells the kind of file. PyTorch's holds a state dict; a pickle holds dicts of
    arrays, whose keys become one name, joined by dots. bfloat16 becomes float32, other types stay.
    FileNotFoundError for an absent file. ValueError, naming it, for one that is damaged, that is
    no file of weights, or that asks for anything beyond tensors; nothing of such a file is run.
    """
    path = files.expanded(path)
    if not path.is_file():
        raise MissingError(
            f"no file {path}: download the weights (.npz, .safetensors, .pt or .pth) and give "
            "their path"
        )
    data = path.read_bytes()
    # First, since the length that safetensors begin with may look like either of the others.
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data) - 8:
        reader = _safetensors
    else:
        reader = _legacy if data.startswith(b"\x80") else _zip
    try:
        return reader(data)
    except Exception as error:  # what a damaged pickle or zip may raise has no end
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise SettingError(
            f"cannot read weights from {path}, which is damaged or no state dict ({reason})"
        ) from error


def locate(
    path: str | None,
    usual: str | Sequence[str],
    *,
    what: str,
    setting: str,
    source: str = "",
    package: str = "",
    install: str = "",
) -> pathlib.Path:
    """The file at `path`, or the first of the usual names that is in $AIGC_WEIGHTS or a package.

    Args:
      path: None looks for the usual names.
      usual: each is looked for in $AIGC_WEIGHTS, then in the package, and then the next is.
      what, setting, source: what is missing, which setting names it, and where it comes from, as
        an error says.
      package, install: folder within an installed package, "name/folder", none of whose code is
        run, and the command that installs it.

    Raises:
      FileNotFoundError: there is none of them.
    """
    names = (usual,) if isinstance(usual, str) else usual
    folder = os.environ.get("AIGC_WEIGHTS")
    within = [files.expanded(folder)] if folder else []
    candidates = [place / name for name in names for place in (*within, *_installed(package))]
    candidates = [files.expanded(path)] if path else candidates
    for found in candidates:
        if found.is_file():
            return found
    at = f" at {candidates[0]}" if path or folder else ""
    usual = f"{' or '.join(names)}{f' ({source})' if source else ''}"
    raise MissingError(
        f"no {what}{at}: {f'{install}, or ' if install else ''}give their file by {setting}, or "
        f"the folder that holds {usual} by $AIGC_WEIGHTS"
    )


def _installed(package: str) -> list[pathlib.Path]:
    """The folder "name/folder" of an installed package, [] without; its code is not imported."""
    name, _, folder = package.partition("/")
    spec = importlib.util.find_spec(name) if name else None
    places = spec.submodule_search_locations if spec else None
    return [pathlib.Path(place) / folder for place in places or ()]


def _zip(data: bytes) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
        pickles = [name for name in names if name.rpartition("/")[2] == "data.pkl"]
        if not pickles:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                # An archive of other things gives its raw bytes here.
                return {name: _checked(name, arrays[name], np.ndarray) for name in arrays.files}
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
            raise SettingError("its bytes are big-endian")
        unpickler = _Unpickler(io.BytesIO(archive.read(pickles[0])))
        state = unpickler.load()
        raw = {key: archive.read(f"{root}data/{key}") for key in unpickler.storages}
    return _arrays(state, raw)


def _legacy(data: bytes) -> dict[str, np.ndarray]:
    stream = io.BytesIO(data)
    magic = _Unpickler(stream).load()
    if isinstance(magic, dict):
        return _nested(magic)
    protocol, system = (_Unpickler(stream).load() for _ in range(2))
    if (magic, protocol) != (LEGACY_MAGIC, LEGACY_PROTOCOL):
        raise SettingError("a pickle, but not one of torch.save")
    if not system["little_endian"]:
        raise SettingError("its bytes are big-endian")
    unpickler = _Unpickler(stream)
    state = unpickler.load()
    raw = {}
    for key in _Unpickler(stream).load():
        storage = unpickler.storages[key]
        count = int.from_bytes(stream.read(8), "little", signed=True)
        if count != storage.count:
            raise SettingError(f"storage {key} has {count} elements, not {storage.count}")
        raw[key] = stream.read(count * _dtype(storage.kind).itemsize)
    return _arrays(state, raw)


def _safetensors(data: bytes) -> dict[str, np.ndarray]:
    start = 8 + int.from_bytes(data[:8], "little")
    arrays = {}
    for name, entry in json.loads(data[8:start]).items():
        if name == "__metadata__":
            continue
        kind, shape, (begin, end) = (
            SAFETENSORS[entry["dtype"]],
            entry["shape"],
            entry["data_offsets"],
        )
        flat = np.frombuffer(data[start + begin : start + end], _dtype(kind))
        arrays[name] = _widened(flat, kind).reshape(shape)
    return arrays


class _Unpickler(pickle.Unpickler):
    """Gives tensors as _Tensor and arrays as _Array, notes storages, refuses any other object."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        # Bound methods and strings: unlike a class, a pickle cannot set attributes of these.
        if (module, name) == ("numpy", "dtype"):
            return self._dtype
        if (module, name) == ("numpy", "ndarray"):
            return "numpy.ndarray"
        if (module.removeprefix("numpy."), name) in RECONSTRUCT:
            return self._reconstruct
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return self._parameter
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no state dict needs")

    def persistent_load(self, pid: Any) -> _Storage:
        tag, kind, key, _, count, *view = pid
        if tag != "storage" or kind not in STORAGES.values() or any(view):
            raise pickle.UnpicklingError(f"it asks for {pid}, which no state dict needs")
        storage = _Storage(key, kind, count)
        if self.storages.setdefault(key, storage) != storage:
            raise pickle.UnpicklingError(f"storage {key} is said to be of two types")
        return storage

    def _tensor(self, storage: _Storage, offset: int, shape: tuple, strides: tuple, *_: Any):
        _checked("storage", storage, _Storage)
        return _Tensor(storage, offset, tuple(shape), tuple(strides))

    def _dtype(self, *described: Any) -> _DType:
        return _DType(*described)

    def _reconstruct(self, *_: Any) -> _Array:
        return _Array()

    def _parameter(self, tensor: _Tensor, *_: Any) -> _Tensor:
        return tensor


def _nested(state: Mapping[Any, Any]) -> dict[str, np.ndarray]:
    """Dicts of arrays as one, whose names are the keys on the way, joined by dots."""
    found = {}
    for key, value in state.items():
        name = _checked("a key", key, str)
        if isinstance(value, dict):
            found |= {f"{name}.{rest}": array for rest, array in _nested(value).items()}
        else:
            found[name] = _checked(name, value, _Array).values
    return found


def _arrays(state: Any, raw: Mapping[str, bytes]) -> dict[str, np.ndarray]:
    _checked("the object in the file", state, dict)
    return {name: _array(_checked(name, value, _Tensor), raw) for name, value in state.items()}


def _array(tensor: _Tensor, raw: Mapping[str, bytes]) -> np.ndarray:
    """A copy of the part of its storage that a tensor shows."""
    (key, kind, count), offset, shape, strides = tensor
    flat = np.frombuffer(raw[key], _dtype(kind))
    if len(flat) != count:
        raise SettingError(f"storage {key} has {len(flat)} elements, not {count}")
    if math.prod(shape) == 0:
        return _widened(flat[:0], kind).reshape(shape)
    # as_strided reads whatever memory it is told to.
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if min(offset, *shape, *strides, 0) < 0 or last >= count:
        raise SettingError(f"a tensor of shape {shape} lies outside its storage")
    steps = tuple(step * flat.itemsize for step in strides)
    return _widened(np.lib.stride_tricks.as_strided(flat[offset:], shape, steps).copy(), kind)


def _dtype(kind: str) -> np.dtype:
    return np.dtype("<u2" if kind == BFLOAT16 else kind)


def _widened(values: np.ndarray, kind: str) -> np.ndarray:
    """bfloat16 is the upper half of a float32."""
    return (values.astype("<u4") << 16).view("<f4") if kind == BFLOAT16 else values


def _checked(name: str, value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise SettingError(f"{name} is a {type(value).__name__}")
    return value
