"""How a model is judged: one path for the schedule of a run and for the command.

    planned = evaluations.plan(config.evaluations, config.evaluation)  # what each of them needs
    evaluator = Evaluator(planned, family, data, mesh, ...)   # refuses all that can be wrong
    result = evaluator.run(variables, seed=0, weights="EMA")  # rows, and pictures that go with them
    write(workdir, "step00001000", result, step=1000, scheduled=False)

An evaluation has a name and settings: `{"fid": {}, "fid_ddim50": {"metric": "fid", "sampling":
{"sampler": "ddim", "steps": 50}}, "fid_lenet": {"metric": "fid", "network": "lenet"}}`. The metric
is the name's own where none is given; `sampling` replaces values of `config.sampling`; any other
setting replaces one of `config.evaluation`. What several evaluations need, samples, features and
feature networks, they share. On a schedule the same happens with fewer samples (`scheduled`).
"""

import json
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from tqdm import tqdm

from aigc_jax import modalities, streams
from aigc_jax.data import mixtures
from aigc_jax.errors import SettingError
from aigc_jax.evaluation import evaluators, features, results
from aigc_jax.evaluation.comparison import ImageComparison, PointComparison, RealSplit
from aigc_jax.evaluation.features import Features
from aigc_jax.evaluation.per_example import ModelUnderTest
from aigc_jax.family import Family, Variables
from aigc_jax.runs import examples, pictures
from aigc_jax.runs.evaluations import (
    Evaluation,
    Rebuild,
    check,
    compared_with,
    open_network,
    shared_examples,
)
from aigc_jax.runs.examples import RealData
from aigc_jax.runs.extractors import FeatureExtractor, FeatureExtractors, real_split
from aigc_jax.sampling.driver import Driver, draw

T = TypeVar("T")


class Result(NamedTuple):
    """What evaluations give: rows, and the pictures that go with them."""

    rows: list[results.Row]
    pictures: list[pictures.Picture]


