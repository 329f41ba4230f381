"""Evaluators by name: they see arrays and pure functions, and know no family and no trainer.

Evaluators of samples are called with samples and with held-out real data, whose type says which of
the two they are; what real data get is what a perfect model would. Evaluators of held-out examples
need no samples.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from aigc_jax.evaluation import per_example
from aigc_jax.evaluation.comparison import (
    ImageComparison,
    Images,
    PointComparison,
    Points,
    moments,
    named,
)
from aigc_jax.evaluation.features import WITHOUT_CLASSES, subsample
from aigc_jax.evaluation.metrics import classes, diversity, frechet, kernel, manifold
from aigc_jax.evaluation.results import Row

CERTAIN = 0.9  # probability from which a classifier counts as sure of a class
COLLAPSED = 0.5  # of real images' diversity, below which samples are said to have too little


class Sizes(NamedTuple):
    """The fewest examples that an evaluator computes anything of.

    Attributes:
      judged: samples, or the held-out examples that take their place for the column of real data.
      reference: of the split that they are compared with.
      compared: of each kind where all pairs are compared.
    """

    judged: int = 2
    reference: int = 0
    compared: int = 0


def fid(comparison: ImageComparison, images: Images) -> list[Row]:
    """Fréchet distance (Heusel et al. 2017): "fid" with Inception, else "fd_NETWORK"."""
    mean, covariance, name = comparison.target
    value = frechet.frechet_distance(*moments(images.features), mean, covariance)
    n, width = images.features.shape
    note = f"fewer samples than the {width} features: biased upwards" if n <= width else ""
    return [Row(comparison.named("fd"), value, n, reference=name, note=note)]


def kid(comparison: ImageComparison, images: Images) -> list[Row]:
    """Kernel distance (Bińkowski et al. 2018): "kid" with Inception, else "kd_NETWORK"."""
    reference = comparison.reference.features.features
    value, error = kernel.kernel_distance(images.features, reference)
    name, n = comparison.reference_name, len(images.features)
    return [Row(comparison.named("kd"), value, n, error, reference=name)]


def precision_recall(comparison: ImageComparison, images: Images) -> list[Row]:
    """Improved precision and recall, and density and coverage, on equally many images of each."""
    reference = comparison.reference.features.features
    n = min(len(images.features), len(reference), comparison.manifold_count)
    judged, real = (x[subsample(len(x), n)] for x in (images.features, reference))
    values = {}
    values["precision"], values["recall"] = manifold.precision_recall(real, judged)
    values["density"], values["coverage"] = manifold.density_coverage(real, judged)
    name = f"{comparison.reference.name} ({n})"
    return [Row(comparison.named(m), v, n, reference=name) for m, v in values.items()]


def inception_score(comparison: ImageComparison, images: Images) -> list[Row]:
    """exp of the mutual information of image and class (Salimans et al. 2016), over ten parts."""
    mean, deviation = classes.inception_score(images.logits)
    return [Row(comparison.named("score"), mean, len(images.logits), deviation)]


def modes(comparison: ImageComparison, images: Images) -> list[Row]:
    """Which classes samples read as, and how surely, by the network's own classifier."""
    n, width = images.logits.shape
    reference = comparison.reference.features.logits
    real = np.bincount(reference.argmax(1), minlength=width) / len(reference)
    predicted = images.logits.argmax(1)
    # A class that the classifier sees in no real image has no frequency to diverge from.
    known = real[predicted] > 0
    covered, kl = classes.mode_coverage(predicted[known], real)
    highest = images.logits.max(1) - np.logaddexp.reduce(images.logits, axis=1)
    certain = np.exp(highest) > CERTAIN
    note = "" if known.all() else f"{(~known).sum()} samples read as classes no real image does"
    name = comparison.named
    rows = [
        Row(name("sure"), float(certain.mean()), n),
        Row(name("modes"), float(covered), n, note=f"of {(real > 0).sum()}"),
        Row(name("class_kl"), kl, n, reference=comparison.reference_name, note=note),
    ]
    if images.labels is not None:
        agreement = float((predicted == images.labels()).mean())
        rows.append(Row(name("agreement"), agreement, n))
    return rows


def diversity_of(comparison: ImageComparison, images: Images) -> list[Row]:
    """How far apart two images are in feature space; a warning in words where it is too little."""
    value, n = diversity.mean_distance(images.features), len(images.features)
    note = ""
    if not images.real and comparison.held_out.size >= NEEDS["diversity"].judged:
        share = diversity.relative(images.features, comparison.real.features)
        if share < COLLAPSED:
            note = f"mode collapse: samples differ {share:.2g} times as much as real images do"
    return [Row(comparison.named("diversity"), value, n, note=note)]


def memorisation(comparison: ImageComparison, images: Images) -> list[Row]:
    """Do samples lie nearer to training images than held-out images do?"""
    n = len(images.features)
    if images.real:  # what held-out images get is known beforehand
        expected = {"closer_to_train": 0.5, "copies": 0.01}
        return [Row(comparison.named(m), v, n) for m, v in expected.items()]
    found = comparison.nearest
    reference = f"{comparison.reference_name} and {comparison.held_out.name}"
    return [
        Row(comparison.named("closer_to_train"), found.closer, n, reference=reference),
        Row(comparison.named("copies"), found.copies, n, reference=reference),
    ]


