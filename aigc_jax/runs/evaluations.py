"""Which evaluations a config asks for, and all that can be wrong with them before they run."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax import modalities
from aigc_jax.checks import Count, OneOf, Positive, Whole, arguments, kinds, one_of, shown, value
from aigc_jax.data import mixtures
from aigc_jax.errors import SettingError
from aigc_jax.evaluation import evaluators, features, lpips
from aigc_jax.evaluation.results import Row
from aigc_jax.family import DataSpec, Family, Variables
from aigc_jax.runs import averages
from aigc_jax.runs.examples import RealData
from aigc_jax.runs.extractors import FeatureExtractor, FeatureExtractors
from aigc_jax.training import ema as ema_settings

Rebuild = Callable[[Mapping[str, Any]], Family]
OF_THE_RUN = ("at_end",)  # keys of `config.evaluation` that no single evaluation can replace
OF_LIKELIHOOD = ("likelihood", "exact_likelihood")  # metrics of `likelihood_count` examples
ALWAYS = {"examples": {}, "diagnosis": {}}  # on a schedule, whatever else is


class Settings(NamedTuple):
    """The section `evaluation`: how all evaluations are done that say nothing else.

    Attributes:
      network, weights: the feature network, and its file (None: looked for in $AIGC_WEIGHTS).
      count: samples; examples: held-out ones on a schedule, 0 for all.
      reference_split: what samples are compared with.
      lpips, lpips_weights: the network of the reconstructions' LPIPS, and its file, as `lpips.load`
        takes them.
      statistics: file of a mean and a covariance to take the Fréchet distance to; "": none.
      manifold_count: most images where all pairs are compared.
      likelihood_count: examples whose likelihood is bounded, or computed; 0 for all.
      at_end: whether a run ends with all of its evaluations.
      scheduled_count: samples on a schedule; 0 for no metrics of samples.
      probes, tolerance: of exact likelihoods: how many random probes estimate the divergence, 0 to
        compute it; and the error that a step of the ODE may make.
    """

    network: Annotated[str, OneOf(features.NAMES)]
    weights: str | None
    lpips: Annotated[str, OneOf(lpips.CHOICES)]
    lpips_weights: str | None
    count: Count
    reference_split: str
    statistics: str
    manifold_count: Count
    likelihood_count: Whole
    at_end: bool
    examples: Whole
    scheduled_count: Whole
    probes: Whole = 1
    tolerance: Positive = 1e-5


class Evaluation(NamedTuple):
    """One evaluation of `config.evaluations`.

    Attributes:
      name: by which rows and curves are told apart.
      metric: one of `evaluators.NAMES`.
      sampling: what it replaces of `config.sampling`.
      settings: `config.evaluation`, with what it replaces of that.
      count: samples that it is of.
      limit: held-out examples that it is of, in whole batches; 0 for all.
      ema: half-life of the average that it is of, in images; None for that which is asked for, or
        the run's own.
    """

    name: str
    metric: str
    sampling: Mapping[str, Any]
    settings: Mapping[str, Any]
    count: int = 0
    limit: int = 0
    ema: float | None = None

    @property
    def draws(self) -> bool:
        """Whether it takes samples."""
        return self.metric in evaluators.OF_SAMPLES

    @property
    def compares(self) -> bool:
        """Whether it compares what the model makes with a split of real data."""
        return self.draws or self.metric == "translation"

    @property
    def to_statistics(self) -> bool:
        """Whether samples are compared with statistics in a file, and not with a split."""
        return self.metric == "fid" and bool(self.settings["statistics"])

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
      ValueError: an unknown metric or setting, a value out of its range, settings that are no
        mapping.
    """
    settings = Settings(**arguments("evaluation", Settings, settings))._asdict()
    if not hasattr(evaluations, "items"):
        raise SettingError(
            f"config.evaluations gives each evaluation its settings, such as {{'fid': {{}}}}, and "
            f"is not {shown(evaluations)}"
        )
    return tuple(_evaluation(name, given, settings) for name, given in evaluations.items())


