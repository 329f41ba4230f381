"""Which evaluations a config asks for, and all that can be wrong with them before they run."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from aigc_jax import modalities
from aigc_jax.checks import one_of
from aigc_jax.data import mixtures
from aigc_jax.evaluation import evaluators, features
from aigc_jax.family import Family
from aigc_jax.runs.examples import RealData
from aigc_jax.runs.extractors import FeatureExtractor, FeatureExtractors

Rebuild = Callable[[Mapping[str, Any]], Family]
OF_THE_RUN = ("at_end",)  # keys of `config.evaluation` that no single evaluation can replace
ALWAYS = {"examples": {}, "diagnosis": {}}  # on a schedule, whatever else is


class Evaluation(NamedTuple):
    """One evaluation of `config.evaluations`.

    Attributes:
      name: by which rows and curves are told apart.
      metric: one of `evaluators.NAMES`.
      sampling: what it replaces of `config.sampling`.
      settings: `config.evaluation`, with what it replaces of that.
      count: samples that it is of.
      limit: held-out examples that it is of, in whole batches; 0 for all.
    """

    name: str
    metric: str
    sampling: Mapping[str, Any]
    settings: Mapping[str, Any]
    count: int = 0
    limit: int = 0

    @property
    def draws(self) -> bool:
        """Whether it takes samples."""
        return self.metric in evaluators.OF_SAMPLES

    @property
    def label(self) -> str:
        """The name, where that is not its metric's: what its rows are marked with."""
        return "" if self.name == self.metric else self.name


def plan(
    evaluations: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]
) -> tuple[Evaluation, ...]:
    """The evaluations that a config asks for, with all their settings.

    Args:
      evaluations: `config.evaluations`, {name: settings of its own}.
      settings: `config.evaluation`, the settings of all that do not replace them.

    Raises:
      ValueError: an unknown metric or setting, settings that are no mapping.
    """
    if not hasattr(evaluations, "items"):
        raise ValueError(
            f"config.evaluations gives each evaluation its settings, such as {{'fid': {{}}}}, and "
            f"is not {evaluations!r}"
        )
    return tuple(_evaluation(name, given, settings) for name, given in evaluations.items())


def _evaluation(name: str, given: Mapping[str, Any], settings: Mapping[str, Any]) -> Evaluation:
    if not hasattr(given, "items"):
        raise ValueError(f"evaluations.{name} is a mapping of settings, not {given!r}")
    own = dict(given)
    metric, sampling = own.pop("metric", name), dict(own.pop("sampling", {}))
    one_of(f"evaluations.{name}.metric", metric, evaluators.NAMES)
    known = ("metric", "sampling", *(key for key in settings if key not in OF_THE_RUN))
    for key in own:
        one_of(f"a setting of evaluations.{name}", key, known)
    if sampling and metric not in evaluators.OF_SAMPLES:
        raise ValueError(f"evaluations.{name}.sampling: metric {metric!r} takes no samples")
    both = {**settings, **own}
    if metric in evaluators.OF_SAMPLES:
        return Evaluation(name, metric, sampling, both, count=both["count"])
    limit = both["likelihood_count"] if metric == "likelihood" else 0
    return Evaluation(name, metric, sampling, both, limit=limit)


def scheduled(planned: Sequence[Evaluation], settings: Mapping[str, Any]) -> tuple[Evaluation, ...]:
    """What of these runs while a model is trained.

    Losses and diagnosis of `examples` held-out examples always do; metrics of samples where
    `scheduled_count` is not 0, of so many.
    """
    own = {e.name: e for e in planned if e.name == e.metric}
    always = [own.get(e.name, e) for e in plan(ALWAYS, settings)]
    of_samples = [
        e._replace(count=e.settings["scheduled_count"])
        for e in planned
        if e.draws and e.settings["scheduled_count"]
    ]
    return (*(e._replace(limit=e.settings["examples"]) for e in always), *of_samples)


def splits(planned: Iterable[Evaluation]) -> tuple[str, ...]:
    """The splits that samples are compared with; held-out data are the run's own test split."""
    return tuple(dict.fromkeys(e.settings["reference_split"] for e in planned if e.draws))


def check_draws(family: Family, asked: Iterable[str]) -> None:
    """Raises ValueError where samples, or metrics of them, are asked of a family without."""
    asked = list(asked)
    if family.drawing is None and asked:
        raise ValueError(
            "this family translates images and draws none from noise: use --mode=translate, and "
            f"do not ask for {', '.join(asked)}"
        )


