"""Evaluators of the held-out examples: means of what a model computes for each of them."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.evaluation.lpips import Lpips
from aigc_jax.evaluation.metrics import image_quality
from aigc_jax.evaluation.results import Row
from aigc_jax.evaluation.translation import Translated, distances_of
from aigc_jax.family import Batch


@dataclasses.dataclass(frozen=True)
class ModelUnderTest:
    """A model as pure functions, and the held-out examples that it is judged by.

    Attributes:
      evaluate: (batch, key) -> {name: [B]}, as `Family.evaluate`.
      reconstruct: (batch, key) -> {name: (given, reconstruction)}, or with a third, the original,
        as `Views.reconstruct`; None without.
      bound: (batch, key) -> {name: [B]}, as `Family.bound`; None without.
      codes: examples in batches -> {name: [N, ...]}, as `Codec.encode` of all of them.
      diagnose: such codes -> ({metric: value}, warning), as `Codec.diagnose`; None without.
      examples: limit -> held-out data in batches on the devices, with "mask" [B]; whole batches of
        at least that many examples, 0 for all.
      name: data set and split of these, such as "cifar10 test".
      are_images: whether PSNR and SSIM mean something for them.
      lpips: what LPIPS of reconstructions is taken in; None where it is not asked for.
      translations: () -> {direction: features of translations and of real images}; None without.
      network, reference: of these features; data set and split that translations should be like.
      key: of the randomness of these functions; batch i is given it with i folded in.
      density: (batch, key) -> {name: [B]}, as `Family.density`; None without.
    """

    evaluate: Callable
    reconstruct: Callable | None
    bound: Callable | None
    codes: Callable[[Iterable[Batch]], Mapping[str, np.ndarray]] | None
    diagnose: Callable[[Mapping[str, np.ndarray]], tuple[Mapping[str, float], str]] | None
    examples: Callable[[int], Iterator[Batch]]
    name: str
    are_images: bool
    key: jax.Array
    lpips: Lpips | None = None
    translations: Callable[[], Mapping[str, Translated]] | None = None
    network: str = ""
    reference: str = ""
    density: Callable | None = None


class Mean(NamedTuple):
    """Of a value per example: mean, its standard error, and over how many examples."""

    value: float
    error: float
    count: int


def means(
    evaluate: Callable[..., Mapping[str, jax.Array]], batches: Iterable[Batch], key: jax.Array
) -> dict[str, Mean]:
    """Means of what a family computes for each example of a data set.

    Args:
      evaluate: (batch, key) -> {name: [B]}; that it is jitted is not assumed.
      batches: each with "mask" [B], 1 for a real row and 0 for padding.
      key: batch i is given fold_in(key, i), so that equal models get equal values.
    """
    # Sums are of differences from the first batch's mean: of large values that lie close together
    # E[x^2] - E[x]^2 would be what float32 rounds away.
    centres: dict[str, jax.Array] = {}
    sums: dict[str, np.ndarray] = {}
    count = 0.0
    for i, batch in enumerate(batches):
        values = evaluate(batch, jax.random.fold_in(key, i))
        mask = batch["mask"]
        for name, value in values.items():
            if name not in centres:
                centre = jnp.mean(value, where=mask > 0)
                centres[name] = jnp.where(jnp.isfinite(centre), centre, 0.0)
            # A padded row must not turn the mean into NaN.
            value = jnp.where(mask > 0, value - centres[name], 0.0)
            moments = np.array([jnp.sum(value), jnp.sum(value**2)], np.float64)
            sums[name] = sums.get(name, 0.0) + moments
        count += float(jnp.sum(mask))
    found = {}
    for name, (total, squares) in sums.items():
        shift = total / count
        variance = max(squares / count - shift**2, 0.0) if np.isfinite(squares) else np.nan
        mean = float(centres[name]) + shift
        found[name] = Mean(float(mean), float(np.sqrt(variance / max(count - 1, 1))), int(count))
    return found


def natural(name: str) -> list:
    """A key to sort names by that puts "t=20" before "t=100"."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def examples(model: ModelUnderTest, limit: int) -> list[Row]:
    """What the family computes for each example: its losses."""
    return _rows(model, means(model.evaluate, model.examples(limit), model.key))


