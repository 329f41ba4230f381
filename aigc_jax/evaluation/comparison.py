"""What evaluators of samples see: samples and real data, each once, and which of them is which."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import NamedTuple

import numpy as np

from aigc_jax.errors import SettingError
from aigc_jax.evaluation.features import Features, subsample
from aigc_jax.evaluation.metrics import frechet
from aigc_jax.evaluation.metrics.memorisation import Memorisation, memorisation

# What metrics are called where the feature network is Inception.
OF_INCEPTION = {"fd": "fid", "kd": "kid", "score": "inception_score"}


class Images(NamedTuple):
    """Images that are judged, by what a feature network makes of them.

    Attributes:
      features: float32 [n, d].
      logits: float32 [n, K].
      real: whether they are held-out real images, and not samples.
      labels: () -> int [n], what each shows, or was drawn to show; None without.
    """

    features: np.ndarray
    logits: np.ndarray
    real: bool
    labels: Callable[[], np.ndarray] | None = None


class Points(NamedTuple):
    """Points in the plane that are judged.

    Attributes:
      values: float32 [n, 2].
      real: whether they are held-out real points, and not samples.
    """

    values: np.ndarray
    real: bool


@dataclasses.dataclass(frozen=True)
class RealSplit:
    """Real data of one split.

    Attributes:
      name: data set and split, such as "cifar10 test".
      size: how many examples.
      load: () -> their features.
      fetch: indices -> {"x": as stored [n, ...], "label": int [n] if the data have labels}.
    """

    name: str
    size: int
    load: Callable[[], Features]
    fetch: Callable[[np.ndarray], Mapping[str, np.ndarray]]

    @cached_property
    def features(self) -> Features:
        """Features of all of them."""
        return self.load()

    @cached_property
    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of their features."""
        return moments(self.features.features)


@dataclasses.dataclass(frozen=True)
class ImageComparison:
    """Samples of a model beside real images in one feature space; what is shared is made once.

    Attributes:
      network: name of the feature network.
      drawn: () -> features of the samples.
      labels: int [n], the class that each sample was drawn for; None without.
      reference, held_out: what samples are compared with, and other images of the same kind.
      statistics: mean and covariance of features to take the Fréchet distance to instead, and
        their name; None takes the reference's.
      manifold_count: most images of a kind where all pairs are compared.
    """

    network: str
    drawn: Callable[[], Features]
    labels: np.ndarray | None
    reference: RealSplit
    held_out: RealSplit
    statistics: tuple[np.ndarray, np.ndarray, str] | None
    manifold_count: int

    @cached_property
    def samples(self) -> Images:
        """The samples."""
        found = self.drawn()
        if not np.ptp(found.features, axis=0).any():
            raise SettingError(
                f"all {len(found.features)} samples have the same features, so they are one image: "
                "no distribution can be judged. Look at them with --mode=sample"
            )
        labels = None if self.labels is None else lambda: self.labels
        return Images(*found, real=False, labels=labels)

    @cached_property
    def real(self) -> Images:
        """Held-out images, at most as many as there are samples."""
        found = self.held_out.features.subsample(len(self.samples.features))

        def labels() -> np.ndarray:
            return self.held_out.fetch(subsample(self.held_out.size, len(found.features)))["label"]

        return Images(*found, real=True, labels=None if self.labels is None else labels)

    @property
    def target(self) -> tuple[np.ndarray, np.ndarray, str]:
        """Mean, covariance and name of what the Fréchet distance is taken to."""
        if self.statistics is not None:
            return self.statistics
        return *self.reference.moments, self.reference_name

    @cached_property
    def nearest(self) -> Memorisation:
        """Each sample's nearest real images."""
        real = (split.features.features for split in (self.reference, self.held_out))
        return memorisation(self.samples.features, *real)

    @property
    def reference_name(self) -> str:
        """The reference as a row states it."""
        return f"{self.reference.name} ({len(self.reference.features.features)})"

    def named(self, metric: str) -> str:
        """See `named`."""
        return named(metric, self.network)


@dataclasses.dataclass(frozen=True)
class PointComparison:
    """Samples of the plane beside the mixture that they should come from.

    Attributes:
      drawn: () -> the samples, float32 [n, 2].
      held_out: other points of the same mixture.
      centres: [K, 2], of its modes.
      std: of each mode.
    """

    drawn: Callable[[], np.ndarray]
    held_out: RealSplit
    centres: np.ndarray
    std: float

    network = ""  # points are judged as they are

    @cached_property
    def samples(self) -> Points:
        """The samples."""
        return Points(self.drawn(), real=False)

    @cached_property
    def real(self) -> Points:
        """Held-out points, at most as many as there are samples."""
        index = subsample(self.held_out.size, len(self.samples.values))
        return Points(self.held_out.fetch(index)["x"], real=True)


def named(metric: str, network: str) -> str:
    """A metric with its network's name; with Inception some have a name of their own."""
    if network == "inception" and metric in OF_INCEPTION:
        return OF_INCEPTION[metric]
    return f"{metric}_{network}"


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance, a part at a time: features in float64 would be twice as large."""
    total = frechet.Moments()
    for start in range(0, len(features), 4096):
        total.add(features[start : start + 4096])
    return total.mean, total.covariance
