"""The Frechet distance between two sets of features, from their means and covariances.

With the pool features of an Inception network it is the FID of Heusel et al. 2017
(arXiv:1706.08500). Everything is float64 on the host.
"""

import numpy as np
import scipy.linalg

from aigc_jax.errors import SettingError
from aigc_jax.evaluation.metrics.arrays import check_features


class Moments:
    """Mean and covariance of features that arrive in batches; their order does not matter.

    Chan et al. 1983 (The American Statistician 37): each batch is centred on its own mean
    before its scatter is added, so an offset common to all features costs no digits. Holds
    d x d float64 numbers, whatever the count.

    Attributes:
      count: samples seen.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean = np.zeros(0)
        self._scatter = np.zeros((0, 0))

    def add(self, features: np.ndarray) -> None:
        """Takes in a batch [b, d], b >= 1, of the same d each time.

        Raises:
          ValueError: another rank or d, NaN or inf; the moments stay as they were.
        """
        rows = check_features(features, "features").astype(np.float64)
        b, d = rows.shape
        if not self.count:
            self._mean, self._scatter = np.zeros(d), np.zeros((d, d))
        if d != len(self._mean):
            raise SettingError(f"features so far have dimension {len(self._mean)}, these {d}")
        batch_mean = rows.mean(0)
        rows -= batch_mean
        delta, total = batch_mean - self._mean, self.count + b
        # The term between the means as one more row: a single product gives the whole update.
        between = delta * (self.count * b / total) ** 0.5
        rows = np.concatenate([rows, between[None]])
        self._scatter += rows.T @ rows
        self._mean += delta * (b / total)
        self.count = total

    @property
    def mean(self) -> np.ndarray:
        """[d]. ValueError before the first sample."""
        if not self.count:
            raise SettingError("a mean needs at least 1 sample: add features first")
        return self._mean.copy()

    @property
    def covariance(self) -> np.ndarray:
        """[d, d], unbiased: divided by count - 1. ValueError below 2 samples."""
        if self.count < 2:
            raise SettingError(f"a covariance needs at least 2 samples, not {self.count}")
        return self._scatter / (self.count - 1)


def frechet_distance(
    mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray
) -> float:
    """|mean1 - mean2|^2 + Tr(cov1 + cov2 - 2 (cov1^1/2 cov2 cov1^1/2)^1/2), at least 0.

    The squared 2-Wasserstein distance of two Gaussians, in squared units of the features (Heusel et
    al. 2017, arXiv:1706.08500, eq. 6). Constant features have a zero covariance and are as good as
    any. With F F' the covariances, the eigenvalues under the last root are the squared singular
    values of F1' F2. Those are computed as they are: with fewer samples than dimensions most are 0,
    and the roots of as many rounding errors of 1e-16 would add up.

    Args:
      mean1, mean2: [d].
      cov1, cov2: [d, d], symmetric and positive semi-definite up to rounding, of any rank.

    Raises:
      ValueError: shapes that do not fit, NaN or inf, a matrix that is no covariance.
    """
    mean1, cov1 = check_statistics(mean1, cov1, "the first")
    mean2, cov2 = check_statistics(mean2, cov2, "the second")
    if mean1.shape != mean2.shape:
        raise SettingError(
            f"statistics must have one dimension, not {len(mean1)} and {len(mean2)}: "
            "take both from the same features"
        )
    product = _factor(cov1, "the first").T @ _factor(cov2, "the second")
    overlap = np.linalg.svd(product, compute_uv=False).sum()
    difference = mean1 - mean2
    return max(float(difference @ difference + np.trace(cov1) + np.trace(cov2) - 2 * overlap), 0.0)


def _factor(cov: np.ndarray, which: str) -> np.ndarray:
    """F [d, rank] with F F' = cov; Cholesky with pivots, which ends where only rounding is left."""
    packed, pivots, rank, _ = scipy.linalg.lapack.dpstrf(cov, lower=1)
    factor = np.empty((len(cov), rank))
    factor[pivots - 1] = np.tril(packed)[:, :rank]
    # Wide enough for statistics that were stored in float32.
    if abs(factor @ factor.T - cov).max() > 1e-3 * abs(cov).max():
        raise SettingError(f"{which} covariance has negative eigenvalues: compute it again")
    return factor


def check_statistics(
    mean: np.ndarray, cov: np.ndarray, which: str
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance in float64, the latter symmetric to the last bit; else ValueError."""
    mean, cov = np.asarray(mean, np.float64), np.asarray(cov, np.float64)
    if mean.ndim != 1 or not mean.size or cov.shape != 2 * mean.shape:
        raise SettingError(
            f"{which} statistics must be a mean [d] and a covariance [d, d], "
            f"not {list(mean.shape)} and {list(cov.shape)}"
        )
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        raise SettingError(f"{which} statistics hold NaN or inf: compute them again")
    if abs(cov - cov.T).max() > 1e-3 * abs(cov).max():
        raise SettingError(f"{which} covariance is not symmetric: compute it again")
    return mean, (cov + cov.T) / 2
