"""A trained model applied to data: examples to codes and back, or to the other domain.

Arrays of any number of examples, whole splits, and each image of a folder.
"""

import pathlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from aigc_jax import modalities
from aigc_jax.checks import one_of
from aigc_jax.data import images, sources
from aigc_jax.modalities.image import grid, save_image, to_float, to_pil
from aigc_jax.runs import examples
from aigc_jax.runs.model import Model
from aigc_jax.sampling.batches import map_batches
from aigc_jax.training import sharding

DIRECTIONS = ("a2b", "b2a")
SHOWN = 16  # images in the picture that compares what was given with what became of it


def encode(
    model: Model, x: np.ndarray, labels: np.ndarray | None = None, *, batch_size: int = 64
) -> dict[str, np.ndarray]:
    """The codes of examples.

    Args:
      model: as `model.load` gives it.
      x: [n, ...] as stored, such as images uint8 [n, H, W, C], of the model's own shape.
      labels: int [n], for a conditional model.
      batch_size: examples at a time.

    Returns:
      What `Codec.encode` gives, such as {"mean": [n, ...], "logvar": [n, ...]}.

    Raises:
      ValueError: examples of another shape or type, no encoder, labels that are missing.
    """
    return encoder(model, batch_size=batch_size)(x, labels)


def decode(
    model: Model, z: np.ndarray, labels: np.ndarray | None = None, *, batch_size: int = 64
) -> np.ndarray:
    """Examples [n, ...] as stored, of codes z [n, ...] such as `encode` calls by `Codec.code`.

    Raises:
      ValueError: no decoder, labels that are missing.
    """
    return decoder(model, batch_size=batch_size)(z, labels)


def translate(model: Model, x: np.ndarray, direction: str, *, batch_size: int = 64) -> np.ndarray:
    """Examples [n, ...], as stored, in the other domain; `direction` is "a2b" or "b2a".

    Raises:
      ValueError: another direction, examples of another shape or type, a model of one domain.
    """
    return translator(model, direction, batch_size=batch_size)(x)


def encoder(
    model: Model, *, batch_size: int = 64, whole: bool = False
) -> Callable[..., dict[str, np.ndarray]]:
    """(x, labels=None) -> codes, as `encode`; compiled once for any number of calls.

    With `whole` also for calls of fewer examples, which are filled up to `batch_size`.
    """
    _check_codec(model)
    to_model, run = modalities.of(model.spec.kind).to_model, model.family.codec.encode

    @jax.jit
    def compiled(variables: Any, batch: Any) -> Any:
        return run(variables, {**batch, "x": to_model(batch["x"])})

    def encoded(x: np.ndarray, labels: np.ndarray | None = None) -> dict[str, np.ndarray]:
        _check_examples(model, x)
        batch = {"x": x, **_cond(model, labels)}
        run_batch = partial(compiled, model.variables)
        return map_batches(run_batch, sharding.make_mesh(), batch, batch_size, whole)

    return encoded