def likelihood(model: ModelUnderTest, limit: int) -> list[Row]:
    """Bounds on the likelihood that are too expensive for a schedule."""
    if model.bound is None:
        return []
    return _rows(model, means(model.bound, model.examples(limit), model.key))


def exact_likelihood(model: ModelUnderTest, limit: int) -> list[Row]:
    """Exact likelihoods by an ODE, and how often it called the network."""
    if model.density is None:
        return []
    return _rows(model, means(model.density, model.examples(limit), model.key))


def diagnosis(model: ModelUnderTest, limit: int) -> list[Row]:
    """Whether the model uses its codes; a warning in words where it does not."""
    if model.diagnose is None:
        return []
    codes = model.codes(model.examples(limit))
    found, warning = model.diagnose(codes)
    n = len(next(iter(codes.values())))
    return [
        Row(metric, value, n, reference=model.name, note=warning) for metric, value in found.items()
    ]


def reconstruction(model: ModelUnderTest, limit: int) -> list[Row]:
    """How near reconstructions come to the originals: PSNR in dB, SSIM, MS-SSIM, L1, LPIPS.

    LPIPS without weights is a row without a value, whose note says what to do.
    """
    if model.reconstruct is None:
        return []
    measure = jax.jit(qualities if model.are_images else distances)
    lpips = model.lpips and model.lpips.measure

    def compare(images: jax.Array, others: jax.Array) -> dict[str, jax.Array]:
        found = measure(images, others)
        return found | {model.lpips.metric: lpips(images, others)} if lpips else found

    def evaluate(batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        found = {}
        for name, (given, reconstructed, *own) in model.reconstruct(batch, key).items():
            (original,) = own or (batch["x"],)
            for metric, value in compare(original, reconstructed).items():
                found[f"{metric}/{name}"] = value
            for metric, value in compare(original, given).items():
                found[f"{metric}/{name}/given"] = value
        return found

    found = means(evaluate, model.examples(limit), model.key)
    rows = {row.metric: row for row in _rows(model, found)}
    kept = [
        rows[name]._replace(note=f"given {found[name + '/given'].value:.4g}")
        for name in sorted(rows, key=natural)
        if not name.endswith("/given")
    ]
    if model.lpips and not lpips:
        kept.append(Row(model.lpips.metric, math.nan, 0, note=model.lpips.note))
    return kept


def translation(model: ModelUnderTest, limit: int) -> list[Row]:
    """How far translations of all held-out images are from real images of the other domain."""
    if model.translations is None:
        return []
    return distances_of(model.translations(), model.network, model.reference)


def qualities(images: jax.Array, others: jax.Array) -> dict[str, jax.Array]:
    """{metric: [B]} of images [B, H, W, C] in [-1, 1]; SSIM where its windows fit in them."""
    side = min(images.shape[1:3])
    found = {"psnr": image_quality.psnr(images, others), "l1": image_quality.l1(images, others)}
    if side >= image_quality.WINDOW_SIZE:
        found["ssim"] = image_quality.ssim(images, others)
    if side >= 16 * image_quality.WINDOW_SIZE:
        found["ms_ssim"] = image_quality.ms_ssim(images, others)
    return found


def distances(x: jax.Array, y: jax.Array) -> dict[str, jax.Array]:
    """{"l1": mean absolute difference [B]} of examples [B, ...] that are no images."""
    return {"l1": abs(x - y).reshape(len(x), -1).mean(1)}


def _rows(model: ModelUnderTest, found: Mapping[str, Mean]) -> list[Row]:
    return [
        Row(name, mean.value, mean.count, mean.error, reference=model.name)
        for name, mean in found.items()
    ]