def check(
    planned: Iterable[Evaluation],
    family: Family,
    data: RealData,
    *,
    sampling: Mapping[str, Any],
    rebuild: Rebuild,
    extractors: FeatureExtractors,
) -> dict[str, str]:
    """Finds all that can be wrong with evaluations before any of their work is done.

    Returns:
      {name of an evaluation that so few examples allow no value of: what it lacks, in words}.

    Raises:
      ValueError: samples asked of a family without, metrics of another kind of data, fewer than two
        samples, a sampler that cannot be built, a feature network of other images, statistics of
        another network; examples too few for any of the evaluations.
      FileNotFoundError: weights or statistics that are not there.
    """
    planned = tuple(planned)
    of_samples = [e for e in planned if e.draws]
    check_draws(family, [e.name for e in of_samples])
    for e in of_samples:
        _check_kind(e, data)
        if e.count < 2:
            raise ValueError(
                f"a distribution takes at least 2 samples to judge, not {e.count}: set --num or "
                "evaluation.count, on a schedule evaluation.scheduled_count"
            )
        split = f"evaluation.reference_split of {e.name}"
        one_of(split, e.settings["reference_split"], data.dataset.sources)
        for key in e.sampling:
            one_of(f"a setting of evaluations.{e.name}.sampling", key, sampling)
        if e.sampling:
            rebuild(e.sampling)
        if e.metric in evaluators.DISTRIBUTION:
            network = open_network(e, data, extractors)
            if e.settings["statistics"]:
                _check_statistics(e.settings["statistics"], network, data.spec.shape)
    return _lacking(planned, data)


def compared_with(e: Evaluation, data: RealData) -> tuple[str, str]:
    """(the split that samples are compared with, the one that is held out from it)."""
    reference = e.settings["reference_split"]
    return reference, data.train_split if reference == data.test_split else data.test_split


def _lacking(planned: Sequence[Evaluation], data: RealData) -> dict[str, str]:
    """{name of an evaluation with too few examples: what it lacks}; ValueError where all have."""
    found = {}
    for e in planned:
        if e.draws:
            given = e.settings["statistics"] and e.metric == "fid"
            reference = len(data.dataset.sources[compared_with(e, data)[0]])
            if words := evaluators.lacking(e.metric, e.count, math.inf if given else reference):
                found[e.name] = words
    if found and len(found) == len(planned):
        told = "; ".join(f"{name} {words}" for name, words in found.items())
        raise ValueError(
            f"nothing can be evaluated: {told}. Set --num or evaluation.count, on a schedule "
            "evaluation.scheduled_count, or ask for other evaluations"
        )
    return found


def _check_statistics(path: str, network: FeatureExtractor, shape: tuple[int, ...]) -> None:
    """Raises where statistics are not there, or not of features like the network's."""
    mean, _ = features.load_statistics(path)
    images = jax.ShapeDtypeStruct((1, *shape), np.uint8)
    found, _ = jax.eval_shape(network.run, images)
    if found.shape[1] != len(mean):
        raise ValueError(
            f"{path} has statistics of {len(mean)} features, network {network.network.name!r} has "
            f"{found.shape[1]}: take both from the same network"
        )


def _check_kind(evaluation: Evaluation, data: RealData) -> None:
    """Raises ValueError where a metric is not one of data of this kind."""
    kind = data.spec.kind
    if evaluation.metric in evaluators.POINTS and data.name not in mixtures.MIXTURES:
        known = " and ".join(mixtures.MIXTURES)
        raise ValueError(
            f"evaluator {evaluation.name!r} judges samples of {known}, not of {data.name!r}"
        )
    if evaluation.metric in evaluators.DISTRIBUTION and not modalities.of(kind).judged_in_features:
        raise ValueError(
            f"evaluator {evaluation.name!r} judges images in the space of a feature network, and "
            f"{data.name!r} holds {kind}: ask for {', '.join(evaluators.POINTS)}"
        )


def open_network(
    evaluation: Evaluation, data: RealData, extractors: FeatureExtractors
) -> FeatureExtractor:
    """The feature network of an evaluation; raises as `FeatureExtractors.open`."""
    settings = evaluation.settings
    return extractors.open(settings["network"], settings["weights"], data.spec.shape)