def decoder(
    model: Model, *, batch_size: int = 64, whole: bool = False
) -> Callable[..., np.ndarray]:
    """(z, labels=None) -> examples as stored, as `decode`; compiled as `encoder`."""
    _check_codec(model)
    to_stored = modalities.of(model.spec.kind).to_stored
    compiled = jax.jit(model.family.codec.decode)

    def decoded(z: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
        def run_batch(batch: Any) -> jax.Array:
            return compiled(model.variables, batch["z"], batch["cond"])

        batch = {"z": np.asarray(z), "cond": _cond(model, labels)}
        return to_stored(map_batches(run_batch, sharding.make_mesh(), batch, batch_size, whole))

    return decoded


def translator(
    model: Model, direction: str, *, batch_size: int = 64, whole: bool = False
) -> Callable[[np.ndarray], np.ndarray]:
    """x -> examples of the other domain, as `translate`; compiled as `encoder`."""
    if model.family.translate is None:
        raise ValueError("this model does not translate")
    one_of("the direction", direction, DIRECTIONS)
    modality, run = modalities.of(model.spec.kind), model.family.translate

    @jax.jit
    def compiled(variables: Any, x: jax.Array) -> jax.Array:
        return run(variables, modality.to_model(x), direction)

    def translated(x: np.ndarray) -> np.ndarray:
        _check_examples(model, x)
        run_batch, mesh = partial(compiled, model.variables), sharding.make_mesh()
        return modality.to_stored(map_batches(run_batch, mesh, x, batch_size, whole))

    return translated


def encode_split(model: Model, data: examples.RealData, split: str) -> dict[str, np.ndarray]:
    """The codes of a split, and what latent diffusion needs to know of them.

    Returns:
      What `Codec.encode` gives, [N, ...], and "label" int [N] where the data have labels. Of a
      posterior, {"mean", "logvar"}, also "shift" and "scale", floats: (z - shift) * scale has mean
      0 and deviation 1 (Rombach et al. 2022, arXiv:2112.10752, appendix G), z being drawn from it.

    Raises:
      ValueError: data of another shape than the model's, no encoder.
    """
    _check_codec(model)
    _check_shape(model, data.spec.shape)
    batches = examples.examples(data, sharding.make_mesh(), split=split, bar=True)
    beside = ("label",) if data.spec.classes else ()
    found = examples.codes(model.family, model.variables, batches, beside)
    if "logvar" in found:
        mean, noise = found["mean"], np.exp(found["logvar"])
        found["shift"] = np.float32(mean.mean(dtype=np.float64))
        variance = mean.var(dtype=np.float64) + noise.mean(dtype=np.float64)
        found["scale"] = np.float32(variance**-0.5)
    return found


def denoise_folder(
    model: Model, folder: str | pathlib.Path, output: str | pathlib.Path, *, batch_size: int = 64
) -> pathlib.Path:
    """Decodes the code of every image of a folder or .zip: what a denoising model is for.

    Returns and raises as `each_image`; ValueError also for a model without an encoder or one that
    needs labels.
    """
    _check_codec(model)
    _cond(model, None)

    def denoiser(size: int) -> Callable[[np.ndarray], np.ndarray]:
        encoded = encoder(model, batch_size=size, whole=True)
        decoded = decoder(model, batch_size=size, whole=True)
        return lambda x: decoded(encoded(x)[model.family.codec.code])

    return each_image(model, folder, output, denoiser, "denoising", batch_size)


def translate_folder(
    model: Model,
    folder: str | pathlib.Path,
    output: str | pathlib.Path,
    direction: str,
    *,
    batch_size: int = 64,
) -> pathlib.Path:
    """Takes every image of a folder or .zip to the other domain.

    Returns and raises as `each_image`, and raises as `translate`.
    """

    def make(size: int) -> Callable[[np.ndarray], np.ndarray]:
        return translator(model, direction, batch_size=size, whole=True)

    return each_image(model, folder, output, make, "translating", batch_size)


def each_image(
    model: Model,
    folder: str | pathlib.Path,
    output: str | pathlib.Path,
    make: Callable[[int], Callable[[np.ndarray], np.ndarray]],
    doing: str,
    batch_size: int = 64,
) -> pathlib.Path:
    """Puts every image of a folder or .zip through a function.

    Images are brought to the model's size. Called on every process; the first one writes.

    Args:
      model: of images; only their shape is read.
      folder: what to read, a folder (with its subfolders) or a .zip.
      output: gets a PNG for each image, by the same name, and `compared.png`, up to 16 of them
        above what became of them.
      make: number of images at a time -> the function of these, uint8 [n, H, W, C] -> the same;
        n is that number, and what is left in the last call.
      doing: names the progress bar, such as "denoising".
      batch_size: images at a time.

    Returns:
      The path of `compared.png`.

    Raises:
      ValueError: a model of other data than images, a folder without images, a broken image.
    """
    if model.spec.kind != "image":
        raise ValueError(f"a folder holds images, but the model's data are {model.spec.kind}")
    height, width, _ = model.spec.shape
    try:
        found = images.open_folder(str(folder))
    except images.DataError as error:
        raise ValueError(f"{error}".replace("set data.path", "set --input")) from error
    if height != width:
        raise ValueError(f"images are brought to squares, but the model's are {height}x{width}")
    read = sources.decoder(model.spec.shape, image_size=height, crop=0, upright=True)
    output, first = pathlib.Path(output), None
    writes, size = jax.process_index() == 0, min(batch_size, len(found.names))
    change = make(size)
    with tqdm(total=len(found.names), unit="img", desc=doing, disable=None) as bar:
        for start in range(0, len(found.names), size):
            names = found.names[start : start + size]
            given = np.stack([read(images.Record(n, found.read(n), None)) for n in names])
            changed = change(given)
            for name, pixels in zip(names, changed, strict=True):
                if writes:
                    save_image(to_pil(pixels), (output / name).with_suffix(".png"))
            first = (given[:SHOWN], changed[:SHOWN]) if first is None else first
            bar.update(len(names))
    path = output / "compared.png"
    if writes:
        save_image(grid(to_float(np.concatenate(first)), columns=len(first[0])), path)
    return path


def _check_codec(model: Model) -> None:
    if model.family.codec is None:
        raise ValueError("this model has neither an encoder nor a decoder")
    if model.family.codec.decode is None:
        raise ValueError("this model has no decoder: its codes cannot be used without it")


def _check_examples(model: Model, x: np.ndarray) -> None:
    """Raises ValueError unless x [n, ...] is as data of the model's kind are stored."""
    nothing = np.zeros((0, *model.spec.shape), np.float32)
    stored = modalities.of(model.spec.kind).to_stored(nothing).dtype
    if x.dtype != stored:
        raise ValueError(f"examples are given as they are stored, as {stored}, not as {x.dtype}")
    _check_shape(model, x.shape[1:])


def _check_shape(model: Model, shape: tuple[int, ...]) -> None:
    if tuple(shape) != tuple(model.spec.shape):
        sizes = ("x".join(map(str, s)) for s in (model.spec.shape, shape))
        kinds = model.spec.kind.removesuffix("s") + "s"
        raise ValueError("the model takes {} of {}, not {}".format(kinds, *sizes))


def _cond(model: Model, labels: np.ndarray | None) -> dict[str, np.ndarray]:
    """Labels int [n] as a condition; ValueError where a conditional model is given none."""
    drawing = model.family.drawing
    if drawing is not None and "label" in drawing.conditions and labels is None:
        raise ValueError("this model is conditional: it needs the labels of the examples")
    return {} if labels is None else {"label": np.asarray(labels, np.int32)}
