"""Any number of examples through a compiled function, in batches of one size, over all devices."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from aigc_jax.errors import SettingError
from aigc_jax.training import sharding


def padded(
    count: int, batch_size: int, mesh: Any, whole: bool = False
) -> Iterator[tuple[np.ndarray, int]]:
    """Yields (numbers of a batch's examples, how many of them are below `count`).

    Every batch has one size, `batch_size` rounded up to a multiple of the devices, so one
    compilation serves all; the last one's numbers run on past `count`. That size is not more than
    `count` needs, unless `whole`: for several calls that share a compilation.
    """
    size = -(-(batch_size if whole else min(batch_size, count)) // mesh.size) * mesh.size
    for start in range(0, count, size):
        yield np.arange(start, start + size), min(size, count - start)


def map_batches(
    run: Callable[[Any], Any], mesh: Any, arrays: Any, batch_size: int = 64, whole: bool = False
) -> Any:
    """`run` over the examples of a tree of host arrays, whole on every process.

    Args:
      run: compiled, a tree of device arrays [b, ...] -> a tree of device arrays [b, ...].
      arrays: tree of host arrays [n, ...], the same on every process; n is at least 1.
      batch_size: examples at a time; the last batch is filled up with the last example.
      whole: as for `padded`.

    Returns:
      The tree that `run` gives, as host arrays [n, ...].
    """
    count = len(jax.tree.leaves(arrays)[0])
    if not count:
        raise SettingError("there is nothing to compute: no examples were given")
    parts = []
    for index, kept in padded(count, batch_size, mesh, whole):
        chosen = np.minimum(index, count - 1)
        batch = jax.tree.map(lambda x, rows=chosen: of_this_process(np.asarray(x)[rows]), arrays)
        found = sharding.fetch(run(sharding.put(mesh, batch)))
        parts.append(jax.tree.map(lambda x, n=kept: np.asarray(x)[:n], found))
    return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)


def of_this_process(rows: np.ndarray) -> np.ndarray:
    """This process's share of an array that is split over all devices."""
    return np.split(rows, jax.process_count())[jax.process_index()]
