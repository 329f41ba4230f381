"""Evaluators by name: they see pure functions and arrays, and know no family and no trainer.

Each of EVALUATORS takes a `Subject` and returns rows. What several of them need, samples and their
features above all, the subject makes once, when it is first asked for.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.evaluation import classes, diversity, frechet, image_quality, kernel, manifold
from aigc_jax.evaluation.features import Features, some
from aigc_jax.evaluation.results import Row
from aigc_jax.evaluation.subject import Subject, moments

SURE = 0.9  # probability from which a classifier counts as sure of a class
COLLAPSED = 0.5  # of real images' diversity, below which samples are said to have too little


class Mean(NamedTuple):
    """Of a value per example: mean, its standard error, and over how many examples."""

    value: float
    error: float
    count: int


def per_example(
    evaluate: Callable[..., Mapping[str, jax.Array]],
    batches: Iterable[Mapping[str, jax.Array]],
    key: jax.Array,
) -> dict[str, Mean]:
    """Means of what a family computes for each example of a data set.

    Args:
      evaluate: (batch, key) -> {name: [B]}; jitted here is not assumed.
      batches: each with "mask" [B], 1 for a real row and 0 for padding.
      key: batch i is given fold_in(key, i), so that equal models get equal values.
    """
    sums: dict[str, np.ndarray] = {}
    count = 0.0
    for i, batch in enumerate(batches):
        values = evaluate(batch, jax.random.fold_in(key, i))
        mask = batch["mask"]
        for name, value in values.items():
            value = jnp.where(mask > 0, value, 0.0)  # a padded row must not turn the mean into NaN
            moments = np.array([jnp.sum(value), jnp.sum(value**2)], np.float64)
            sums[name] = sums.get(name, 0.0) + moments
        count += float(jnp.sum(mask))
    means = {}
    for name, (total, squares) in sums.items():
        mean = total / count
        variance = max(squares / count - mean**2, 0.0) if np.isfinite(squares) else np.nan
        means[name] = Mean(float(mean), float(np.sqrt(variance / max(count - 1, 1))), int(count))
    return means


def natural(name: str) -> list:
    """A key to sort names by that puts "t=20" before "t=100"."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def fid(subject: Subject, images: Features) -> list[Row]:
    """Fréchet distance (Heusel et al. 2017): "fid" with Inception, else "fd_NETWORK"."""
    mean, covariance, name = subject.target
    value = frechet.frechet_distance(*moments(images), mean, covariance)
    metric = "fid" if subject.network == "inception" else subject.named("fd")
    n, width = images.features.shape
    note = f"fewer samples than the {width} features: biased upwards" if n <= width else ""
    return [Row(metric, value, n, reference=name, note=note)]


def kid(subject: Subject, images: Features) -> list[Row]:
    """Kernel distance (Bińkowski et al. 2018): "kid" with Inception, else "kd_NETWORK"."""
    value, error = kernel.kernel_distance(images.features, subject.real.features)
    metric = "kid" if subject.network == "inception" else subject.named("kd")
    reference = subject.of(subject.reference, subject.real)
    return [Row(metric, value, len(images.features), error, reference=reference)]


def precision_recall(subject: Subject, images: Features) -> list[Row]:
    """Improved precision and recall, and density and coverage, on equally many images of each."""
    n = min(len(images.features), len(subject.real.features), subject.manifold_count)
    fake, real = (x.some(n).features for x in (images, subject.real))
    values = {}
    values["precision"], values["recall"] = manifold.precision_recall(real, fake)
    values["density"], values["coverage"] = manifold.density_coverage(real, fake)
    reference = f"{subject.reference.name} ({n})"
    return [Row(subject.named(m), v, n, reference=reference) for m, v in values.items()]


def inception_score(subject: Subject, images: Features) -> list[Row]:
    """exp of the mutual information of image and class (Salimans et al. 2016), over ten parts."""
    mean, deviation = classes.inception_score(images.logits)
    metric = "inception_score" if subject.network == "inception" else subject.named("score")
    return [Row(metric, mean, len(images.logits), deviation)]


