"""Images to codes and back, or to another domain: arrays, files, whole data sets."""

import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from tqdm import tqdm

from aigc_jax import judging
from aigc_jax.data import augment, images, sources
from aigc_jax.data.datasets import Dataset
from aigc_jax.models import Model
from aigc_jax.training import sharding
from aigc_jax.training.writers import grid, save_image, to_uint8

DIRECTIONS = ("a2b", "b2a")


def encode(
    model: Model, pixels: np.ndarray, labels: np.ndarray | None = None, *, batch_size: int = 64
) -> dict[str, np.ndarray]:
    """The codes of images.

    Args:
      model: as `models.load` gives it.
      pixels: uint8 [n, H, W, C], of the model's own shape.
      labels: int [n], for a conditional model.

    Returns:
      What `Family.codes` gives, such as {"mean": [n, ...], "logvar": [n, ...]}.

    Raises:
      ValueError: images of another shape or type, no encoder, labels that are missing.
    """
    if pixels.dtype != np.uint8:
        raise ValueError(f"images are encoded from bytes 0..255, uint8, not from {pixels.dtype}")
    _check(model, pixels.shape[1:], labels)

    def batches() -> Iterator[Mapping[str, jax.Array]]:
        mesh = sharding.make_mesh()
        size = -(-min(batch_size, len(pixels)) // mesh.size) * mesh.size
        for start in range(0, len(pixels), size):
            index = np.arange(start, start + size)
            kept = np.minimum(index, len(pixels) - 1)
            batch = {"image": pixels[kept], "mask": (index < len(pixels)).astype(np.float32)}
            if labels is not None:
                batch["label"] = np.asarray(labels, np.int32)[kept]
            batch = sharding.put(mesh, batch)
            yield {**batch, "image": augment.to_float(batch["image"])}

    return judging.codes(model.family, model.params, model.extra, batches())


def decode(
    model: Model, z: np.ndarray, labels: np.ndarray | None = None, *, batch_size: int = 64
) -> np.ndarray:
    """Images uint8 [n, H, W, C] of codes z [n, ...], such as `encode` calls "mean"."""
    _check(model, model.spec.image_shape, labels)
    run, parts = jax.jit(model.family.decode), []
    for start in range(0, len(z), batch_size):
        chosen = slice(start, start + batch_size)
        label = None if labels is None else np.asarray(labels, np.int32)[chosen]
        parts.append(to_uint8(sharding.fetch(run(model.params, model.extra, z[chosen], label))))
    return np.concatenate(parts)


def encode_split(model: Model, config: Mapping[str, Any], dataset: Dataset, split: str) -> dict:
    """The codes of a split, and what latent diffusion needs to know of them.

    Returns:
      {"mean": [N, ...], "logvar": [N, ...], "label": int [N] where the data have labels,
      "shift": float, "scale": float}: (z - shift) * scale has mean 0 and deviation 1 (Rombach et
      al. 2022, arXiv:2112.10752, appendix G), z being drawn from the posterior.
    """
    _check(model, dataset.spec.image_shape, True)
    mesh = sharding.make_mesh()
    batches = judging.examples(config, dataset, mesh, split=split, bar=True)
    found = dict(judging.codes(model.family, model.params, model.extra, batches))
    variance = found["mean"].var(dtype=np.float64) + np.exp(found["logvar"]).mean(dtype=np.float64)
    found["shift"] = np.float32(found["mean"].mean(dtype=np.float64))
    found["scale"] = np.float32(variance**-0.5)
    if dataset.spec.num_classes:
        source = dataset.sources[split]
        found["label"] = source.fetch(np.arange(len(source)))["label"]
    return found


def translate(
    model: Model, pixels: np.ndarray, direction: str, *, batch_size: int = 64
) -> np.ndarray:
    """Images uint8 [n, H, W, C] in the other domain; `direction` is "a2b" or "b2a".

    Raises:
      ValueError: another direction, images of another shape, a model of one domain.
    """
    _check_translates(model, pixels.shape[1:], direction)
    run, parts = jax.jit(model.family.translate, static_argnums=3), []
    size = min(batch_size, len(pixels))
    for start in range(0, len(pixels), size):
        # The last batch is filled up, so that one compilation serves all.
        part = pixels[np.minimum(np.arange(start, start + size), len(pixels) - 1)]
        found = run(model.params, model.extra, augment.to_float(jnp.asarray(part)), direction)
        parts.append(to_uint8(sharding.fetch(found)))
    return np.concatenate(parts)[: len(pixels)]


def denoise(
    model: Model, folder: str | pathlib.Path, output: str | pathlib.Path, *, batch_size: int = 64
) -> pathlib.Path:
    """Decodes the mean code of every image of a folder or .zip: what a denoising model is for.

    Returns and raises as `_each_file`; ValueError also for a model without an encoder or one that
    needs labels.
    """
    _check(model, model.spec.image_shape, None)

    def restored(given: np.ndarray) -> np.ndarray:
        code = encode(model, given, batch_size=batch_size)["mean"]
        return decode(model, code, batch_size=batch_size)

    return _each_file(model, folder, output, restored, "denoising", batch_size)


def translate_folder(
    model: Model,
    folder: str | pathlib.Path,
    output: str | pathlib.Path,
    direction: str,
    *,
    batch_size: int = 64,
) -> pathlib.Path:
    """Takes every image of a folder or .zip to the other domain.

    Returns and raises as `_each_file`, and raises as `translate`.
    """
    _check_translates(model, model.spec.image_shape, direction)

    def translated(given: np.ndarray) -> np.ndarray:
        return translate(model, given, direction, batch_size=batch_size)

    return _each_file(model, folder, output, translated, "translating", batch_size)


def _each_file(
    model: Model,
    folder: str | pathlib.Path,
    output: str | pathlib.Path,
    change: Callable[[np.ndarray], np.ndarray],
    doing: str,
    batch_size: int,
) -> pathlib.Path:
    """Puts every image of a folder or .zip through `change`, uint8 [n, H, W, C] to the same.

    Images are brought to the model's size. `output` gets a PNG for each, by the same name, and
    `compared.png`, up to 16 of them above what became of them; its path is returned.

    Raises:
      ValueError: a folder without images, a broken image.
    """
    height, width, _ = model.spec.image_shape
    try:
        found = images.open_folder(str(folder))
    except images.DataError as error:
        raise ValueError(f"{error}".replace("set data.path", "set --input")) from error
    if height != width:
        raise ValueError(f"images are brought to squares, but the model's are {height}x{width}")
    read = sources.decoder(model.spec.image_shape, image_size=height, crop=0, upright=True)
    output, first = pathlib.Path(output), None
    with tqdm(total=len(found.names), unit="img", desc=doing, disable=None) as bar:
        for start in range(0, len(found.names), batch_size):
            names = found.names[start : start + batch_size]
            given = np.stack([read(images.Record(n, found.read(n), None)) for n in names])
            changed = change(given)
            for name, image in zip(names, changed, strict=True):
                picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
                save_image(picture, (output / name).with_suffix(".png"))
            first = (given[:16], changed[:16]) if first is None else first
            bar.update(len(names))
    shown = np.concatenate(first).astype(np.float32) / 127.5 - 1
    path = output / "compared.png"
    save_image(grid(shown, columns=len(first[0])), path)
    return path


def _check(model: Model, shape: tuple[int, ...], labels: Any) -> None:
    if model.family.codes is None or model.family.decode is None:
        raise ValueError(f"family {model.config['family']!r} has no encoder and decoder of images")
    _check_shape(model, shape)
    if model.family.num_classes and labels is None:
        raise ValueError("this model is conditional: it needs the labels of the images")


def _check_translates(model: Model, shape: tuple[int, ...], direction: str) -> None:
    if model.family.translate is None:
        raise ValueError(f"family {model.config['family']!r} does not translate images")
    if direction not in DIRECTIONS:
        raise ValueError(f"the direction is {' or '.join(DIRECTIONS)}, not {direction!r}")
    _check_shape(model, shape)


def _check_shape(model: Model, shape: tuple[int, ...]) -> None:
    if tuple(shape) != tuple(model.spec.image_shape):
        sizes = ("x".join(map(str, s)) for s in (model.spec.image_shape, shape))
        raise ValueError("the model takes images of {}, not {}".format(*sizes))
