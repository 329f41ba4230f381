"""Data sets by name: any image data set of TFDS, the embedded `digits`, a `folder` of one's own."""

import difflib
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from aigc_jax.data import digits, images, prepare, sources
from aigc_jax.data.images import DataError, Record
from aigc_jax.data.sources import Reader, Source

MEMORY_LIMIT = 2 << 30  # bytes of decoded pixels up to which a data set is held in memory


class DataSpec(NamedTuple):
    """All that a family sees of its data."""

    image_shape: tuple[int, int, int]  # height, width, channels
    num_classes: int  # 0: no labels
    splits: dict[str, int]  # how many images each holds


class Dataset(NamedTuple):
    """What is known of a data set, and a source for each of its splits."""

    spec: DataSpec
    sources: dict[str, Source]


class _Collection(NamedTuple):
    """Splits that are not decoded yet: how many records each has, and a reader for each."""

    sizes: dict[str, int]
    readers: dict[str, Reader]
    channels: int
    num_classes: int
    native: tuple[int, int] | None  # height and width, where they are known beforehand
    upright: bool = False


def load(
    name: str,
    *,
    data_dir: str | None = None,
    path: str | None = None,
    image_size: int = 0,
    crop: int = 0,
    in_memory: bool | None = None,
    on_corrupt: str = "raise",
    splits: Sequence[str] | None = None,
) -> Dataset:
    """Opens a data set, preparing it first where it must.

    `name` is `digits`, `folder` (with `path`, a folder or .zip, and `image_size`), or a TFDS name
    such as `cifar10` or `cycle_gan/maps`, kept in `data_dir` (None: TFDS's own default). A central
    square of `crop` pixels is cut out, the shorter side then resized to `image_size` and the longer
    one cropped; 0 leaves either out. `in_memory` None holds in memory what decodes to under 2 GiB.
    `on_corrupt` "skip" leaves broken images out, at the price of decoding all of them at the start
    where they are streamed. `splits` None opens every split. Raises DataError.
    """
    if on_corrupt not in ("raise", "skip"):
        raise DataError(f"on_corrupt={on_corrupt!r} is neither 'raise' nor 'skip'")
    own = name == "folder"
    collection = _open_folder(path, image_size) if own else _open_tfds(name, data_dir)
    chosen = list(collection.sizes if splits is None else splits)
    for split in chosen:
        if split not in collection.sizes:
            raise DataError(
                f"{name!r} has no split {split!r}: it has {', '.join(collection.sizes)}"
            )
    collection = collection._replace(sizes={split: collection.sizes[split] for split in chosen})

    skip = on_corrupt == "skip"
    if image_size or crop:
        side = image_size or crop
        shape = (side, side, collection.channels)
    else:
        native = collection.native or sources.common_size(
            name, collection.sizes, collection.readers, skip
        )
        shape = (*native, collection.channels)
    decode = sources.decoder(shape, image_size=image_size, crop=crop, upright=collection.upright)
    if in_memory is None:
        in_memory = sum(collection.sizes.values()) * int(np.prod(shape)) < MEMORY_LIMIT

    opened: dict[str, Source] = {}
    for split, size in collection.sizes.items():
        read, label = collection.readers[split], f"{name} {split}"
        if in_memory:
            opened[split] = sources.decode_all(label, size, read, decode, shape, skip)
        else:
            kept = sources.intact(label, size, read, decode) if skip else np.arange(size)
            opened[split] = sources.StreamedSource(read, decode, kept)
        if not len(opened[split]):
            raise DataError(f"{label}: not one image could be decoded")
    sizes = {split: len(source) for split, source in opened.items()}
    return Dataset(DataSpec(shape, collection.num_classes, sizes), opened)


def _open_folder(path: str | None, image_size: int) -> _Collection:
    if not path:
        raise DataError("data set 'folder' needs data.path, a folder or .zip of images")
    if not image_size:
        raise DataError("data set 'folder' needs data.image_size, the side of its square images")
    folder = images.open_folder(path)
    parts = images.folder_splits(folder)
    return _Collection(
        sizes={split: len(positions) for split, positions in parts.items()},
        readers={s: images.folder_reader(folder, positions) for s, positions in parts.items()},
        channels=3,
        num_classes=folder.num_classes,
        native=None,
        upright=True,
    )