def modes(subject: Subject, images: Features) -> list[Row]:
    """Which classes samples read as, and how surely: a classifier counts."""
    n, width = images.logits.shape
    reference = subject.of(subject.reference, subject.real)
    real = np.bincount(subject.real.logits.argmax(1), minlength=width) / len(subject.real.logits)
    predicted = images.logits.argmax(1)
    # A class that the classifier sees in no real image has no frequency to diverge from.
    known = real[predicted] > 0
    covered, kl = 0, float("inf")
    if known.any():
        covered, kl, _ = classes.mode_coverage(predicted[known], real)
    sure = np.exp(images.logits.max(1) - np.logaddexp.reduce(images.logits, axis=1)) > SURE
    note = "" if known.all() else f"{(~known).sum()} samples read as classes no real image does"
    rows = [
        Row(subject.named("sure"), float(sure.mean()), n),
        Row(subject.named("modes"), float(covered), n, note=f"of {(real > 0).sum()}"),
        Row(subject.named("class_kl"), kl, n, reference=reference, note=note),
    ]
    if subject.labels is not None:
        asked = subject.labels
        if images is subject.unseen:
            asked = subject.held_out.fetch(some(subject.held_out.size, n))["label"]
        rows.append(Row(subject.named("agreement"), float((predicted == asked).mean()), n))
    return rows


def diverse(subject: Subject, images: Features) -> list[Row]:
    """How far apart two images are in feature space; a warning in words where it is too little."""
    value, n = diversity.mean_distance(images.features), len(images.features)
    note = ""
    if images is subject.drawn[1]:
        share = diversity.relative(images.features, subject.unseen.features)
        if share < COLLAPSED:
            note = f"mode collapse: samples differ {share:.2g} times as much as real images do"
    return [Row(subject.named("diversity"), value, n, note=note)]


def copies(subject: Subject, images: Features) -> list[Row]:
    """Do samples lie nearer to training images than held-out images do?"""
    if images is not subject.drawn[1]:  # what held-out images get is known
        expected = {"closer_to_train": 0.5, "copies": 0.01}
        return [Row(subject.named(m), v, len(images.features)) for m, v in expected.items()]
    found, n = subject.copying, len(images.features)
    reference = f"{subject.of(subject.reference, subject.real)} and {subject.held_out.name}"
    return [
        Row(subject.named("closer_to_train"), found.closer, n, reference=reference),
        Row(subject.named("copies"), found.copies, n, reference=reference),
    ]


def mixture(subject: Subject, points: np.ndarray) -> list[Row]:
    """Modes of a mixture that points find, and how evenly (PacGAN, Lin et al. 2018, section 4.1).

    As in its code (fjxmlzn/PacGAN, `MetricLogger`) a mode is found by one point of high quality,
    and the reverse KL, of shares to equal ones, is of these points alone. `reverse_kl_all` takes
    every point to be of its nearest mode: it knows where those of low quality gather.
    """
    centres, std = subject.mixture
    found, good = classes.mixture_modes(points, centres, std)
    equal = np.ones(len(centres))
    covered, kl = 0, float("inf")
    if good.any():
        covered, kl, _ = classes.mode_coverage(found[good], equal)
    n = len(points)
    return [
        Row("mixture_modes", float(covered), n, note=f"of {len(centres)}"),
        Row("high_quality", float(good.mean()), n),
        Row("reverse_kl", kl, n, note=f"of the {good.sum()} of high quality"),
        Row("reverse_kl_all", classes.mode_coverage(found, equal).kl, n),
    ]


def examples(subject: Subject) -> list[Row]:
    """What the family computes for each example: its losses."""
    return _means(subject, subject.evaluate, 0)


def likelihood(subject: Subject) -> list[Row]:
    """Bounds on the likelihood that are too dear for a schedule."""
    if subject.likelihood is None:
        return []
    return _means(subject, subject.likelihood, subject.likelihood_count)


def diagnosis(subject: Subject) -> list[Row]:
    """Whether the model uses its codes; a warning in words where it does not."""
    if subject.diagnose is None:
        return []
    found, warning = subject.diagnose()
    n, name = subject.held_out.size, subject.held_out.name
    return [Row(metric, value, n, reference=name, note=warning) for metric, value in found.items()]


