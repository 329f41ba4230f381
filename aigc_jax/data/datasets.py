"""Data sets by name: any image data set of TFDS, a few of our own, a `folder` of one's own."""

import difflib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from aigc_jax import files
from aigc_jax.checks import OneOf, Range
from aigc_jax.data import digits, folders, identity, labels, mixtures, pairs, prepare, sources
from aigc_jax.data.identity import Identity
from aigc_jax.data.images import DataError, Record
from aigc_jax.data.sources import Reader, Source
from aigc_jax.data.splits import Part, choose, overlap
from aigc_jax.family import DataSpec, Field

Side = Annotated[int, Range(0, 16_384)]  # pixels; one colour image of that size takes 0.8 GB
MEMORY_LIMIT = 2 << 30  # bytes of decoded pixels up to which a data set is held in memory
STACKED = "stacked_mnist"  # its sizes are PacGAN's (Lin et al. 2018, arXiv:1712.04086, section 4.2)
STACKED_SIZES = {"train": 128_000, "test": 26_000}
OWN = (prepare.DIGITS, "folder", STACKED, *mixtures.MIXTURES)


class Dataset(NamedTuple):
    """What is known of a data set, and a source for each of its splits.

    Attributes:
      spec: all that a family sees of it.
      sources: {split: its examples}.
      parts: {split: what it is of whole splits, one part for each domain}.
      identity: see `data.identity`.
      about: one line that says what was found where it was not known before; else "".
    """

    spec: DataSpec
    sources: dict[str, Source]
    parts: Mapping[str, tuple[Part, ...]] = MappingProxyType({})
    identity: Identity = MappingProxyType({})
    about: str = ""

    def shared(self, one: str, other: str) -> int:
        """How many examples two splits share, whether or not they are the same one."""
        return overlap(*(self.parts.get(split, ()) for split in (one, other)))


class _Collection(NamedTuple):
    """Splits that are not decoded yet: how many records each has, and a reader for each."""

    sizes: dict[str, int]
    readers: dict[str, Reader]
    digests: Callable[[Part], dict[str, str]]  # for the identity of the data
    channels: int
    classes: int
    names: tuple[str, ...]  # of the classes; () where these are but numbers
    native: tuple[int, int] | None  # height and width, where they are known beforehand
    upright: bool = False
    about: str = ""


