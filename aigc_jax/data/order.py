"""In which order training goes through a split: a function of (seed, position), by whole epochs."""

import functools

import numpy as np


class Order:
    """The endless order of `size` examples, shuffled anew every epoch; none is dropped.

    An epoch's order is drawn whole, so that an index costs nanoseconds: asked for one by one they
    bound small models. NumPy never changes the numbers of its `RandomState`, so that a run goes on
    in the same order with any version of it.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        # Batches meet two epochs at most, unless they are larger than one; threads run ahead.
        self._epoch = functools.lru_cache(maxsize=4)(functools.partial(shuffled, size, seed))

    def indices(self, start: int, count: int) -> np.ndarray:
        """int64 [count]: the examples at positions start .. start + count of the endless order."""
        first, last = start // self.size, (start + count - 1) // self.size
        epochs = [self._epoch(number) for number in range(first, last + 1)]
        begin = start - first * self.size
        return np.concatenate(epochs)[begin : begin + count]


def shuffled(size: int, seed: int, epoch: int) -> np.ndarray:
    """The numbers below `size` in the order of one epoch, int64 [size]; `seed` is below 2^32."""
    words = (seed, epoch & 0xFFFFFFFF, epoch >> 32)
    return np.random.RandomState(words).permutation(size)
