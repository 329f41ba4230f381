"""What evaluators see of a model and its data: pure functions, arrays, and what is made once."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import NamedTuple

import jax
import numpy as np

from aigc_jax.evaluation import frechet
from aigc_jax.evaluation.features import Features, some
from aigc_jax.evaluation.memorisation import Memorisation, memorisation


class Split(NamedTuple):
    """Real images.

    Attributes:
      name: data set and split, such as "cifar10 test".
      size: how many.
      features: () -> their features, kept from one time to the next.
      fetch: indices -> {"image": uint8 (points: float32), "label": int, if the data have labels}.
    """

    name: str
    size: int
    features: Callable[[], Features]
    fetch: Callable[[np.ndarray], Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is evaluated, and against what.

    Attributes:
      network: name of the feature network; "" without, where no metric of features is asked for.
      extract: batches uint8 [b, H, W, C] -> their features; None without a network.
      sample: () -> samples in batches uint8 [b, H, W, C], the same each time; of points of the
        plane float32 [b, 1, 1, 2], as they are.
      labels: int [n], the class that each sample was drawn for; None without.
      reference, held_out: what samples are compared with, and other images of the same kind.
      statistics: mean and covariance of features to take the Fréchet distance to instead, and
        their name; None takes the reference's.
      manifold_count: most images of a kind where all pairs are compared.
      evaluate: (batch, key) -> {name: [B]}, as `Family.evaluate`.
      restore: (batch, key) -> {name: (given, restored)}, or with a third, the original, as
        `Family.restore`; None without.
      likelihood: (batch, key) -> {name: [B]}, as `Family.likelihood`; None without.
      likelihood_count: examples that it is taken of; 0 takes all.
      diagnose: () -> ({metric: value}, warning), as `Family.diagnose` of the held-out data; None
        without.
      pictures: () -> {caption: images [rows, columns, H, W, C]} that go with the rows.
      examples: limit -> held-out data in batches on the devices, with "mask" [B]; whole batches of
        at least that many examples, 0 for all.
      key: of the randomness of these.
      mixture: centres [K, 2] and std of the modes that samples in the plane should have; None where
        samples are images.
    """

    network: str
    extract: Callable[[Iterable[np.ndarray]], Features] | None
    sample: Callable[[], Iterator[np.ndarray]]
    labels: np.ndarray | None
    reference: Split
    held_out: Split
    statistics: tuple[np.ndarray, np.ndarray, str] | None
    manifold_count: int
    evaluate: Callable
    restore: Callable | None
    likelihood: Callable | None
    likelihood_count: int
    diagnose: Callable[[], tuple[Mapping[str, float], str]] | None
    pictures: Callable[[], Mapping[str, np.ndarray]]
    examples: Callable[[int], Iterator[Mapping[str, jax.Array]]]
    key: jax.Array
    mixture: tuple[np.ndarray, float] | None = None

    @cached_property
    def drawn(self) -> tuple[np.ndarray, Features]:
        """The samples, as bytes, and their features."""
        kept: list[np.ndarray] = []

        def passing() -> Iterator[np.ndarray]:
            for batch in self.sample():
                kept.append(batch)
                yield batch

        found = self.extract(passing())
        if not np.ptp(found.features, axis=0).any():
            raise ValueError(
                f"all {len(found.features)} samples have the same features, so they are one image: "
                "no distribution can be judged. Look at them with --mode=sample"
            )
        return np.concatenate(kept), found

    @cached_property
    def points(self) -> np.ndarray:
        """Samples of the plane, float32 [n, 2]."""
        return np.concatenate(list(self.sample())).reshape(-1, 2)

    @cached_property
    def unseen_points(self) -> np.ndarray:
        """Held-out points [m, 2], at most as many as there are samples."""
        index = some(self.held_out.size, len(self.points))
        return self.held_out.fetch(index)["image"].reshape(-1, 2)

    @cached_property
    def real(self) -> Features:
        """Features of the reference."""
        return self.reference.features()

    @cached_property
    def unseen(self) -> Features:
        """Features of held-out images, at most as many as there are samples."""
        return self.held_out.features().some(len(self.drawn[1].features))

    @cached_property
    def target(self) -> tuple[np.ndarray, np.ndarray, str]:
        """Mean, covariance and name of what the Fréchet distance is taken to."""
        if self.statistics is not None:
            return self.statistics
        return *moments(self.real), self.of(self.reference, self.real)

    @cached_property
    def copying(self) -> Memorisation:
        """Each sample's nearest real images."""
        return memorisation(
            self.drawn[1].features, self.real.features, self.held_out.features().features
        )

    def named(self, metric: str) -> str:
        """A metric that carries its network's name."""
        return f"{metric}_{self.network}"

    def of(self, split: Split, features: Features) -> str:
        """A reference as a row states it."""
        return f"{split.name} ({len(features.features)})"


def moments(images: Features) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance, a part at a time: features in float64 would be twice as large."""
    total = frechet.Moments()
    for start in range(0, len(images.features), 4096):
        total.add(images.features[start : start + 4096])
    return total.mean, total.covariance
