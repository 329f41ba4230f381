"""A trained model applied to data: examples to codes and back, or to the other domain.

Arrays of any number of examples, whole splits, and each image of a folder.
"""

import pathlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from aigc_jax import modalities
from aigc_jax.checks import one_of
from aigc_jax.errors import SettingError
from aigc_jax.runs import examples
from aigc_jax.runs.image_folder import each_image, of_any_size
from aigc_jax.runs.model import Model
from aigc_jax.sampling.batches import map_batches
from aigc_jax.training import sharding

DIRECTIONS = ("a2b", "b2a")


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

    Their sides may be others than the model's where its family has a `stride`.

    Raises:
      ValueError: another direction, examples of a shape or type that it does not take, a model of
        one domain.
    """
    return translator(model, direction, batch_size=batch_size)(x)


def encoder(
    model: Model, *, batch_size: int = 64, whole: bool = False
) -> Callable[..., dict[str, np.ndarray]]:
    """(x, labels=None) -> codes, as `encode`; compiled once for any number of calls.

    With `whole` also for calls of fewer examples, which are filled up to `batch_size`.
    """
    check_codec(model)
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
    check_codec(model)
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
    check_translates(model, direction)
    modality, run = modalities.of(model.spec.kind), model.family.translate

    @jax.jit
    def compiled(variables: Any, x: jax.Array) -> jax.Array:
        return run(variables, modality.to_model(x), direction)

    def translated(x: np.ndarray) -> np.ndarray:
        _check_examples(model, x, model.family.stride)
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
    check_codec(model)
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

    Images are scaled to fit the model's size, and what becomes of them back to theirs. Returns and
    raises as `each_image`; ValueError also for a model without an encoder or one that needs labels.
    """
    check_denoises(model)

    def denoiser(size: int) -> Callable[[np.ndarray], np.ndarray]:
        encoded = encoder(model, batch_size=size, whole=True)
        decoded = decoder(model, batch_size=size, whole=True)
        return lambda x: decoded(encoded(x)[model.family.codec.code])

    return each_image(model, folder, output, denoiser, "denoising", batch_size)


def check_codec(model: Model) -> None:
    """Raises ValueError for a model, or an outline, without an encoder or without a decoder."""
    if model.family.codec is None:
        raise SettingError("this model has neither an encoder nor a decoder")
    if model.family.codec.decode is None:
        raise SettingError("this model has no decoder: its codes cannot be used without it")


def check_denoises(model: Model) -> None:
    """Raises ValueError for a model, or an outline, that `denoise_folder` cannot use."""
    check_codec(model)
    _cond(model, None)


def check_translates(model: Model, direction: str) -> None:
    """Raises ValueError for a model, or an outline, that does not translate so."""
    if model.family.translate is None:
        raise SettingError("this model does not translate")
    one_of("the direction", direction, DIRECTIONS)


def translate_folder(
    model: Model,
    folder: str | pathlib.Path,
    output: str | pathlib.Path,
    direction: str,
    *,
    batch_size: int = 64,
    resize: bool = False,
) -> pathlib.Path:
    """Takes every image of a folder or .zip to the other domain.

    A model of any size is given them as they are, or with `resize` with their shorter side scaled
    to that of its training; to another they are scaled to fit. What becomes of them has their size.
    Returns and raises as `each_image`, and raises as `translate`.
    """
    framing = None
    if stride := model.family.stride:
        framing = of_any_size(stride, min(model.spec.shape[:2]) if resize else 0)

    def make(size: int) -> Callable[[np.ndarray], np.ndarray]:
        return translator(model, direction, batch_size=size, whole=True)

    return each_image(model, folder, output, make, "translating", batch_size, framing)


def _check_examples(model: Model, x: np.ndarray, stride: int = 0) -> None:
    """Raises ValueError unless x [n, ...] is as data of the model's kind are stored."""
    nothing = np.zeros((0, *model.spec.shape), np.float32)
    stored = modalities.of(model.spec.kind).to_stored(nothing).dtype
    if x.dtype != stored:
        raise SettingError(f"examples are given as they are stored, as {stored}, not as {x.dtype}")
    _check_shape(model, x.shape[1:], stride)


def _check_shape(model: Model, shape: tuple[int, ...], stride: int = 0) -> None:
    if stride and len(shape) == 3 and shape[-1] == model.spec.shape[-1]:  # images of any size
        if any(side % stride or side < 2 * stride for side in shape[:-1]):
            size = "x".join(map(str, shape[:-1]))
            raise SettingError(
                f"images are {size}: each side has to be {2 * stride} or a larger multiple of "
                f"{stride}"
            )
    elif tuple(shape) != tuple(model.spec.shape):
        sizes = ("x".join(map(str, s)) for s in (model.spec.shape, shape))
        kinds = model.spec.kind.removesuffix("s") + "s"
        raise SettingError("the model takes {} of {}, not {}".format(kinds, *sizes))


def _cond(model: Model, labels: np.ndarray | None) -> dict[str, np.ndarray]:
    """Labels int [n] as a condition; ValueError where a conditional model is given none."""
    drawing = model.family.drawing
    if drawing is not None and "label" in drawing.conditions and labels is None:
        raise SettingError("this model is conditional: it needs the labels of the examples")
    return {} if labels is None else {"label": np.asarray(labels, np.int32)}
