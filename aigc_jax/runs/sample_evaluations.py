"""Samples of one model, and what evaluations make of them: each once for all that share it."""

import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import numpy as np
from tqdm import tqdm

from aigc_jax import modalities
from aigc_jax.data import mixtures
from aigc_jax.errors import SettingError
from aigc_jax.evaluation import evaluators, features, results
from aigc_jax.evaluation.comparison import ImageComparison, PointComparison, RealSplit
from aigc_jax.evaluation.features import Features
from aigc_jax.family import Variables
from aigc_jax.runs import examples, pictures
from aigc_jax.runs.evaluations import Evaluation, compared_with, shared_examples
from aigc_jax.runs.extractors import real_split
from aigc_jax.sampling.driver import draw

T = TypeVar("T")


class SampleEvaluations:
    """Samples of one model and what is made of them, each once for all evaluations.

    Args:
      evaluator: an `evaluate.Evaluator`: how samples are drawn, and what of.
      planned: those of its evaluations that take samples of this model.
      variables: of the model.
      seed: of the samples.
    """

    def __init__(
        self, evaluator: Any, planned: Sequence[Evaluation], variables: Variables, seed: int
    ) -> None:
        self._of, self._variables, self._seed = evaluator, variables, seed
        self._planned = planned
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

    def nearest(self) -> list[pictures.Picture]:
        """The samples nearest to training data, where memorisation is asked for."""
        found, kind = [], self._of.data.spec.kind
        for e in self._planned:
            if e.metric == "memorisation" and e.name not in self._undefined:
                picture = pictures.nearest(self._comparison(e), self._samples(e), kind)
                if e.label:
                    picture = picture._replace(
                        word=f"{picture.word}-{e.label}", caption=f"{e.label}. {picture.caption}"
                    )
                found.append(picture)
        return found

    def figures(self) -> list[pictures.Picture]:
        """What the family shows of the model beside samples."""
        family, kind = self._of.family, self._of.data.spec.kind
        if not (family.views and family.views.figures):
            return []
        return pictures.figures(family, self._prepared({}), self._of.mesh, self._seed, kind)

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
