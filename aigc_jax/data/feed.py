"""What a dispatch of training steps is given: examples, or the rows of data on the devices."""

from typing import Any, Protocol

import numpy as np

from aigc_jax.data import loader
from aigc_jax.data.pairs import Pairs
from aigc_jax.data.sources import ArraySource, Source

ON_DEVICE = 2**30  # bytes of training data that are held on every device


class Feed(Protocol):
    """What dispatches are given, by step; close it in the end."""

    def take(self, step: int, count: int) -> dict[str, np.ndarray]:
        """Of `count` steps from `step` on, leaves [count, batches_per_step, B, ...].

        Steps are asked for in order, each once.
        """

    def close(self) -> None: ...


class Examples:
    """Examples as loaded, read ahead by threads; arguments as of `loader.batches`."""

    def __init__(self, source: Source, start: int, **of_plan: Any) -> None:
        self._batches = loader.batches(source, start=start, **of_plan)

    def take(self, step: int, count: int) -> dict[str, np.ndarray]:
        found = [next(self._batches) for _ in range(count)]
        if count == 1:
            return {name: x[None] for name, x in found[0].items()}
        return {name: np.stack([batch[name] for batch in found]) for name in found[0]}

    def close(self) -> None:
        self._batches.close()


class Rows:
    """The rows of data on the devices, int32 by domain ("x", "other"); arguments of `Plan`."""

    def __init__(self, source: Source, **of_plan: Any) -> None:
        self._plan = loader.Plan(source, **of_plan)

    def take(self, step: int, count: int) -> dict[str, np.ndarray]:
        rows = self._plan.rows(step, count)
        return {name: x.astype(np.int32) for name, x in zip(("x", "other"), rows, strict=False)}

    def close(self) -> None:
        pass


def opened(source: Source, start: int, **of_plan: Any) -> tuple[dict[str, np.ndarray], Feed]:
    """(columns [N, ...] of all examples, for every device, and the feed of their rows), or ({}, the
    feed of examples) where `columns` leaves them on the host; from step `start` on.

    Arguments as of `loader.batches`.
    """
    found = columns(source)
    return found, Rows(source, **of_plan) if found else Examples(source, start, **of_plan)


def columns(source: Source) -> dict[str, np.ndarray]:
    """The whole of a source, if it is in memory and small enough for every device; else {}."""
    if isinstance(source, Pairs):
        parts = (source.a, source.b)
        if not all(isinstance(part, ArraySource) for part in parts):
            return {}
        found = {"x": source.a.x, "other": source.b.x}
    elif isinstance(source, ArraySource):
        found = source.fetch(slice(None))
    else:
        return {}
    return found if sum(x.nbytes for x in found.values()) <= ON_DEVICE else {}
