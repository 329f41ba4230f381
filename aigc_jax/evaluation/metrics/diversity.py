"""How much images differ from each other: what falls when a model draws few things over and over.

NumPy on the host.
"""

import numpy as np

from aigc_jax.evaluation.metrics.arrays import check_features

_AT_A_TIME = 1 << 22  # values of differences held at once


def mean_distance(vectors: np.ndarray, *, pairs: int = 10_000, seed: int = 0) -> float:
    """Mean Euclidean distance of two different ones of n vectors [n, d].

    Over all pairs where there are no more than `pairs`, else over `pairs` of them at random, the
    same for the same n. Equal vectors count as two: n copies of one have mean 0.

    Raises:
      ValueError: another rank, NaN or inf, fewer than two vectors.
    """
    vectors = check_features(vectors, "vectors", at_least=2)
    n, width = vectors.shape
    if n * (n - 1) // 2 <= pairs:
        left, right = np.triu_indices(n, 1)
    else:
        rng = np.random.default_rng(seed)
        left = rng.integers(n, size=pairs)
        right = (left + rng.integers(1, n, size=pairs)) % n
    total, step = 0.0, max(1, _AT_A_TIME // width)
    for start in range(0, len(left), step):
        chosen = slice(start, start + step)
        difference = vectors[left[chosen]] - vectors[right[chosen]]
        total += np.linalg.norm(difference, axis=1).sum(dtype=np.float64)
    return float(total / len(left))


def relative(vectors: np.ndarray, real: np.ndarray, *, pairs: int = 10_000) -> float:
    """`mean_distance` of vectors [n, d] over that of real ones [m, d]; NaN where that is 0."""
    distance = mean_distance(real, pairs=pairs)
    return mean_distance(vectors, pairs=pairs) / distance if distance else float("nan")
