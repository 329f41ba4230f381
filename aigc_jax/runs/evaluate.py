"""How a model is judged: one path for the schedule of a run and for the command.

    planned = evaluations.plan(config.evaluations, config.evaluation)  # what each of them needs
    evaluator = Evaluator(planned, family, data, mesh, ...)   # refuses all that can be wrong
    result = evaluator.run(variables, seed=0, weights="EMA")  # rows, and pictures that go with them
    write(workdir, "step00001000", result, step=1000, scheduled=False)

An evaluation has a name and settings: `{"fid": {}, "fid_ddim50": {"metric": "fid", "sampling":
{"sampler": "ddim", "steps": 50}}, "fid_lenet": {"metric": "fid", "network": "lenet"}}`. The metric
is the name's own where none is given; `sampling` replaces values of `config.sampling`; `ema` is the
half-life of another average that the run keeps; any other setting replaces one of
`config.evaluation`. What several evaluations need, samples, features and feature networks, they
share. On a schedule the same happens with fewer samples (`scheduled`).
"""

import json
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax

from aigc_jax import modalities, streams
from aigc_jax.errors import SettingError
from aigc_jax.evaluation import evaluators, results
from aigc_jax.evaluation.per_example import ModelUnderTest
from aigc_jax.family import Family, Variables
from aigc_jax.runs import examples, pictures
from aigc_jax.runs.evaluations import Evaluation, Rebuild, check, open_network
from aigc_jax.runs.examples import RealData
from aigc_jax.runs.extractors import FeatureExtractor, FeatureExtractors
from aigc_jax.runs.networks import with_networks
from aigc_jax.runs.sample_evaluations import SampleEvaluations
from aigc_jax.sampling.driver import Driver

# Half-life of an average that the model under test keeps beside its own -> what to compute with.
Averages = Callable[[float], Variables]


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
        found = (e for e in self.planned if e.metric in evaluators.OF_NETWORK)
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

    def run(
        self,
        variables: Variables,
        *,
        seed: int,
        weights: str,
        real: bool = True,
        averages: Averages | None = None,
    ) -> Result:
        """Rows of every evaluation, those of examples first, and the pictures that go with them.

        Last come those of `left_out`. An evaluation of samples that no metric is defined for, such
        as some that are not finite, is a row without a value whose note says so.

        Args:
          variables: of the model. What samples need of `prepared` is computed where it is {}.
          seed: of the samples; sample i depends on (seed, i) only.
          weights: what rows say of the variables: "EMA", "raw" or "as given".
          real: also takes each metric of samples of held-out real data.
          averages: gives the model's other averages, where an evaluation names one.

        Raises:
          ValueError: not one evaluation has a value.
        """
        rows, shown = self.of_examples(variables, weights=weights, averages=averages), []
        for planned, own, words in self._models(True, variables, weights, averages):
            samples = SampleEvaluations(self, planned, own, seed)
            rows += samples.rows(words, real)
            shown += samples.nearest()
            if own is variables:
                shown += samples.figures()
        if rows and not any(row.n for row in rows):
            told = dict.fromkeys(row.note for row in rows)
            raise SettingError(f"nothing can be evaluated: {'; '.join(told)}")
        return Result(rows + self.left_out, shown)

    def of_examples(
        self, variables: Variables, *, weights: str, averages: Averages | None = None
    ) -> list[results.Row]:
        """Rows of the evaluations of held-out examples; arguments as those of `run`."""
        rows = []
        for planned, own, words in self._models(False, variables, weights, averages):
            for e in planned:
                of_density = {key: e.settings[key] for key in ("probes", "tolerance")}
                model = self.model(own, **of_density)
                judged = with_networks(model, e, self.family, own, self.data, self.extractors)
                found = evaluators.of_examples(e.metric, judged, limit=e.limit, weights=words)
                rows += [row._replace(evaluation=e.label) for row in found]
        return rows

    def of_samples(
        self,
        variables: Variables,
        *,
        seed: int,
        weights: str,
        real: bool = True,
        averages: Averages | None = None,
    ) -> list[results.Row]:
        """Rows of the evaluations of samples; arguments and errors as those of `run`."""
        rows = []
        for planned, own, words in self._models(True, variables, weights, averages):
            rows += SampleEvaluations(self, planned, own, seed).rows(words, real)
        return rows

    def _models(
        self, draws: bool, variables: Variables, weights: str, averages: Averages | None
    ) -> Iterator[tuple[list[Evaluation], Variables, str]]:
        """(evaluations of one average, what to compute with, what rows say of it).

        The first are those that name none, if only for the pictures that go with no evaluation.
        """
        chosen = [e for e in self.planned if e.draws == draws]
        yield [e for e in chosen if e.ema is None], variables, weights
        for half_life in dict.fromkeys(e.ema for e in chosen if e.ema is not None):
            own = [e for e in chosen if e.ema == half_life]
            yield own, averages(half_life), f"EMA {half_life:g}"


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