def _evaluation(name: str, given: Mapping[str, Any], settings: Mapping[str, Any]) -> Evaluation:
    if not hasattr(given, "items"):
        raise SettingError(f"evaluations.{name} is a mapping of settings, not {shown(given)}")
    own = dict(given)
    metric, sampling = own.pop("metric", name), own.pop("sampling", {})
    ema = own.pop("ema", None)
    value(f"evaluations.{name}.sampling", sampling, Mapping)
    value(f"evaluations.{name}.ema", ema, Positive | None)
    one_of(f"evaluations.{name}.metric", metric, evaluators.NAMES)
    known = ("metric", "sampling", "ema", *(key for key in settings if key not in OF_THE_RUN))
    for key, of_key in own.items():
        one_of(f"a setting of evaluations.{name}", key, known)
        value(f"evaluations.{name}.{key}", of_key, kinds(Settings)[key])
    if sampling and metric not in evaluators.OF_SAMPLES:
        raise SettingError(f"evaluations.{name}.sampling: metric {metric!r} takes no samples")
    both = {**settings, **own}
    lacks = evaluators.without_classes(metric, both["network"])
    if lacks and "network" in own:
        raise SettingError(f"evaluations.{name}: metric {metric!r} {lacks}")
    if metric in evaluators.OF_SAMPLES:
        return Evaluation(name, metric, dict(sampling), both, count=both["count"], ema=ema)
    limit = both["likelihood_count"] if metric in OF_LIKELIHOOD else 0
    return Evaluation(name, metric, {}, both, limit=limit, ema=ema)


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
    """The splits that what a model makes is compared with; held out is the run's own test split."""
    return tuple(dict.fromkeys(e.settings["reference_split"] for e in planned if e.compares))


def names_of_samples(e: Evaluation, family: Family) -> list[str]:
    """Names of the metrics of an evaluation of samples: "fid", "fid_ddim50/fid", ..."""
    labelled = bool(family.drawing and family.drawing.conditions)
    metrics = evaluators.metrics(e.metric, e.settings["network"], labelled)
    return [Row(metric, 0.0, 0, evaluation=e.label).key for metric in metrics]


def scheduled_names(
    planned: Iterable[Evaluation], family: Family, spec: DataSpec, test_split: str
) -> Iterator[str]:
    """Names that metrics of scheduled evaluations are written by: "eval/fid", "test/loss", ...

    Found without any data: those of examples by tracing what computes them.
    """
    for e in planned:
        if e.draws:
            yield from (f"eval/{name}" for name in names_of_samples(e, family))
    key = jax.eval_shape(jax.random.key, 0)
    variables = Variables(*jax.eval_shape(family.init, key))
    fields = {name: (field.shape, jnp.float32) for name, field in spec.fields.items()}
    fields |= dict.fromkeys(spec.conditions, ((), jnp.int32))
    batch = {name: jax.ShapeDtypeStruct((2, *s), dtype) for name, (s, dtype) in fields.items()}
    yield from (f"{test_split}/{n}" for n in jax.eval_shape(family.evaluate, variables, batch, key))
    if family.codec:
        codes = jax.eval_shape(family.codec.encode, variables, batch)
        zeros = {name: np.zeros(x.shape, x.dtype) for name, x in codes.items()}
        yield from (f"{test_split}/{name}" for name in family.codec.diagnose(zeros)[0])


def check_draws(family: Family, asked: Iterable[str]) -> None:
    """Raises ValueError where samples, or metrics of them, are asked of a family without."""
    asked = list(asked)
    if family.drawing is None and asked:
        raise SettingError(
            "this family translates images and draws none from noise: use --mode=translate, and "
            f"do not ask for {', '.join(asked)}"
        )


def check_averages(planned: Iterable[Evaluation], settings: ema_settings.Settings) -> None:
    """Raises ValueError where an evaluation is of an average that a run does not keep."""
    for e in planned:
        if e.ema is not None:
            try:
                averages.check_half_life(e.ema, settings)
            except SettingError as error:
                raise SettingError(f"evaluations.{e.name}.ema: {error}") from error


def check_density(family: Family, planned: Iterable[Evaluation]) -> None:
    """Raises ValueError where exact likelihoods are asked of a family without."""
    for e in planned:
        if e.metric == "exact_likelihood" and family.density is None:
            raise SettingError(
                f"evaluations.{e.name}: exact likelihoods are those of diffusion models, by their "
                "ODE; this family has none: ask for 'likelihood', a bound"
            )


