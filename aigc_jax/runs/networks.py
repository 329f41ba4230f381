"""What evaluators of held-out examples take of networks: LPIPS, and features of translations."""

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from aigc_jax import modalities
from aigc_jax.data.sources import Source
from aigc_jax.errors import SettingError
from aigc_jax.evaluation.per_example import ModelUnderTest
from aigc_jax.evaluation.translation import Translated
from aigc_jax.family import Family, Variables
from aigc_jax.runs.evaluations import Evaluation, open_lpips, open_network
from aigc_jax.runs.examples import RealData
from aigc_jax.runs.extractors import FeatureExtractor, FeatureExtractors
from aigc_jax.sampling.batches import map_batches


def with_networks(
    model: ModelUnderTest,
    e: Evaluation,
    family: Family,
    variables: Variables,
    data: RealData,
    extractors: FeatureExtractors,
) -> ModelUnderTest:
    """The model with what one evaluation of examples takes of networks, which are open already."""
    model = dataclasses.replace(model, lpips=open_lpips(e, family, data, extractors))
    if e.metric != "translation":
        return model
    reference, network = e.settings["reference_split"], open_network(e, data, extractors)
    return dataclasses.replace(
        model,
        translations=partial(translations, family, variables, data, reference, network),
        network=e.settings["network"],
        reference=f"{data.name} {reference}",
    )


def translations(
    family: Family,
    variables: Variables,
    data: RealData,
    reference: str,
    extractor: FeatureExtractor,
) -> dict[str, Translated]:
    """{"a2b", "b2a": features} of the test split's translations and of real images of each domain.

    Args:
      reference: the split whose images stand for what translations should be like.
      extractor: of the features.
    """
    modality, size = modalities.of(data.spec.kind), extractor.batch_size
    real, held_out = (data.dataset.sources[split] for split in (reference, data.test_split))

    def translate(direction: str, source: Source) -> Iterator[np.ndarray]:
        @jax.jit
        def run(variables: Variables, x: Any) -> jax.Array:
            return family.translate(variables, modality.to_model(x), direction)

        for x in _batches(source, size):
            made = map_batches(partial(run, variables), extractor.mesh, x, size, whole=True)
            if not np.isfinite(made).all():
                raise SettingError(
                    "translations are not finite: the model has diverged; take an earlier --step"
                )
            yield modality.to_stored(made)

    def of(images: Iterator[np.ndarray]) -> np.ndarray:
        return extractor.of_batches(images).features

    def towards(direction: str, given: Source, wanted: Source, reference: Source) -> Translated:
        real = (of(_batches(source, size)) for source in (reference, wanted))
        return Translated(of(translate(direction, given)), *real)

    return {
        "a2b": towards("a2b", held_out.a, held_out.b, real.b),
        "b2a": towards("b2a", held_out.b, held_out.a, real.a),
    }


def _batches(source: Source, size: int) -> Iterator[np.ndarray]:
    """All examples of a source, as stored, a part at a time."""
    for start in range(0, len(source), size):
        yield source.fetch(np.arange(start, min(start + size, len(source))))["x"]
