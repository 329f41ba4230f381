"""Feature networks on the devices, each opened once, and the features of real images in files."""

import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from aigc_jax import files
from aigc_jax.data import digits, loader
from aigc_jax.errors import SettingError
from aigc_jax.evaluation import features, lpips
from aigc_jax.evaluation.comparison import RealSplit
from aigc_jax.evaluation.features import FeatureNetwork, Features
from aigc_jax.runs.examples import RealData
from aigc_jax.sampling.batches import map_batches
from aigc_jax.training import sharding


def cache_folder() -> pathlib.Path:
    """$AIGC_CACHE, or ~/.cache/aigc_jax."""
    return files.expanded(os.environ.get("AIGC_CACHE") or "~/.cache/aigc_jax")


class FeatureExtractor(NamedTuple):
    """A feature network on the devices.

    Attributes:
      network: the network.
      digest: its digest, which takes a while to compute.
      run: images uint8 [b, H, W, C], split over the devices -> (features, logits), compiled.
      mesh: the devices.
      batch_size: images at a time, always as many, so that one compilation serves all.
    """

    network: FeatureNetwork
    digest: str
    run: Callable
    mesh: Any
    batch_size: int

    def __call__(self, images: np.ndarray) -> Features:
        """Features of uint8 [n, H, W, C], n >= 1, whole on every process."""
        return Features(*map_batches(self.run, self.mesh, images, self.batch_size, whole=True))

    def of_batches(self, batches: Iterable[np.ndarray]) -> Features:
        """Features of images that come in batches; no more than one of these is held at a time."""
        parts = [self(batch) for batch in batches]
        if not parts:
            raise SettingError("there are no images to take features of")
        return Features(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


class FeatureExtractors:
    """The feature networks that one process has opened: a second `open` costs nothing.

    Handed from the schedule of a run to the evaluation at its end.
    """

    def __init__(self, mesh: Any, batch_size: int = 64) -> None:
        self._mesh, self._batch_size = mesh, batch_size
        self._open: dict[tuple[str, str | None], FeatureExtractor] = {}
        self._lpips: dict[tuple, lpips.Lpips | None] = {}

    def open(self, network: str, weights: str | None, shape: tuple[int, ...]) -> FeatureExtractor:
        """The extractor of a network by name, for images of this shape.

        Raises:
          ValueError: an unknown network, one of other images, or weights of another network.
          FileNotFoundError: no weights there.
        """
        features.check(network, shape)
        key = (network, weights)
        if key not in self._open:
            train = partial(digits.arrays, "train")
            found = features.load(network, weights, train, cache_folder())
            self._open[key] = extractor(found, self._mesh, self._batch_size)
        return self._open[key]

    def open_lpips(
        self, chosen: str, weights: str | None, shape: tuple[int, ...]
    ) -> lpips.Lpips | None:
        """LPIPS, its weights on the devices; arguments and errors as those of `lpips.load`."""
        key = (chosen, weights, shape)
        if key not in self._lpips:
            found = lpips.load(chosen, weights, shape)
            if found and found.variables is not None:
                found = found._replace(variables=sharding.place(found.variables, self._mesh))
            self._lpips[key] = found
        return self._lpips[key]


def extractor(network: FeatureNetwork, mesh: Any, batch_size: int = 64) -> FeatureExtractor:
    """A network put on the devices of a mesh, its weights whole on each."""
    variables = sharding.place(network.variables, mesh)
    apply = jax.jit(lambda variables, x: network.apply(variables, x.astype(jnp.float32)))
    return FeatureExtractor(network, network.digest, partial(apply, variables), mesh, batch_size)


def real_split(data: RealData, split: str, extractor: FeatureExtractor | None) -> RealSplit:
    """A split of real data; its features are computed once and kept in a file.

    Without an extractor it has no features.
    """
    source = data.dataset.sources[split]

    def passing() -> Iterator[np.ndarray]:
        size = extractor.batch_size
        description, total = f"features of {data.name} {split}", -(-len(source) // size)
        batches = loader.epoch(source, batch_size=size)
        for batch in tqdm(batches, total=total, desc=description, disable=None, leave=False):
            yield batch["x"][batch["mask"] > 0]

    def found() -> Features:
        network, digest = extractor.network, extractor.digest
        probe = source.fetch(features.subsample(len(source), 32))["x"]
        shape = "x".join(map(str, data.spec.shape))
        key = [data.name.replace("/", "_"), split, len(source), shape, network.name]
        key += [network.preprocessing, digest]
        key.append(hashlib.sha256(probe.tobytes()).hexdigest()[:8])  # a folder's images may change
        arrays = features.cached(
            cache_folder() / "features",
            "-".join(map(str, key)),
            Features._fields,
            lambda: extractor.of_batches(passing()),
            on_all=sharding.on_all,  # a folder of each process's own may lack what others' hold
        )
        return Features(*arrays)

    return RealSplit(f"{data.name} {split}", len(source), found, source.fetch)
