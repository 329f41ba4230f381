"""Real data in batches on the devices, in the model's range; and what an encoder makes of them."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from aigc_jax import modalities
from aigc_jax.data import loader
from aigc_jax.data.datasets import Dataset
from aigc_jax.family import Batch, DataSpec, Family, Variables
from aigc_jax.training import sharding

PREPARED_FROM = 10_000  # training examples whose codes a prior is fitted to

# (family, variables) -> the codes of training data, {name: [N, ...]}; see `Drawing.prepare`.
Codes = Callable[[Family, Variables], Mapping[str, np.ndarray]]


class RealData(NamedTuple):
    """The data that a model is trained on, and judged against.

    Attributes:
      name: of the data set, such as "cifar10".
      dataset: its spec, and a source for each split.
      train_split, test_split: names of two of them.
      batch_size: of training. Whatever is random in `Family.evaluate` comes in batches of this
        size, so that no value depends on how samples are drawn.
    """

    name: str
    dataset: Dataset
    train_split: str
    test_split: str
    batch_size: int

    @property
    def spec(self) -> DataSpec:
        return self.dataset.spec


def examples(
    data: RealData, mesh: Any, limit: int = 0, *, split: str | None = None, bar: bool = False
) -> Iterator[Batch]:
    """A split in batches of `data.batch_size` on the devices, in the model's range.

    A batch is split over the devices where it divides; else each device holds all of it, since the
    batch of training must not depend on where a model is judged.

    Args:
      limit: stops after that many examples, rounded up to whole batches; 0 takes all.
      split: None is the test split.
      bar: shows how far it has come.

    Yields:
      {"x": [B, ...], "mask": float32 [B], ...}; the mask is 0 for rows that fill up the last batch.
    """
    splits = data.batch_size % mesh.size == 0
    split = split or data.test_split
    source = data.dataset.sources[split]
    count = -(-min(limit or len(source), len(source)) // data.batch_size)
    batches = loader.epoch(
        source,
        batch_size=data.batch_size,
        process_index=jax.process_index() if splits else 0,
        process_count=jax.process_count() if splits else 1,
    )
    for batch in tqdm(
        itertools.islice(batches, count),
        total=count,
        desc=f"{split} batches",
        disable=None if bar else True,
        leave=False,
    ):
        placed = sharding.put(mesh, batch) if splits else sharding.place(batch, mesh)
        yield modalities.to_model_batch(data.spec, placed)


def codes(
    family: Family, variables: Variables, batches: Iterable[Batch], beside: Iterable[str] = ()
) -> dict[str, np.ndarray]:
    """What `Codec.encode` gives for all real rows of batches as of `examples`: {name: [N, ...]}.

    With them come the entries `beside` of the batches, such as their labels.
    """
    encode = jax.jit(family.codec.encode)
    parts = []
    for batch in batches:
        own = {name: batch[name] for name in ("mask", *beside)}
        found = sharding.fetch({**encode(variables, batch), **own})
        kept = found.pop("mask") > 0
        parts.append({name: array[kept] for name, array in found.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def training_codes(
    family: Family, variables: Variables, data: RealData, mesh: Any, count: int = PREPARED_FROM
) -> dict[str, np.ndarray]:
    """The codes of the first `count` training examples, in whole batches: {name: [N, ...]}."""
    batches = examples(data, mesh, count, split=data.train_split, bar=True)
    return codes(family, variables, batches)


def prepare(family: Family, variables: Variables, mesh: Any, codes: Codes | None) -> Variables:
    """The variables with what `Drawing.prepare` makes of them, on the devices.

    They come back as they are where the family prepares nothing, or fits it to codes and there are
    none.

    Args:
      codes: (family, variables) -> the codes of training data.
    """
    drawing = family.drawing
    if drawing is None or drawing.prepare is None or (drawing.fitted and codes is None):
        return variables
    made = drawing.prepare(variables, codes and partial(codes, family, variables))
    return variables._replace(prepared=sharding.place(made, mesh))
