"""Data sets by name: any image data set of TFDS, a few of our own, a `folder` of one's own."""

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from aigc_jax.checks import OneOf, Whole
from aigc_jax.data import digits, images, mixtures, pairs, prepare, sources
from aigc_jax.data.images import DataError, Record
from aigc_jax.data.sources import Reader, Source
from aigc_jax.family import DataSpec, Field

MEMORY_LIMIT = 2 << 30  # bytes of decoded pixels up to which a data set is held in memory
STACKED = "stacked_mnist"  # its sizes are PacGAN's (Lin et al. 2018, arXiv:1712.04086, section 4.2)
STACKED_SIZES = {"train": 128_000, "test": 26_000}
OWN = (prepare.DIGITS, "folder", STACKED, *mixtures.MIXTURES)


class Dataset(NamedTuple):
    """What is known of a data set, and a source for each of its splits."""

    spec: DataSpec
    sources: dict[str, Source]


class _Collection(NamedTuple):
    """Splits that are not decoded yet: how many records each has, and a reader for each."""

    sizes: dict[str, int]
    readers: dict[str, Reader]
    channels: int
    classes: int
    native: tuple[int, int] | None  # height and width, where they are known beforehand
    upright: bool = False


def load(
    name: str,
    *,
    data_dir: str | None = None,
    path: str | None = None,
    image_size: Whole = 0,
    crop: Whole = 0,
    in_memory: bool | None = None,
    on_corrupt: Annotated[str, OneOf(("raise", "skip"))] = "raise",
    splits: Sequence[str] | None = None,
) -> Dataset:
    """Opens a data set, preparing it first where it must.

    Args:
      name: a TFDS name such as `cifar10` or `cycle_gan/maps`; `digits`; `folder`; `stacked_mnist`,
        images of 1,000 classes whose channels are three digits of MNIST; or `ring` or `grid`,
        points of the plane, held in memory, without size and crop.
      data_dir: where TFDS keeps its data; None is its own default.
      path: of `folder`: a folder or .zip of images.
      image_size: the shorter side is resized to it, and the longer one cropped; 0 leaves that out.
      crop: pixels of a central square that is cut out before; 0 leaves that out.
      in_memory: whether data are held in memory; None does so up to 2 GiB of decoded pixels.
      on_corrupt: "skip" leaves broken images out, at the price of decoding all of them at the start
        where they are streamed.
      splits: None opens every split. `train[:100]` is a split of the first 100 images of `train`,
        broken ones counted; `trainA+trainB` is two of them as `Pairs`.

    Raises:
      DataError: it cannot be opened as asked.
    """
    if on_corrupt not in ("raise", "skip"):
        raise DataError(f"on_corrupt={on_corrupt!r} is neither 'raise' nor 'skip'")
    options = {"image_size": image_size, "crop": crop, "in_memory": in_memory}
    parts = {split: pairs.parts(split) for split in splits or ()}
    if any(len(names) > 1 for names in parts.values()):
        options |= {"data_dir": data_dir, "path": path, "on_corrupt": on_corrupt}
        single = tuple(dict.fromkeys(part for names in parts.values() for part in names))
        return _pair(load(name, splits=single, **options), parts)
    if name in mixtures.MIXTURES:
        if image_size or crop:
            raise DataError(f"{name!r} has points: leave data.image_size and data.crop at 0")
        return _open_points(name, splits)
    if name == STACKED:
        return _open_stacked(splits, data_dir=data_dir, on_corrupt=on_corrupt, **options)
    own = name == "folder"
    collection = _open_folder(path, image_size) if own else _open_tfds(name, data_dir)
    return _open_images(name, collection, splits, skip=on_corrupt == "skip", **options)


def _open_images(
    name: str,
    collection: _Collection,
    splits: Sequence[str] | None,
    *,
    image_size: int,
    crop: int,
    in_memory: bool | None,
    skip: bool,
) -> Dataset:
    """Opens splits of encoded images: decodes them into memory, or gets ready to stream them."""
    chosen = _choose(name, collection.sizes, splits)
    collection = collection._replace(
        sizes={split: size for split, (_, size) in chosen.items()},
        readers={split: collection.readers[whole] for split, (whole, _) in chosen.items()},
    )
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
    return _dataset(Field("image", shape), collection.classes, opened)