def check_sampling(
    planned: Iterable[Evaluation], sampling: Mapping[str, Any], rebuild: Rebuild
) -> None:
    """Raises ValueError where an evaluation samples in a way that the family does not know."""
    for e in planned:
        for key in e.sampling:
            one_of(f"a setting of evaluations.{e.name}.sampling", key, sampling)
        if e.sampling.get("weak"):
            raise SettingError(
                f"evaluations.{e.name}.sampling.weak: one weak model serves all evaluations: name "
                "it by config.sampling.weak of --mode=evaluate, and set weak='' and "
                "autoguidance=1.0 in those without it"
            )
        if e.sampling:
            rebuild(e.sampling)


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
      {name of an evaluation without a value, of too few examples or with a network that tells no
      classes: what it lacks, in words}.

    Raises:
      ValueError: samples or translations asked of a family without, metrics of another kind of
        data, fewer than two samples, a sampler that cannot be built, a feature network of other
        images, statistics of another network; not one evaluation that has what it needs.
      FileNotFoundError: weights or statistics that are not there.
    """
    planned = tuple(planned)
    of_samples = [e for e in planned if e.draws]
    check_draws(family, [e.name for e in of_samples])
    check_density(family, planned)
    check_sampling(of_samples, sampling, rebuild)
    for e in of_samples:
        _check_kind(e, data)
        if e.count < 2:
            raise SettingError(
                f"a distribution takes at least 2 samples to judge, not {e.count}: set --num or "
                "evaluation.count, on a schedule evaluation.scheduled_count"
            )
        split = f"evaluation.reference_split of {e.name}"
        one_of(split, e.settings["reference_split"], data.dataset.sources)
        if e.metric in evaluators.DISTRIBUTION:
            network = open_network(e, data, extractors)
            if e.settings["statistics"]:
                _check_statistics(e.settings["statistics"], network, data.spec.shape)
    for e in planned:
        open_lpips(e, family, data, extractors)
        if e.metric == "translation":
            _check_translation(e, family, data)
            open_network(e, data, extractors)
    return _lacking(planned, data)


def compared_with(e: Evaluation, data: RealData) -> tuple[str, str]:
    """(the split that samples are compared with, the one that is held out from it)."""
    reference = e.settings["reference_split"]
    return reference, data.train_split if reference == data.test_split else data.test_split


def shared_examples(e: Evaluation, data: RealData) -> str:
    """In words that the reference holds examples that should be held out from it; else ""."""
    reference, held_out = compared_with(e, data)
    count = data.dataset.shared(reference, held_out)
    if not count or reference == held_out or e.to_statistics:
        return ""
    return f"the reference holds {count:,} examples of {held_out}: set evaluation.reference_split"


def _lacking(planned: Sequence[Evaluation], data: RealData) -> dict[str, str]:
    """{name of an evaluation: what it lacks, examples or classes}; ValueError where all do."""
    found = {}
    for e in planned:
        if e.draws:
            reference = len(data.dataset.sources[compared_with(e, data)[0]])
            reference = math.inf if e.to_statistics else reference
            compared = e.settings["manifold_count"]
            words = evaluators.without_classes(e.metric, e.settings["network"])
            words = words or evaluators.lacking(e.metric, e.count, reference, compared)
            if words:
                found[e.name] = words
    if found and len(found) == len(planned):
        told = "; ".join(f"{name} {words}" for name, words in found.items())
        raise SettingError(
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
        raise SettingError(
            f"{path} has statistics of {len(mean)} features, network {network.network.name!r} has "
            f"{found.shape[1]}: take both from the same network"
        )


def _check_kind(evaluation: Evaluation, data: RealData) -> None:
    """Raises ValueError where a metric is not one of data of this kind."""
    kind = data.spec.kind
    if evaluation.metric in evaluators.POINTS and data.name not in mixtures.MIXTURES:
        known = " and ".join(mixtures.MIXTURES)
        raise SettingError(
            f"evaluator {evaluation.name!r} judges samples of {known}, not of {data.name!r}"
        )
    if evaluation.metric in evaluators.DISTRIBUTION and not modalities.of(kind).judged_in_features:
        raise SettingError(
            f"evaluator {evaluation.name!r} judges images in the space of a feature network, and "
            f"{data.name!r} holds {kind}: ask for {', '.join(evaluators.POINTS)}"
        )


def _check_translation(e: Evaluation, family: Family, data: RealData) -> None:
    """Raises ValueError where a family does not translate, or data have no such split."""
    if family.translate is None:
        raise SettingError(f"this family does not translate images: do not ask for {e.name}")
    split = f"evaluation.reference_split of {e.name}"
    one_of(split, e.settings["reference_split"], data.dataset.sources)


def open_network(
    evaluation: Evaluation, data: RealData, extractors: FeatureExtractors
) -> FeatureExtractor:
    """The feature network of an evaluation; raises as `FeatureExtractors.open`."""
    settings = evaluation.settings
    return extractors.open(settings["network"], settings["weights"], data.spec.shape)


def open_lpips(
    evaluation: Evaluation, family: Family, data: RealData, extractors: FeatureExtractors
) -> lpips.Lpips | None:
    """What LPIPS of an evaluation's reconstructions is taken in, None where there are none.

    Raises as `lpips.load`; ValueError too where it is asked for of data that are no images.
    """
    chosen, weights = (evaluation.settings[key] for key in ("lpips", "lpips_weights"))
    if evaluation.metric != "reconstruction" or not (family.views and family.views.reconstruct):
        return None
    if not modalities.of(data.spec.kind).judged_in_features:
        if chosen not in (lpips.AUTO, ""):
            raise SettingError(
                f"evaluation.lpips={chosen} compares images, and {data.name!r} holds "
                f"{data.spec.kind}: set it to ''"
            )
        return None
    return extractors.open_lpips(chosen, weights, data.spec.shape)