def _open_tfds(name: str, data_dir: str | None) -> _Collection:
    data_dir = data_dir and os.path.expanduser(data_dir)
    _check_name(name, data_dir)
    builder = prepare.make_builder(name, data_dir)
    if not prepare.is_prepared(builder):
        try:
            prepare.prepare(name, data_dir)
        except OSError as error:
            if name != prepare.DIGITS:
                raise
            print(f"digits: {error}; they are taken from scikit-learn instead", flush=True)
            return _open_digits()
        builder = prepare.make_builder(name, data_dir)
    features = dict(builder.info.features)
    if not isinstance(features.get("image"), tfds.features.Image):
        raise DataError(f"{name!r} has no feature 'image', only {', '.join(features)}")
    if features["image"].np_dtype != np.uint8:
        raise DataError(f"{name!r} holds {features['image'].np_dtype} images, not uint8 ones")
    labelled = isinstance(features.get("label"), tfds.features.ClassLabel)
    wanted = tfds.features.FeaturesDict(
        {key: features[key] for key in ("image", "label") if key == "image" or labelled}
    )
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    # Splits without one example have no files to open.
    sizes = {s: int(info.num_examples) for s, info in builder.info.splits.items()}
    sizes = {split: size for split, size in sizes.items() if size}
    height, width, channels = features["image"].shape
    return _Collection(
        sizes=sizes,
        readers={
            s: _tfds_reader(name, s, builder.as_data_source(s, deserialize_method=raw), wanted)
            for s in sizes
        },
        channels=1 if channels == 1 else 3,
        num_classes=features["label"].num_classes if labelled else 0,
        native=(height, width) if height and width else None,
    )


def _tfds_reader(
    name: str, split: str, source: Sequence[bytes], features: tfds.features.FeaturesDict
) -> Reader:
    skip_decoding = {"image": tfds.decode.SkipDecoding()}

    def read(indices: Sequence[int]) -> list[Record]:
        # All records in one call: one by one costs ten times as much.
        rows = source.__getitems__([int(i) for i in indices])
        records = []
        for index, row in zip(indices, rows, strict=True):
            fields = features.deserialize_example_np(row, decoders=skip_decoding)
            records.append(Record(f"{name} {split}[{index}]", fields["image"], fields.get("label")))
        return records

    return read


def _open_digits() -> _Collection:
    """The digits with no disk, through the same decoder as all the rest."""
    encoded = {split: digits.records(split) for split in ("train", "test")}

    def reader(records: list[Record]) -> Reader:
        return lambda indices: [records[int(i)] for i in indices]

    return _Collection(
        sizes={split: len(records) for split, records in encoded.items()},
        readers={split: reader(records) for split, records in encoded.items()},
        channels=1,
        num_classes=digits.NUM_CLASSES,
        native=(8, 8),
    )


def _check_name(name: str, data_dir: str | None) -> None:
    """Raises a DataError with the near misses unless TFDS knows the name or its folder is there."""
    base, config = re.fullmatch("([^/:]*)/?([^:]*).*", name).groups()
    if base and data_dir and os.path.isdir(os.path.join(data_dir, base, config)):
        return
    known = {*tfds.list_builders(with_community_datasets=False), prepare.DIGITS, "folder"}
    if base not in known:
        _fail_with_near_misses(name, base, known, "names are TFDS's, digits, folder")
    if config and config not in (configs := list(tfds.builder_cls(base).builder_configs)):
        _fail_with_near_misses(name, config, configs, f"{base} has {configs or 'none'}")


def _fail_with_near_misses(name: str, part: str, known: list[str], otherwise: str) -> None:
    near = difflib.get_close_matches(part, known, n=4)
    hint = f"did you mean {' or '.join(near)}?" if near else otherwise
    raise DataError(f"unknown data set {name!r}: {hint}")
