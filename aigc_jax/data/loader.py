"""Batches as a pure function of (seed, step): Grain prefetches, a Source reads."""

import sys
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from aigc_jax import streams
from aigc_jax.data.images import DataError
from aigc_jax.data.order import Order
from aigc_jax.data.pairs import Pairs
from aigc_jax.data.sources import Source

Batch = dict[str, np.ndarray]


class Plan:
    """Which examples each training step sees, a pure function of (seed, step).

    `batch_size` is global; each of `process_count` processes gets B = batch_size / process_count
    consecutive rows of every one of the step's batches, so that side by side the processes hold
    exactly what one process would. Examples are reshuffled every epoch, and an epoch's tail shares
    its batch with the next epoch's head: none is dropped. Each domain of `Pairs` is shuffled by
    itself, in an order of its own, so that what an example meets is chance, and the smaller domain
    comes round more often.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        seed: int,
        batches_per_step: int = 1,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        self._rows = _rows(batch_size, process_index, process_count)
        self._shape = batches_per_step, batch_size
        sizes = source.sizes if isinstance(source, Pairs) else (len(source),)
        if batch_size > min(sizes):
            raise DataError(
                f"a batch of {batch_size} is larger than the data set's {min(sizes)} examples: "
                f"set train.batch_size to {min(sizes)} or less"
            )
        # A seed for each: by one seed, domains of one size would always meet in the same pairs.
        self._orders = [
            Order(size, streams.order(seed, domain)) for domain, size in enumerate(sizes)
        ]

    def rows(self, step: int, count: int = 1) -> list[np.ndarray]:
        """int64 [count, batches_per_step, B] of each domain: of `count` steps from `step` on."""
        each = self._shape[0] * self._shape[1]
        whole = [order.indices(step * each, count * each) for order in self._orders]
        return [rows.reshape(count, *self._shape)[..., self._rows] for rows in whole]


def batches(
    source: Source, *, start: int = 0, num_threads: int = 8, prefetch: int = 16, **of_plan: Any
) -> Iterator[Batch]:
    """Endless training batches from step `start` on: "x" [batches_per_step, B, ...], "label".

    x is as stored. Of `Pairs` "x" and "other". `of_plan` are the arguments of `Plan`. `prefetch`
    batches are held ready by `num_threads` threads, which end with the iterator or its `close()`.
    """
    plan = Plan(source, **of_plan)

    def fetch(step: int) -> Batch:
        rows = [of[0] for of in plan.rows(step)]
        flat = source.fetch(*(indices.reshape(-1) for indices in rows))
        return {name: x.reshape(*rows[0].shape, *x.shape[1:]) for name, x in flat.items()}

    steps = grain.MapDataset.range(start, sys.maxsize).map(fetch)
    return iter(steps.to_iter_dataset(_read_options(num_threads, prefetch)))


def epoch(
    source: Source,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 8,
    prefetch: int = 16,
) -> Iterator[Batch]:
    """One pass in order: "x" [B, ...] as stored, "label", and "mask" float32 [B].

    The last batch is filled up by repeating the last example; `mask` is 1 for the real rows, 0 for
    those. Batches and processes share rows as in `Plan`.
    """
    rows = _rows(batch_size, process_index, process_count)
    size = len(source)

    def fetch(step: int) -> Batch:
        local = np.arange(step * batch_size, (step + 1) * batch_size)[rows]
        mask = (local < size).astype(np.float32)
        return {**source.fetch(np.minimum(local, size - 1)), "mask": mask}

    steps = grain.MapDataset.range(-(-size // batch_size)).map(fetch)
    return iter(steps.to_iter_dataset(_read_options(num_threads, prefetch)))


def _rows(batch_size: int, process_index: int, process_count: int) -> slice:
    """The rows of a global batch that one process holds."""
    if batch_size < 1 or batch_size % process_count:
        below = batch_size - batch_size % process_count
        raise DataError(
            f"a batch of {batch_size} cannot be shared by {process_count} processes: "
            f"set train.batch_size to {max(below, process_count)} or {below + process_count}"
        )
    local = batch_size // process_count
    return slice(process_index * local, (process_index + 1) * local)


def _read_options(num_threads: int, prefetch: int) -> grain.ReadOptions:
    return grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch)
