"""Drawing images from a family: sample i depends on (seed, i) alone, on any mesh, in any batch."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from aigc_jax.training.sharding import fetch, put, sample_keys


def draw(
    sample: Callable,
    params: Any,
    extra: Any,
    mesh: Any,
    *,
    seed: int,
    count: int,
    labels: Sequence[int] | None = None,
    batch_size: int = 64,
) -> Iterator[np.ndarray]:
    """Yields images [b, H, W, C] in [-1, 1] in batches, `count` in all, in order.

    Args:
      sample: (params, extra, keys, cond) -> images, such as `Family.sample`; or frames
        [frames, n, H, W, C], as of `Family.trajectory`: then the axis of samples is 1.
      labels: label of sample i is labels[i % len(labels)]; None draws without labels.
      batch_size: samples at a time, rounded up to a multiple of the devices. All batches have this
        size, the last padded, so that one compilation serves all.
    """
    batch_size = -(-min(batch_size, count) // mesh.size) * mesh.size
    for start in range(0, count, batch_size):
        index = np.arange(start, start + batch_size)
        cond = {}
        if labels is not None:
            chosen = np.asarray(labels, np.int32)[index % len(labels)]
            cond = {"label": put(mesh, of_this_process(chosen))}
        images = fetch(sample(params, extra, sample_keys(mesh, seed, start, batch_size), cond))
        kept = min(batch_size, count - start)
        yield images[:kept] if images.ndim == 4 else images[:, :kept]


def of_this_process(rows: np.ndarray) -> np.ndarray:
    """This process's share of an array split over all devices."""
    return np.split(rows, jax.process_count())[jax.process_index()]