def _means(subject: Subject, evaluate: Callable, limit: int) -> list[Row]:
    means = per_example(evaluate, subject.examples(limit), subject.key)
    return [
        Row(name, mean.value, mean.count, mean.error, reference=subject.held_out.name)
        for name, mean in means.items()
    ]


def restoration(subject: Subject) -> list[Row]:
    """How near restored images come to the originals: PSNR in dB, SSIM, MS-SSIM, L1."""
    if subject.restore is None:
        return []

    @jax.jit
    def qualities(image: jax.Array, given: jax.Array) -> dict[str, jax.Array]:
        side = min(image.shape[1:3])
        found = {"psnr": image_quality.psnr(image, given), "l1": image_quality.l1(image, given)}
        if side >= image_quality.WINDOW_SIZE:
            found["ssim"] = image_quality.ssim(image, given)
        if side >= 16 * image_quality.WINDOW_SIZE:
            found["ms_ssim"] = image_quality.ms_ssim(image, given)
        return found

    def evaluate(batch: Mapping[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        found = {}
        for name, (given, restored, *own) in subject.restore(batch, key).items():
            (original,) = own or (batch["image"],)
            for metric, value in qualities(original, restored).items():
                found[f"{metric}/{name}"] = value
            for metric, value in qualities(original, given).items():
                found[f"{metric}/{name}/given"] = value
        return found

    means = per_example(evaluate, subject.examples(0), subject.key)
    return [
        Row(
            name,
            mean.value,
            mean.count,
            mean.error,
            reference=subject.held_out.name,
            note=f"given {means[name + '/given'].value:.4g}",
        )
        for name, mean in sorted(means.items(), key=lambda item: natural(item[0]))
        if not name.endswith("/given")
    ]


# Metrics of a set of images in feature space: of the samples, and of held-out images beside them.
DISTRIBUTION = {
    "fid": fid,
    "kid": kid,
    "precision_recall": precision_recall,
    "inception_score": inception_score,
    "modes": modes,
    "diversity": diverse,
    "memorisation": copies,
}
# Metrics of a set of points in the plane, applied in the same way, and in no feature space.
POINTS = {"mixture": mixture}
# Metrics of the held-out examples.
EXAMPLES = {
    "examples": examples,
    "likelihood": likelihood,
    "diagnosis": diagnosis,
    "restoration": restoration,
}
OF_SAMPLES = (*DISTRIBUTION, *POINTS)
NAMES = (*EXAMPLES, *OF_SAMPLES)


def check_names(names: Sequence[str]) -> None:
    """Raises ValueError for an unknown evaluator; it names the near misses."""
    for name in names:
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"config.evaluations takes {', '.join(NAMES)}, not {name!r}{hint}")


def run(subject: Subject, names: Sequence[str], *, real: bool = True, **protocol: Any) -> list[Row]:
    """Rows of the evaluators of these names.

    Args:
      real: also takes each metric of held-out real images, where that has a meaning.
      protocol: `Row` fields that hold for every row, such as sampler, steps, weights and seed.
    """
    check_names(names)
    rows = [row for name in names if name in EXAMPLES for row in EXAMPLES[name](subject)]
    rows = [row._replace(weights=protocol.get("weights", "")) for row in rows]
    for name in (name for name in names if name in OF_SAMPLES):
        of_samples, of_real = _applied(subject, name, real)
        known = {row.metric: row.value for row in of_real}
        for row in of_samples:
            rows.append(row._replace(real=known.get(row.metric), **protocol))
    return rows


def _applied(subject: Subject, name: str, real: bool) -> tuple[list[Row], list[Row]]:
    """Rows of samples, and where `real` those of held-out data, without the protocol."""
    if name in POINTS:
        if subject.mixture is None:
            return [], []
        evaluator = POINTS[name]
        held_out = evaluator(subject, subject.unseen_points) if real else []
        return evaluator(subject, subject.points), held_out
    evaluator = DISTRIBUTION[name]
    held_out = evaluator(subject, subject.unseen) if real else []
    rows = evaluator(subject, subject.drawn[1])
    return [row._replace(network=subject.network) for row in rows], held_out
