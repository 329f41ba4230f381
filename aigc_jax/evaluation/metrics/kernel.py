"""The kernel distance between two sets of features (KID), which is unbiased at any sample size.

Binkowski et al. 2018 (arXiv:1801.01401): the squared maximum mean discrepancy with the kernel
k(x, y) = (x.y / d + 1)^3. Float64 on the host.
"""

import numpy as np

from aigc_jax.errors import SettingError
from aigc_jax.evaluation.metrics.arrays import check_pair

BLOCK_BYTES = 64 * 2**20  # of one block of kernel values


def kernel_distance(
    features1: np.ndarray,
    features2: np.ndarray,
    *,
    subsets: int = 100,
    size: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """The mean of `mmd2_unbiased` over random subsets, and that mean's standard error.

    Subsets are drawn without replacement from each set, anew each time. They share samples, so the
    standard error says how far the mean over subsets has settled for these features, not how it
    would vary with new ones. Where a subset is all there is of both sets, one is enough and the
    error is 0. The value may be slightly below 0 where the sets are of one distribution.

    Args:
      features1, features2: [n1, d] and [n2, d].
      subsets: how many, at least 2.
      size: samples of each set in a subset; with fewer at hand, min(n1, n2).
      seed: of the draw.

    Raises:
      ValueError: other ranks, different d, NaN or inf, fewer than 2 samples, subsets or size.
    """
    features1, features2 = check_pair(features1, features2, ("features1", "features2"), 2)
    if min(subsets, size) < 2:
        raise SettingError(f"subsets and size must be at least 2, not {subsets} and {size}")
    n1, n2 = len(features1), len(features2)
    size = min(size, n1, n2)
    if size == n1 == n2:
        return mmd2_unbiased(features1, features2), 0.0
    rng = np.random.default_rng(seed)
    values = [
        mmd2_unbiased(
            features1[rng.choice(n1, size, replace=False)],
            features2[rng.choice(n2, size, replace=False)],
        )
        for _ in range(subsets)
    ]
    return float(np.mean(values)), float(np.std(values, ddof=1) / subsets**0.5)


def mmd2_unbiased(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased squared maximum mean discrepancy of x [m, d] and y [n, d], m and n >= 2.

    Pairs of a sample with itself are left out (Gretton et al. 2012, Lemma 6; Binkowski et al. 2018,
    arXiv:1801.01401), so its expectation is 0 for sets of one distribution. ValueError as
    `kernel_distance`.
    """
    x, y = check_pair(x, y, ("x", "y"), 2)
    x, y = x.astype(np.float64), y.astype(np.float64)
    m, n = len(x), len(y)
    return float(
        _within(x) / (m * (m - 1)) + _within(y) / (n * (n - 1)) - 2 * _total(x, y) / (m * n)
    )


def _within(x: np.ndarray) -> float:
    """Sum of k(x_i, x_j) over i != j."""
    return _total(x, x) - _cubic(np.einsum("nd,nd->n", x, x), x.shape[1]).sum()


def _total(x: np.ndarray, y: np.ndarray) -> float:
    """Sum of k(x_i, y_j) over all pairs, a block of rows at a time."""
    rows = max(1, BLOCK_BYTES // (8 * len(y)))
    return sum(
        _cubic(x[start : start + rows] @ y.T, x.shape[1]).sum() for start in range(0, len(x), rows)
    )


def _cubic(product: np.ndarray, d: int) -> np.ndarray:
    base = product / d + 1
    return base * base * base  # three times as fast as a power