class Evaluator:
    """Runs the same evaluations on the variables of a family, as often as one likes.

    Args:
      planned: from `evaluations.plan` or `evaluations.scheduled`.
      family: what is judged.
      data: real data; whatever is random comes in batches of `data.batch_size`.
      mesh: the devices.
      seed: of what is random in the family's functions of examples.
      sampling: `config.sampling`.
      rebuild: values that replace some of `sampling` -> the family that samples by them.
      extractors: feature networks that are open already, and where others are opened.
      batch_size: samples at a time; no value depends on it.
      bars: whether a terminal shows how far held-out examples have come.

    Attributes:
      planned: the evaluations that are run.
      left_out: a row of each other one, whose note says what it lacks.

    Raises as `evaluations.check`.
    """

    def __init__(
        self,
        planned: Sequence[Evaluation],
        family: Family,
        data: RealData,
        mesh: Any,
        *,
        seed: int,
        sampling: Mapping[str, Any],
        rebuild: Rebuild,
        extractors: FeatureExtractors,
        batch_size: int = 64,
        bars: bool = True,
    ) -> None:
        lacking = check(
            planned, family, data, sampling=sampling, rebuild=rebuild, extractors=extractors
        )
        self.planned = tuple(e for e in planned if e.name not in lacking)
        self.left_out = [
            results.Row(e.metric, math.nan, 0, note=lacking[e.name], evaluation=e.label)
            for e in planned
            if e.name in lacking
        ]
        self.family, self.data, self.mesh = family, data, mesh
        self.seed, self.sampling, self.batch_size = seed, dict(sampling), batch_size
        self.extractors = extractors
        self._rebuild, self._bars = rebuild, bars
        self._families, self._drivers = {self.sampled_as({}): family}, {}
        self._evaluate = jax.jit(family.evaluate)
        reconstruct = family.views and family.views.reconstruct
        self._reconstruct = jax.jit(reconstruct) if reconstruct else None

    @property
    def draws(self) -> bool:
        """Whether any of the evaluations takes samples."""
        return any(e.draws for e in self.planned)

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the feature networks that the evaluations use."""
        found = (e for e in self.planned if e.metric in evaluators.DISTRIBUTION)
        return tuple(dict.fromkeys(e.settings["network"] for e in found))

    def sampled_as(self, sampling: Mapping[str, Any]) -> str:
        """What tells apart ways to sample, given what replaces values of `config.sampling`."""
        return json.dumps({**self.sampling, **sampling}, sort_keys=True)

    def family_of(self, sampling: Mapping[str, Any]) -> Family:
        """The family that samples by these values in place of those of `config.sampling`."""
        key = self.sampled_as(sampling)
        if key not in self._families:
            self._families[key] = self._rebuild(sampling)
        return self._families[key]

    def driver(self, sampling: Mapping[str, Any] | None = None) -> Driver:
        """What draws samples so, compiled once; None samples by `config.sampling` itself."""
        key = self.sampled_as(sampling or {})
        if key not in self._drivers:
            drawing, device = self.family_of(sampling or {}).drawing, self.mesh.devices.flat[0]
            self._drivers[key] = Driver(drawing, device.platform)
        return self._drivers[key]

    def extractor(self, e: Evaluation) -> FeatureExtractor:
        """The feature network of an evaluation, which is open already."""
        return open_network(e, self.data, self.extractors)

    def model(self, variables: Variables, **of_density: Any) -> ModelUnderTest:
        """What evaluators of examples see of a model; `of_density` are settings of its density."""
        family, codec = self.family, self.family.codec
        return ModelUnderTest(
            evaluate=partial(self._evaluate, variables),
            reconstruct=self._reconstruct and partial(self._reconstruct, variables),
            bound=family.bound and partial(family.bound, variables),
            codes=codec and partial(examples.codes, family, variables),
            diagnose=codec and codec.diagnose,
            examples=lambda limit: examples.examples(self.data, self.mesh, limit, bar=self._bars),
            name=f"{self.data.name} {self.data.test_split}",
            are_images=modalities.of(self.data.spec.kind).judged_in_features,
            key=streams.evaluation(self.seed),
            density=family.density and partial(family.density, variables, **of_density),
        )

    def run(self, variables: Variables, *, seed: int, weights: str, real: bool = True) -> Result:
        """Rows of every evaluation, those of examples first, and the pictures that go with them.

        Last come those of `left_out`. An evaluation of samples that no metric is defined for, such
        as some that are not finite, is a row without a value whose note says so.

        Args:
          variables: of the model. What samples need of `prepared` is computed where it is {}.
          seed: of the samples; sample i depends on (seed, i) only.
          weights: what rows say of the variables: "EMA", "raw" or "as given".
          real: also takes each metric of samples of held-out real data.

        Raises:
          ValueError: not one evaluation has a value.
        """
        rows = self.of_examples(variables, weights=weights)
        session = _Session(self, variables, seed)
        rows += session.rows(weights, real)
        if rows and not any(row.n for row in rows):
            told = dict.fromkeys(row.note for row in rows)
            raise SettingError(f"nothing can be evaluated: {'; '.join(told)}")
        return Result(rows + self.left_out, session.pictures())

    def of_examples(self, variables: Variables, *, weights: str) -> list[results.Row]:
        """Rows of the evaluations of held-out examples."""
        rows = []
        for e in self.planned:
            if not e.draws:
                of_density = {key: e.settings[key] for key in ("probes", "tolerance")}
                model = self.model(variables, **of_density)
                found = evaluators.of_examples(e.metric, model, limit=e.limit, weights=weights)
                rows += [row._replace(evaluation=e.label) for row in found]
        return rows

    def of_samples(
        self, variables: Variables, *, seed: int, weights: str, real: bool = True
    ) -> list[results.Row]:
        """Rows of the evaluations of samples; arguments and errors as those of `run`."""
        return _Session(self, variables, seed).rows(weights, real)


class _Session:
    """Samples of one model and what is made of them, each once for all evaluations."""

    def __init__(self, evaluator: Evaluator, variables: Variables, seed: int) -> None:
        self._of, self._variables, self._seed = evaluator, variables, seed
        self._planned = [e for e in evaluator.planned if e.draws]
        self._made: dict[tuple, Any] = {}
        self._undefined: set[str] = set()  # names of evaluations of what no metric is defined for

    def rows(self, weights: str, real: bool) -> list[results.Row]:
        """Rows of every evaluation of samples."""
        rows = []
        for e in self._planned:
            sampling = {**self._of.sampling, **e.sampling}
            calls = self._of.family_of(e.sampling).drawing.calls
            stated = results.protocol(sampling, calls=calls, weights=weights, seed=self._seed)
            try:
                found = evaluators.of_samples(e.metric, self._comparison(e), real=real, **stated)
            except SettingError as error:
                found = [results.Row(e.metric, math.nan, 0, note=str(error), **stated)]
                self._undefined.add(e.name)
            shared = shared_examples(e, self._of.data)
            for row in found:
                words = filter(None, [row.note, row.reference and shared])
                rows.append(row._replace(evaluation=e.label, note="; ".join(words)))
        return rows

    def pictures(self) -> list[pictures.Picture]:
        """The samples nearest to training data, where memorisation is asked for; figures."""
        found, kind = [], self._of.data.spec.kind
        for e in self._planned:
            if e.metric == "memorisation" and e.name not in self._undefined:
                picture = pictures.nearest(self._comparison(e), self._samples(e), kind)
                if e.label:
                    picture = picture._replace(
                        word=f"{picture.word}-{e.label}", caption=f"{e.label}. {picture.caption}"
                    )
                found.append(picture)
        family = self._of.family
        if family.views and family.views.figures:
            variables = self._prepared({})
            found += pictures.figures(family, variables, self._of.mesh, self._seed, kind)
        return found

    def _once(self, key: tuple, make: Callable[[], T]) -> T:
        """What `make` gives, or raises, computed when it is first asked for by this key."""
        if key not in self._made:
            try:
                self._made[key] = make()
            except SettingError as error:
                self._made[key] = error
        if isinstance(self._made[key], SettingError):
            raise self._made[key]
        return self._made[key]

    def _most(self, same: Callable[[Evaluation], Any], e: Evaluation) -> int:
        """The largest number of samples of all evaluations that share something with this one."""
        return max(other.count for other in self._planned if same(other) == same(e))

    def _prepared(self, sampling: Mapping[str, Any]) -> Variables:
        """The variables with all that samples of this kind need."""
        family, own = self._of.family_of(sampling), self._of.family
        name = family.drawing.prepared_as if family.drawing else ""
        if own.drawing is None or (
            name == own.drawing.prepared_as and jax.tree.leaves(self._variables.prepared)
        ):
            return self._variables
        bare = self._variables._replace(prepared={})
        codes = partial(examples.training_codes, data=self._of.data, mesh=self._of.mesh)
        return self._once(
            ("prepared", name), lambda: examples.prepare(family, bare, self._of.mesh, codes)
        )

    def _samples(self, e: Evaluation) -> np.ndarray:
        """The samples of an evaluation, as stored: the first of all that are drawn so."""

        def same(other: Evaluation) -> str:
            return self._of.sampled_as(other.sampling)

        def make() -> np.ndarray:
            return np.concatenate(list(self._draw(e.sampling, self._most(same, e))))

        return self._once(("samples", same(e)), make)[: e.count]

    def _draw(self, sampling: Mapping[str, Any], count: int) -> Iterator[np.ndarray]:
        """Yields samples in batches, as stored.

        An image becomes bytes, as if it had been saved.
        """
        family, variables = self._of.family_of(sampling), self._prepared(sampling)
        to_stored = modalities.of(self._of.data.spec.kind).to_stored
        batches = draw(
            self._of.driver(sampling),
            variables,
            self._of.mesh,
            seed=self._seed,
            count=count,
            labels=pictures.labels_of(family),
            batch_size=self._of.batch_size,
        )
        with tqdm(total=count, unit="img", desc="sampling", disable=None, leave=False) as bar:
            for batch in batches:
                if not np.isfinite(batch).all():
                    raise SettingError(
                        "samples are not finite: the model has diverged; take an earlier --step"
                    )
                bar.update(len(batch))
                yield to_stored(batch)

    def _features(self, e: Evaluation) -> Features:
        """Features of an evaluation's samples."""

        def same(other: Evaluation) -> tuple:
            return self._of.sampled_as(other.sampling), *_network(other)

        def make() -> Features:
            largest = e._replace(count=self._most(same, e))
            return self._of.extractor(e)(self._samples(largest))

        found = self._once(("features", *same(e)), make)
        return Features(*(x[: e.count] for x in found))

    def _split(self, name: str, e: Evaluation) -> RealSplit:
        """A split of real data, with features where the evaluation takes any."""
        judged = e.metric in evaluators.DISTRIBUTION
        return self._once(
            ("split", name, judged, *(_network(e) if judged else ())),
            lambda: real_split(self._of.data, name, self._of.extractor(e) if judged else None),
        )

    def _comparison(self, e: Evaluation) -> ImageComparison | PointComparison:
        """What the evaluator of an evaluation sees; one for all evaluations alike."""
        data, settings = self._of.data, e.settings
        reference, held_out = compared_with(e, data)
        if e.metric in evaluators.POINTS:
            centres, std = mixtures.MIXTURES[data.name]()
            split = self._split(held_out, e)
            make = partial(PointComparison, lambda: self._samples(e), split, centres, std)
            key = (self._of.sampled_as(e.sampling), e.count, held_out)
            return self._once(("points", *key), make)

        def images() -> ImageComparison:
            labels = pictures.labels_of(self._of.family_of(e.sampling))
            return ImageComparison(
                network=settings["network"],
                drawn=lambda: self._features(e),
                labels=None if labels is None else np.arange(e.count) % len(labels),
                reference=self._split(reference, e),
                held_out=self._split(held_out, e),
                statistics=_statistics(settings["statistics"]),
                manifold_count=settings["manifold_count"],
            )

        used = ("reference_split", "statistics", "manifold_count")
        key = (self._of.sampled_as(e.sampling), e.count, *_network(e), *(settings[k] for k in used))
        return self._once(("images", *key), images)


def _network(e: Evaluation) -> tuple[str, str | None]:
    """What tells the feature network of an evaluation from all others."""
    return e.settings["network"], e.settings["weights"]


def _statistics(path: str) -> tuple[np.ndarray, np.ndarray, str] | None:
    if not path:
        return None
    return *features.load_statistics(path), pathlib.Path(path).name


def write(
    workdir: pathlib.Path, name: str, result: Result, *, step: int, scheduled: bool
) -> pathlib.Path:
    """Writes rows as evaluations/{name}.json in a run's folder, and their pictures beside it.

    The first process writes for all.
    """
    folder = workdir / "evaluations"
    path = folder / f"{name}.json"
    if jax.process_index() == 0:
        saved = pictures.save(result.pictures, folder, name)
        shown = {caption: f"evaluations/{file.name}" for caption, file in saved.items()}
        results.write(path, result.rows, step=step, scheduled=scheduled, pictures=shown)
    return path