def _dataset(field: Field, classes: int, opened: dict[str, Source]) -> Dataset:
    conditions = {"label": Field("label", (), classes)} if classes else {}
    return Dataset(DataSpec({"x": field}, conditions, _sizes(opened)), opened)


def _sizes(opened: Mapping[str, Source]) -> dict[str, int]:
    return {split: len(source) for split, source in opened.items()}


def _choose(
    name: str, sizes: dict[str, int], splits: Sequence[str] | None
) -> dict[str, tuple[str, int]]:
    """Of each split asked for, which one it is the beginning of, and how many examples it takes."""
    chosen = {}
    for split in sizes if splits is None else splits:
        whole, bracket, rest = split.partition("[")
        first = re.fullmatch(r":([0-9]+)\]", rest)
        if bracket and not first:
            raise DataError(
                f"{split!r} is no slice of a split: write {whole}[:100] for its first 100"
            )
        if whole not in sizes:
            raise DataError(f"{name!r} has no split {whole!r}: it has {', '.join(sizes)}")
        size = int(first[1]) if first else sizes[whole]
        if not 1 <= size <= sizes[whole]:
            raise DataError(
                f"{split!r} cannot be taken: {whole!r} of {name!r} has {sizes[whole]} examples"
            )
        chosen[split] = whole, size
    return chosen


def _open_points(name: str, splits: Sequence[str] | None) -> Dataset:
    chosen = _choose(name, mixtures.SIZES, splits)
    opened = {
        split: sources.ArraySource(mixtures.arrays(name, whole)[:size], None)
        for split, (whole, size) in chosen.items()
    }
    return _dataset(Field("points", mixtures.SHAPE), 0, opened)


def _open_stacked(splits: Sequence[str] | None, **options: Any) -> Dataset:
    """MNIST, held or streamed once, and which of its digits make up each image."""
    chosen = _choose(STACKED, STACKED_SIZES, splits)
    spec, parts = load("mnist", splits=tuple({whole for whole, _ in chosen.values()}), **options)
    opened = {}
    for split, (whole, size) in chosen.items():
        rng = np.random.default_rng(list(STACKED_SIZES).index(whole))
        drawn = rng.integers(len(parts[whole]), size=(STACKED_SIZES[whole], 3))
        opened[split] = sources.StackedSource(parts[whole], drawn[:size], spec.classes)
    return _dataset(Field("image", (*spec.shape[:2], 3)), spec.classes**3, opened)


def _pair(dataset: Dataset, parts: dict[str, tuple[str, ...]]) -> Dataset:
    """Splits as they are and splits of two, by the names of their parts."""
    opened: dict[str, Source] = {}
    for split, names in parts.items():
        found = [dataset.sources[name] for name in names]
        opened[split] = pairs.Pairs(*found) if len(found) == 2 else found[0]
    field = dataset.spec.fields["x"]  # `Pairs` has checked that the domains agree
    return Dataset(DataSpec({"x": field, "other": field}, {}, _sizes(opened)), opened)


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
        classes=folder.classes,
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
        classes=features["label"].num_classes if labelled else 0,
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
        classes=digits.CLASSES,
        native=(8, 8),
    )


def _check_name(name: str, data_dir: str | None) -> None:
    """Raises a DataError with the near misses unless TFDS knows the name or its folder is there."""
    base, config = re.fullmatch("([^/:]*)/?([^:]*).*", name).groups()
    if base and data_dir and os.path.isdir(os.path.join(data_dir, base, config)):
        return
    known = {*tfds.list_builders(with_community_datasets=False), *OWN}
    if base not in known:
        _fail_with_near_misses(name, base, known, f"names are TFDS's, {', '.join(OWN)}")
    if config and config not in (configs := list(tfds.builder_cls(base).builder_configs)):
        _fail_with_near_misses(name, config, configs, f"{base} has {configs or 'none'}")


def _fail_with_near_misses(name: str, part: str, known: list[str], otherwise: str) -> None:
    near = difflib.get_close_matches(part, known, n=4)
    hint = f"did you mean {' or '.join(near)}?" if near else otherwise
    raise DataError(f"unknown data set {name!r}: {hint}")