def mixture(comparison: PointComparison, points: Points) -> list[Row]:
    """Modes of a mixture that points find, and how evenly (PacGAN, Lin et al. 2018, section 4.1).

    As in its code (fjxmlzn/PacGAN, `MetricLogger`) a mode is found by one point of high quality,
    and the reverse KL, of shares to equal ones, is of these points alone. `reverse_kl_all` takes
    every point to be of its nearest mode: it knows where those of low quality gather.
    """
    centres = comparison.centres
    found, good = classes.mixture_modes(points.values, centres, comparison.std)
    equal = np.ones(len(centres))
    covered, kl = classes.mode_coverage(found[good], equal)
    n = len(points.values)
    return [
        Row("mixture_modes", float(covered), n, note=f"of {len(centres)}"),
        Row("high_quality", float(good.mean()), n),
        Row("reverse_kl", kl, n, note=f"of the {good.sum()} of high quality"),
        Row("reverse_kl_all", classes.mode_coverage(found, equal).kl, n),
    ]


# Of a set of images in feature space: (comparison, images) -> rows.
DISTRIBUTION = {
    "fid": fid,
    "kid": kid,
    "precision_recall": precision_recall,
    "inception_score": inception_score,
    "modes": modes,
    "diversity": diversity_of,
    "memorisation": memorisation,
}
# Of a set of points in the plane: (comparison, points) -> rows.
POINTS = {"mixture": mixture}
# Of the held-out examples: (model, limit) -> rows.
EXAMPLES = {
    "examples": per_example.examples,
    "likelihood": per_example.likelihood,
    "exact_likelihood": per_example.exact_likelihood,
    "diagnosis": per_example.diagnosis,
    "reconstruction": per_example.reconstruction,
    "translation": per_example.translation,
}
OF_CLASSES = ("inception_score", "modes")  # of DISTRIBUTION, those of what a network reads
# What is taken in the space of a feature network.
OF_NETWORK = (*DISTRIBUTION, "translation")
# The metrics of their rows; those of DISTRIBUTION carry a feature network's name.
METRICS = {
    "fid": ("fd",),
    "kid": ("kd",),
    "precision_recall": ("precision", "recall", "density", "coverage"),
    "inception_score": ("score",),
    "modes": ("sure", "modes", "class_kl", "agreement"),
    "diversity": ("diversity",),
    "memorisation": ("closer_to_train", "copies"),
    "mixture": ("mixture_modes", "high_quality", "reverse_kl", "reverse_kl_all"),
}
OF_SAMPLES: dict[str, Callable] = {**DISTRIBUTION, **POINTS}
# What evaluators of samples need at least, of each in OF_SAMPLES.
NEEDS = {
    "fid": Sizes(2, 2),  # a covariance of each
    "kid": Sizes(2, 2),  # pairs within each
    "precision_recall": Sizes(6, 6, 6),  # five neighbours of each
    "inception_score": Sizes(10),  # ten parts
    "modes": Sizes(2, 1),
    "diversity": Sizes(2),
    "memorisation": Sizes(2, 1),
    "mixture": Sizes(2),
}
NAMES = (*EXAMPLES, *OF_SAMPLES)


def lacking(name: str, judged: int, reference: float, compared: float = math.inf) -> str:
    """What an evaluator of samples lacks, in words; "" where it has enough.

    Args:
      name: one of OF_SAMPLES.
      judged: how many samples there are, or held-out examples in their place.
      reference: examples that these are compared with; inf where statistics stand for them.
      compared: most examples of a kind where all pairs are compared.
    """
    needs = NEEDS[name]
    if judged < needs.judged:
        return f"needs at least {needs.judged} samples, not {judged}"
    if reference < needs.reference:
        return f"needs at least {needs.reference} real images to compare with, not {reference}"
    if compared < needs.compared:
        return f"needs an evaluation.manifold_count of at least {needs.compared}, not {compared}"
    return ""


def without_classes(name: str, network: str) -> str:
    """In words that a feature network tells no classes where an evaluator needs them; else ""."""
    if name not in OF_CLASSES or network not in WITHOUT_CLASSES:
        return ""
    return f"needs classes, and {network!r} has none: set its evaluation.network to a classifier's"


def metrics(name: str, network: str, labelled: bool) -> list[str]:
    """The metrics of the rows that an evaluator of samples makes.

    Args:
      name: one of OF_SAMPLES.
      network: of the features; where it lacks what the evaluator needs, there are no rows.
      labelled: whether samples are drawn of classes.
    """
    if name in POINTS:
        return list(METRICS[name])
    if without_classes(name, network):
        return []
    of_labels = () if labelled else ("agreement",)
    return [named(metric, network) for metric in METRICS[name] if metric not in of_labels]


def of_samples(
    name: str, comparison: ImageComparison | PointComparison, *, real: bool, **protocol: Any
) -> list[Row]:
    """Rows of an evaluator of samples.

    Args:
      name: one of OF_SAMPLES.
      real: also takes each metric of held-out real data, where that has a meaning and there are
        enough of them.
      protocol: `Row` fields that hold for every row, such as sampler, steps, weights and seed.
    """
    evaluator, held_out = OF_SAMPLES[name], comparison.held_out.size
    known = {}
    if real and held_out >= NEEDS[name].judged:
        known = {row.metric: row.value for row in evaluator(comparison, comparison.real)}
    return [
        row._replace(real=known.get(row.metric), network=comparison.network, **protocol)
        for row in evaluator(comparison, comparison.samples)
    ]


def of_examples(
    name: str, model: per_example.ModelUnderTest, *, limit: int = 0, weights: str = ""
) -> list[Row]:
    """Rows of one of EXAMPLES, of the first `limit` examples in whole batches; 0 takes all."""
    return [row._replace(weights=weights) for row in EXAMPLES[name](model, limit)]
