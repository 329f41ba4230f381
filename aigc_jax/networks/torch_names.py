"""Variables of Linen modules from tensors by their names, as files of PyTorch and Caffe have them.

`formats.torch_file.read` gives the tensors; this file knows names, shapes and axis orders only.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from aigc_jax.errors import SettingError

# How a file spells a leaf of a Linen variable. Its other names are those of the modules.
TORCH = {
    "kernel": ".weight",
    "scale": ".weight",
    "bias": ".bias",
    "mean": ".running_mean",
    "var": ".running_var",
}
CAFFE = {"kernel": "_0", "bias": "_1"}


def fit(
    init: Callable[..., Any],
    shape: tuple[int, ...],
    tensors: Mapping[str, np.ndarray],
    *,
    what: str,
    leaves: Mapping[str, str] = TORCH,
    ignored: tuple[str, ...] = (),
) -> dict[str, Any]:
    """The variables of a Linen module from a file's tensors, in PyTorch's axis order, as float32.

    init: the module's, for an input of that shape. The tensor of a leaf is named by its modules,
    joined by dots, and then by `leaves`. Tensors whose name ends with one of `ignored`, or starts
    with it, are left out. ValueError that names the first tensors which are missing, unexpected or
    of another shape, and says that they are not of `what`.
    """
    abstract = jax.eval_shape(init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))
    paths = {
        ".".join(path[1:-1]) + leaves[path[-1]]: (path, leaf.shape)
        for path, leaf in flatten_dict(abstract).items()
    }
    compare(
        {name: _torch_shape(shape) for name, (_, shape) in paths.items()},
        {
            name: np.shape(value)
            for name, value in tensors.items()
            if not name.endswith(ignored) and not name.startswith(ignored)
        },
        what=f"these are not the weights of {what}",
    )
    return unflatten_dict({p: _from_torch(tensors[name]) for name, (p, _) in paths.items()})


def compare(expected: Mapping[str, tuple], found: Mapping[str, tuple], *, what: str) -> None:
    """ValueError, `what` first, that names the first tensors of another name or shape."""
    problems = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of another shape": [
            f"{name} {tuple(found[name])}, not {tuple(shape)}"
            for name, shape in expected.items()
            if name in found and tuple(found[name]) != tuple(shape)
        ],
    }
    lines = [
        f"{len(names)} {problem}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for problem, names in problems.items()
        if names
    ]
    if lines:
        raise SettingError(f"{what}: {'; '.join(lines)}")


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the tensor that _from_torch turns into this shape."""
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]


def _from_torch(value: np.ndarray) -> np.ndarray:
    value = np.asarray(value)
    value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
    return np.ascontiguousarray(value, np.float32)
