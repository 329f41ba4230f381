"""Pictures that go with samples and with evaluations: codes at work, copies of training data."""

import pathlib
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from aigc_jax import modalities
from aigc_jax.evaluation.comparison import ImageComparison
from aigc_jax.family import Cond, Drawing, Family, Variables
from aigc_jax.modalities.image import save_image
from aigc_jax.sampling.driver import cond_of, sample_keys
from aigc_jax.training import sharding

FIGURE_SAMPLES = 16  # samples that figures are made from
COLUMNS = 10  # of the ways between them
NEAREST_SHOWN = 12
WAYS = "Interpolations: on the way from one sample to another"
NEAREST = (
    "Top: the samples nearest to training images, nearest first. Middle: the nearest training "
    "image of each. Bottom: its nearest held-out image."
)


class Picture(NamedTuple):
    """A picture to be saved.

    Attributes:
      word: what its file's name ends with.
      caption: what it shows.
      image: the picture.
    """

    word: str
    caption: str
    image: Image.Image


def figures(family: Family, variables: Variables, mesh: Any, seed: int, kind: str) -> list[Picture]:
    """Ways between 16 samples, where there are such, and what `Views.figures` shows of them.

    [] of a family without, and of data whose samples are no pictures one by one.

    Args:
      variables: prepared, as samples take them.
      seed: of the samples.
      kind: of the data, a name of `modalities`.
    """
    if family.views is None or family.views.figures is None or modalities.of(kind).save is None:
        return []
    given = variables, *_inputs(family, mesh, seed)
    found = {}
    if family.drawing.between:
        found[WAYS] = jax.jit(partial(interpolations, family.drawing))(*given)
    found = sharding.fetch({**found, **jax.jit(family.views.figures)(*given)})
    picture = modalities.of(kind).picture
    return [
        Picture(
            _word(caption),
            caption,
            picture(samples.reshape(-1, *samples.shape[2:]), columns=samples.shape[1]),
        )
        for caption, samples in found.items()
    ]


def figure_paths(
    family: Family, variables: Variables, mesh: Any, folder: pathlib.Path, name: str
) -> list[pathlib.Path]:
    """Where `save` writes the pictures of `figures`, of a family and data that have them.

    Nothing is drawn: the captions are there when the figures are traced.
    """
    captions = list(jax.eval_shape(family.views.figures, variables, *_inputs(family, mesh, 0)))
    captions += [WAYS] * bool(family.drawing.between)
    return [_path(folder, name, _word(caption)) for caption in captions]


def _inputs(family: Family, mesh: Any, seed: int) -> tuple[jax.Array, Cond]:
    """Keys and condition of the samples that figures are made from."""
    index = np.arange(-(-FIGURE_SAMPLES // mesh.size) * mesh.size)
    return sample_keys(mesh, seed, index), cond_of(mesh, index, labels_of(family))


def _word(caption: str) -> str:
    return caption.split(":")[0].lower()


def _path(folder: pathlib.Path, name: str, word: str) -> pathlib.Path:
    return folder / f"{name}-{word}.png"


def interpolations(
    drawing: Drawing, variables: Variables, keys: jax.Array, cond: Cond
) -> jax.Array:
    """Ways from the first half of samples to the second, [rows, columns, ...]; see `Drawing`."""
    rows = min(len(keys), FIGURE_SAMPLES) // 2
    carry = drawing.start(variables, keys, cond)
    begin = jax.tree.map(lambda a: a[:rows], carry)
    end = jax.tree.map(lambda a: a[rows : 2 * rows], carry)

    def at(share: jax.Array) -> jax.Array:
        return drawing.finish(variables, drawing.between(begin, end, share))

    return jax.vmap(at, out_axes=1)(jnp.linspace(0.0, 1.0, COLUMNS))


def labels_of(family: Family) -> range | None:
    """Every class in turn, for samples of a family that may be asked for one; None for others."""
    label = family.drawing.conditions.get("label") if family.drawing else None
    return range(label.classes) if label else None


def nearest(comparison: ImageComparison, samples: np.ndarray, kind: str) -> Picture:
    """The samples nearest to training images, above these and the nearest held-out ones.

    `samples` are as stored, [n, ...], those that `comparison` is of.
    """
    found, modality = comparison.nearest, modalities.of(kind)
    order = np.argsort(found.distances[:, 0])[:NEAREST_SHOWN]
    rows = [
        samples[order],
        comparison.reference.fetch(found.train[order])["x"],
        comparison.held_out.fetch(found.test[order])["x"],
    ]
    shown = modality.to_model(np.concatenate(rows))
    return Picture("nearest", NEAREST, modality.picture(shown, columns=len(order)))


def save(pictures: Iterable[Picture], folder: pathlib.Path, name: str) -> dict[str, pathlib.Path]:
    """Writes pictures as `folder/name-word.png`; returns {caption: path}."""
    written = {}
    for picture in pictures:
        written[picture.caption] = _path(folder, name, picture.word)
        save_image(picture.image, written[picture.caption])
    return written