def load(
    name: str,
    *,
    data_dir: str | None = None,
    path: str | None = None,
    labels_from: str | None = None,
    splits_from: Annotated[str, OneOf(("folders", "names"))] | None = None,
    channels: Annotated[int, OneOf((1, 3))] | None = None,
    image_size: Side = 0,
    crop: Side = 0,
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
      labels_from, splits_from: of `folder`, see `folders.open_folder`.
      channels: 1 or 3, of images; None is 1 where all of them are grey, else 3.
      image_size: the shorter side is resized to it, and the longer one cropped; 0 leaves that out.
      crop: pixels of a central square that is cut out before; 0 leaves that out.
      in_memory: whether data are held in memory; None does so up to 2 GiB of decoded pixels.
      on_corrupt: "skip" leaves broken images out, at the price of decoding all of them at the start
        where they are streamed.
      splits: None opens every split. `train[:100]` is a split of the first 100 images of `train`,
        broken ones counted (see `data.splits`); `trainA+trainB` is two of them as `Pairs`.

    Raises:
      DataError: it cannot be opened as asked.
    """
    if on_corrupt not in ("raise", "skip"):
        raise DataError(f"on_corrupt={on_corrupt!r} is neither 'raise' nor 'skip'")
    if channels not in (None, 1, 3):
        raise DataError(f"data.channels is 1 or 3, not {channels}")
    if name != "folder" and (labels_from or splits_from):
        raise DataError("data.labels_from and data.splits_from are of data.name='folder'")
    if name != "folder" and path is not None:
        raise DataError(f"data.path={path!r} is of data.name='folder', not of {name!r}")
    guessed = {"labels_from": labels_from, "splits_from": splits_from, "channels": channels}
    options = {"image_size": image_size, "crop": crop, "in_memory": in_memory}
    parts = {split: pairs.parts(split) for split in splits or ()}
    if any(len(names) > 1 for names in parts.values()):
        options |= {"data_dir": data_dir, "path": path, "on_corrupt": on_corrupt, **guessed}
        single = tuple(dict.fromkeys(part for names in parts.values() for part in names))
        return _pair(load(name, splits=single, **options), parts)
    if channels and name in (*mixtures.MIXTURES, STACKED):
        raise DataError(f"{name!r} has no other channels than its own: unset data.channels")
    if name in mixtures.MIXTURES:
        if image_size or crop:
            raise DataError(f"{name!r} has points: leave data.image_size and data.crop at 0")
        return _open_points(name, splits)
    if name == STACKED:
        return _open_stacked(splits, data_dir=data_dir, on_corrupt=on_corrupt, **options)
    if name == "folder":
        collection = _open_folder(path, image_size, **guessed)
    else:
        collection = _open_tfds(name, data_dir)
        collection = collection._replace(channels=channels or collection.channels)
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
    parts = choose(name, collection.sizes, splits, collection.about)
    collection = collection._replace(
        sizes={split: part.size for split, part in parts.items()},
        readers={split: _from(collection.readers[p.whole], p.start) for split, p in parts.items()},
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
    label = Field("label", (), collection.classes, collection.names)
    found = _dataset(name, Field("image", shape), label, opened, parts, collection.digests)
    return found._replace(about=collection.about)


def _from(read: Reader, start: int) -> Reader:
    """A reader whose first record is the one at `start`."""
    return (lambda indices: read([start + int(i) for i in indices])) if start else read


def _dataset(
    name: str,
    field: Field,
    label: Field,
    opened: dict[str, Source],
    parts: Mapping[str, Part],
    digests: Callable[[Part], dict[str, str]],
) -> Dataset:
    spec = DataSpec({"x": field}, {"label": label} if label.classes else {}, _sizes(opened))
    splits = {split: {"size": part.size, **digests(part)} for split, part in parts.items()}
    known = {"name": name, "classes": label.classes, "names": list(label.names), "splits": splits}
    return Dataset(spec, opened, {split: (part,) for split, part in parts.items()}, known)


def _sizes(opened: Mapping[str, Source]) -> dict[str, int]:
    return {split: len(source) for split, source in opened.items()}


def _digests(name: str, sizes: Mapping[str, int]) -> Callable[[Part], dict[str, str]]:
    """Of data that their name and version say all about."""
    return lambda part: {"digest": identity.digest([name, sizes[part.whole], part])}


def _open_points(name: str, splits: Sequence[str] | None) -> Dataset:
    parts = choose(name, mixtures.SIZES, splits)
    opened = {
        split: sources.ArraySource(mixtures.arrays(name, part.whole)[part.start : part.stop], None)
        for split, part in parts.items()
    }
    field, digests = Field("points", mixtures.SHAPE), _digests(name, mixtures.SIZES)
    return _dataset(name, field, Field("label", ()), opened, parts, digests)


def _open_stacked(splits: Sequence[str] | None, **options: Any) -> Dataset:
    """MNIST, held or streamed once, and which of its digits make up each image."""
    parts = choose(STACKED, STACKED_SIZES, splits)
    wholes = tuple({part.whole for part in parts.values()})
    spec, mnist, *_ = load("mnist", splits=wholes, **options)
    opened = {}
    for split, (whole, start, stop) in parts.items():
        rng = np.random.default_rng(list(STACKED_SIZES).index(whole))
        drawn = rng.integers(len(mnist[whole]), size=(STACKED_SIZES[whole], 3))
        opened[split] = sources.StackedSource(mnist[whole], drawn[start:stop], spec.classes)
    field, label = Field("image", (*spec.shape[:2], 3)), Field("label", (), spec.classes**3)
    return _dataset(STACKED, field, label, opened, parts, _digests(STACKED, STACKED_SIZES))


def _pair(dataset: Dataset, parts: dict[str, tuple[str, ...]]) -> Dataset:
    """Splits as they are and splits of two, by the names of their parts."""
    opened: dict[str, Source] = {}
    for split, names in parts.items():
        found = [dataset.sources[name] for name in names]
        opened[split] = pairs.Pairs(*found) if len(found) == 2 else found[0]
    field = dataset.spec.fields["x"]  # `Pairs` has checked that the domains agree
    spec = DataSpec({"x": field, "other": field}, {}, _sizes(opened))
    of_splits = {s: tuple(p for n in names for p in dataset.parts[n]) for s, names in parts.items()}
    return dataset._replace(spec=spec, sources=opened, parts=of_splits)


def _open_folder(path: str | None, image_size: int, **options: Any) -> _Collection:
    if not path:
        raise DataError("data set 'folder' needs data.path, a folder or .zip of images")
    if not image_size:
        raise DataError("data set 'folder' needs data.image_size, the side of its square images")
    folder = folders.open_folder(path, **options)
    return _Collection(
        sizes={split: len(chosen) for split, chosen in folder.splits.items()},
        readers={split: folders.reader(folder, chosen) for split, chosen in folder.splits.items()},
        digests=lambda part: folders.digests(folder, part),
        channels=folder.channels,
        classes=folder.classes.count,
        names=folder.classes.names,
        native=None,
        upright=True,
        about=folder.about,
    )


def _open_tfds(name: str, data_dir: str | None) -> _Collection:
    data_dir = data_dir and str(files.expanded(data_dir))
    check_name(name, data_dir)
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
        digests=_digests(builder.info.full_name, sizes),
        channels=1 if channels == 1 else 3,
        classes=features["label"].num_classes if labelled else 0,
        names=labels.telling(features["label"].names) if labelled else (),
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

    sizes = {split: len(records) for split, records in encoded.items()}
    return _Collection(
        sizes=sizes,
        readers={split: reader(records) for split, records in encoded.items()},
        digests=_digests(f"digits/{digits.Digits.VERSION}", sizes),
        channels=1,
        classes=digits.CLASSES,
        names=(),
        native=(8, 8),
    )


def check_name(name: str, data_dir: str | None) -> None:
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
