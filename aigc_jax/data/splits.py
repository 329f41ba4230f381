"""Parts of splits by name, as TFDS has them: `train[:1000]`, `train[-500:]`, `train[10%:20%]`."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from aigc_jax.data.images import DataError

_BOUND = r"(-?[0-9]+(?:_[0-9]+)*|-?[0-9]+(?:\.[0-9]+)?%)?"
_SLICE = re.compile(rf"\[{_BOUND}:{_BOUND}\]")


class Part(NamedTuple):
    """Examples start..stop-1 of a whole split."""

    whole: str
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


def choose(
    name: str, sizes: Mapping[str, int], splits: Sequence[str] | None, about: str = ""
) -> dict[str, Part]:
    """What each of the splits that are asked for is a part of; None asks for every whole one.

    Args:
      name: of the data set.
      sizes: {split: how many examples it holds}.
      about: what was found of the data set, for the message of a split that it has not.

    Raises:
      DataError: an unknown split, and a part of one that is no part or has no example.
    """
    wanted = sizes if splits is None else splits
    return {split: _part(name, sizes, split, about) for split in wanted}


def _part(name: str, sizes: Mapping[str, int], split: str, about: str) -> Part:
    whole, bracket, rest = split.partition("[")
    bounds = _SLICE.fullmatch(bracket + rest)
    units = {bound.endswith("%") for bound in (bounds.groups() if bounds else ()) if bound}
    if bracket and len(units) != 1:
        raise DataError(
            f"{split!r} is no slice of a split: write such as {whole}[:100], {whole}[-100:] or "
            f"{whole}[10%:20%]"
        )
    if whole not in sizes:
        found = f"; {about}" if about else ""
        raise DataError(f"{name!r} has no split {whole!r}: it has {', '.join(sizes)}{found}")
    size = sizes[whole]
    start, stop = (_position(bound, size) for bound in (bounds.groups() if bounds else ("", "")))
    part = Part(whole, 0 if start is None else start, size if stop is None else stop)
    if not 0 <= part.start < part.stop <= size:
        raise DataError(f"{split!r} cannot be taken: {whole!r} of {name!r} has {size} examples")
    return part


def _position(bound: str | None, size: int) -> int | None:
    """Where a bound lies in a split of `size` examples; percentages are rounded, as TFDS does."""
    if not bound:
        return None
    percent = bound.endswith("%")
    position = round(float(bound[:-1]) * size / 100) if percent else int(bound)
    return position + size if bound.startswith("-") else position


def overlap(one: Sequence[Part], other: Sequence[Part]) -> int:
    """How many examples lie in both: in any part of the one and any of the other."""
    return sum(
        max(0, min(a.stop, b.stop) - max(a.start, b.start))
        for a in one
        for b in other
        if a.whole == b.whole
    )
