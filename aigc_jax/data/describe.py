"""What a data set's examples are, without having it: TFDS knows by name, of others we do."""

import tensorflow_datasets as tfds

from aigc_jax.data import datasets, mixtures, pairs, prepare
from aigc_jax.data.images import DataError
from aigc_jax.family import DataSpec, Field


def describe(
    name: str,
    *,
    train_split: str = "train",
    data_dir: str | None = None,
    channels: int | None = None,
    image_size: int = 0,
    crop: int = 0,
    classes: int | None = None,
    shape: tuple[int, ...] | None = None,
) -> DataSpec:
    """The spec of a data set that nothing is read of; `sizes` are unknown, and empty.

    Args:
      name, data_dir, channels, image_size, crop: as of `datasets.load`.
      train_split: "trainA+trainB" has a second domain.
      classes, shape: in place of what is known: of a folder, or of images of no common size.

    Raises:
      DataError: no data set of that name, or nothing says what its images are.
    """
    if name in mixtures.MIXTURES:
        return DataSpec({"x": Field("points", shape or mixtures.SHAPE)}, {}, {})
    own, labels = (None, 0) if name == "folder" else _known(name, data_dir)
    side, depth = image_size or crop, channels or (own[2] if own and own[2] else 3)
    found = shape or ((side, side, depth) if side else own and (*own[:2], depth))
    if not found or None in found:
        raise DataError(
            f"nothing says how large the images of {name!r} are: give --image-shape=64,64,3, or "
            "set data.image_size"
        )
    labels = labels if classes is None else classes
    field = Field("image", tuple(found))
    if len(pairs.parts(train_split)) > 1:
        return DataSpec({"x": field, "other": field}, {}, {})
    return DataSpec({"x": field}, {"label": Field("label", (), labels)} if labels else {}, {})


def _known(name: str, data_dir: str | None) -> tuple[tuple[int | None, ...], int]:
    """(height, width, channels) of images, None where they differ, and how many classes."""
    if name == datasets.STACKED:
        (height, width, _), classes = _known("mnist", data_dir)
        return (height, width, 3), classes**3
    datasets.check_name(name, data_dir)
    features = dict(prepare.make_builder(name, data_dir).info.features)
    if not isinstance(features.get("image"), tfds.features.Image):
        raise DataError(f"{name!r} has no feature 'image', only {', '.join(features)}")
    label = features.get("label")
    labelled = isinstance(label, tfds.features.ClassLabel)
    height, width, channels = features["image"].shape
    return (height, width, 1 if channels == 1 else 3), label.num_classes if labelled else 0
