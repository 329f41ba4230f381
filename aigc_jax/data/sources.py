"""Random access to examples: held in memory as one array, or read and decoded on demand."""

import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import tqdm

from aigc_jax.data import images
from aigc_jax.data.images import DataError, Record

Reader = Callable[[Sequence[int]], list[Record]]
Decoder = Callable[[Record], np.ndarray]
_CHUNK = 256  # images that a thread decodes at a time


class CorruptImage(DataError):
    """An image that cannot be decoded; `name` is the file's, or the record's place in its split."""

    def __init__(self, name: str, error: Exception) -> None:
        reason = " ".join(str(error).split()) or type(error).__name__
        super().__init__(
            f"corrupt image {name} ({reason}): --config.data.on_corrupt=skip leaves such images out"
        )
        self.name = name


class Source(Protocol):
    """Random access to the examples of one split."""

    def __len__(self) -> int: ...

    def fetch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """int [B] -> {"x": [B, ...], "label": int32 [B] where there are labels}.

        x is as stored: images uint8 [B, H, W, C], points float32 [B, 2].
        """


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """A split held in memory.

    Attributes:
      x: [N, ...] as stored: images uint8 [N, H, W, C], points float32 [N, 2].
      labels: int32 [N], or None.
    """

    x: np.ndarray
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.x)

    def fetch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return _columns(self.x[indices], None if self.labels is None else self.labels[indices])


@dataclasses.dataclass(frozen=True)
class StreamedSource:
    """A split that is read and decoded on demand; `kept` are the positions that it is made of."""

    read: Reader
    decode: Decoder
    kept: np.ndarray

    def __len__(self) -> int:
        return len(self.kept)

    def fetch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        records = self.read(self.kept[indices])
        return _columns(np.stack([self.decode(record) for record in records]), _labels(records))


@dataclasses.dataclass(frozen=True)
class StackedSource:
    """Images whose channels are grey, labelled images of another split, stacked when asked for.

    Attributes:
      source: the split, uint8 [N, H, W, 1] with labels 0..classes-1.
      parts: int [M, C], the images that the channels of each of the M images are.
      classes: of `source`; a stack's label has the labels of its channels as digits in this base,
        the first one's highest.
    """

    source: Source
    parts: np.ndarray
    classes: int

    def __len__(self) -> int:
        return len(self.parts)

    def fetch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        parts = self.parts[indices]
        found = self.source.fetch(parts.reshape(-1))
        pixels = found["x"].reshape(*parts.shape, *found["x"].shape[1:3])
        places = self.classes ** np.arange(parts.shape[1])[::-1]
        labels = found["label"].reshape(parts.shape) @ places
        return _columns(np.ascontiguousarray(np.moveaxis(pixels, 1, -1)), labels.astype(np.int32))


def decoder(shape: tuple[int, int, int], *, image_size: int, crop: int, upright: bool) -> Decoder:
    """A function from a record to its pixels, uint8 of `shape`; options as in images.to_array."""

    def decode(record: Record) -> np.ndarray:
        try:
            array = images.to_array(
                record.data,
                shape[-1],
                image_size=image_size,
                crop=crop,
                upright=upright,
            )
        except images.CropError as error:
            raise DataError(f"{record.name}: {error}") from error
        except Exception as error:  # Pillow's formats each fail with exceptions of their own
            raise CorruptImage(record.name, error) from error
        if array.shape != shape:
            sizes = " and ".join(f"{a.shape[1]}x{a.shape[0]}" for a in (array, np.empty(shape)))
            raise DataError(f"{record.name}: images of {sizes} pixels: set data.image_size")
        return array

    return decode


def decode_all(
    label: str,
    size: int,
    read: Reader,
    decode: Decoder,
    shape: tuple[int, int, int],
    skip: bool,
) -> ArraySource:
    """Decodes a split into memory; `skip` leaves out what is corrupt, and says so."""
    out = np.empty((size, *shape), np.uint8)
    labels: list[int | None] = [None] * size

    def work(index: int, record: Record) -> None:
        labels[index] = record.label
        out[index] = decode(record)

    broken = _for_each(f"decoding {label}", size, read, work, skip)
    if broken:
        kept = np.setdiff1d(np.arange(size), broken)
        out, labels = out[kept], [labels[i] for i in kept]
    return ArraySource(out, None if None in labels else np.asarray(labels, np.int32))


def intact(
    label: str,
    size: int,
    read: Reader,
    decode: Decoder,
) -> np.ndarray:
    """The positions of the images that decode, found once: a batch stays a function of its step."""
    broken = _for_each(f"checking {label}", size, read, lambda _, record: decode(record), True)
    return np.setdiff1d(np.arange(size), broken)


def _for_each(
    label: str,
    size: int,
    read: Reader,
    work: Callable[[int, Record], object],
    skip: bool,
) -> list[int]:
    """Runs `work` on every record, in threads; returns where the corrupt ones are, if allowed."""
    broken: list[tuple[int, str]] = []

    def chunk(start: int) -> int:
        indices = range(start, min(start + _CHUNK, size))
        for index, record in zip(indices, read(indices), strict=True):
            try:
                work(index, record)
            except CorruptImage as error:
                if not skip:
                    raise
                broken.append((index, error.name))
        return len(indices)

    with (
        concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm.tqdm(total=size, desc=label, unit=" images", delay=1.5, disable=None) as bar,
    ):
        futures = [pool.submit(chunk, start) for start in range(0, size, _CHUNK)]
        try:
            for future in concurrent.futures.as_completed(futures):
                bar.update(future.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if broken:
        broken.sort()
        names = ", ".join(name for _, name in broken[:10])
        more = f" and {len(broken) - 10} more" if len(broken) > 10 else ""
        print(f"{label}: left out {len(broken)} corrupt of {size}: {names}{more}", flush=True)
    return [index for index, _ in broken]


def common_size(
    name: str, sizes: dict[str, int], readers: dict[str, Reader], skip: bool
) -> tuple[int, int]:
    """The one (height, width) of all images, from their headers; a DataError where they differ."""
    first_of: dict[tuple[int, int], str] = {}  # {size: the first image that has it}

    def measure(_: int, record: Record) -> None:
        try:
            first_of.setdefault(images.pixels(record.data), record.name)
        except Exception as error:
            raise CorruptImage(record.name, error) from error

    for split, size in sizes.items():
        _for_each(f"measuring {name} {split}", size, readers[split], measure, skip)
    if len(first_of) > 1:
        (a, first), (b, second) = list(first_of.items())[:2]
        raise DataError(
            f"{name!r} has images of several sizes ({first}: {a[1]}x{a[0]}, {second}: {b[1]}x{b[0]}"
            "): set data.image_size"
        )
    if not first_of:
        raise DataError(f"{name}: not one image could be decoded")
    return next(iter(first_of))


def _labels(records: list[Record]) -> np.ndarray | None:
    labels = [record.label for record in records]
    return None if None in labels else np.asarray(labels, np.int32)


def _columns(x: np.ndarray, labels: np.ndarray | None) -> dict[str, np.ndarray]:
    return {"x": x} if labels is None else {"x": x, "label": labels}
