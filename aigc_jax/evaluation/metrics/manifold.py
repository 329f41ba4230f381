"""Fidelity and diversity apart: where samples lie among the balls around each set's neighbours.

A ball reaches from a point to its k-th neighbour within its own set, the edge included: features
that all coincide have balls of radius 0 that hold each other. Distances are Euclidean, in float64,
of features centred on the real (or base) mean, a block at a time; no n x m array is ever whole.
"""

from collections.abc import Iterator

import numpy as np

from aigc_jax.errors import SettingError
from aigc_jax.evaluation.metrics.arrays import check_pair

BLOCK_BYTES = 64 * 2**20  # of one block of distances
# Squared distances below this share of the squared norms are rounding: the points coincide.
COINCIDENT = 1e-13


def precision_recall(
    real: np.ndarray, fake: np.ndarray, *, neighbours: int = 3
) -> tuple[float, float]:
    """The share of fakes in some real ball, and the share of reals in some fake ball.

    Kynkaanniemi et al. 2019 (arXiv:1904.06991), eq. 1 and 2.

    Args:
      real, fake: features [n, d] and [m, d].
      neighbours: k, below both n and m.

    Raises:
      ValueError: other ranks, different d, NaN or inf, or too few samples.
    """
    real, fake = _pair(real, fake, neighbours, neighbours)
    real_radius, fake_radius = _squared_radii(real, neighbours), _squared_radii(fake, neighbours)
    precise = np.zeros(len(fake), bool)
    recalled = np.zeros(len(real), bool)
    for rows, distance in _squared_distances(fake, real):
        precise[rows] = (distance <= real_radius[None]).any(1)
        recalled |= (distance <= fake_radius[rows, None]).any(0)
    return float(precise.mean()), float(recalled.mean())


def density_coverage(
    real: np.ndarray, fake: np.ndarray, *, neighbours: int = 5
) -> tuple[float, float]:
    """How many real balls hold a fake, over k, and the share of real balls that hold any.

    Naeem et al. 2020 (arXiv:2002.09797). Density has no upper bound and is 1 in
    expectation for sets of one distribution; where all real features coincide, a fake among them
    counts n / k.

    Args:
      real, fake: features [n, d] and [m, d].
      neighbours: k, below n.

    Raises:
      ValueError: other ranks, different d, NaN or inf, or too few samples.
    """
    real, fake = _pair(real, fake, neighbours, 0)
    radius = _squared_radii(real, neighbours)
    held = 0
    covered = np.zeros(len(real), bool)
    for _, distance in _squared_distances(fake, real):
        inside = distance <= radius[None]
        held += int(inside.sum())
        covered |= inside.any(0)
    return held / (neighbours * len(fake)), float(covered.mean())


def nearest(queries: np.ndarray, base: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of `base` to each query: distances float64 [n] and their places int [n].

    A sample that repeats a training image has distance 0.

    Args:
      queries, base: features [n, d] and [m, d].

    Raises:
      ValueError: other ranks, different d, NaN or inf.
    """
    queries, base = check_pair(queries, base, ("queries", "base"))
    queries, base = _centred(queries, base)
    index = np.empty(len(queries), np.int64)
    for rows, distance in _squared_distances(queries, base):
        index[rows] = distance.argmin(1)
    # The difference itself keeps the digits that |q|^2 - 2 q.b + |b|^2 loses for near copies.
    return np.linalg.norm(queries - base[index], axis=1), index


def _squared_radii(points: np.ndarray, k: int) -> np.ndarray:
    """[n], squared distance of each point to its k-th neighbour, itself not counted."""
    radii = np.empty(len(points))
    for rows, distance in _squared_distances(points, points):
        distance.partition(k, axis=1)  # place 0 is the point itself, or one that coincides
        radii[rows] = distance[:, k]
    return radii


def _squared_distances(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """(rows of a, squared distances [rows, m] to all of b), in blocks that fill BLOCK_BYTES."""
    a_norm, b_norm = np.einsum("nd,nd->n", a, a), np.einsum("nd,nd->n", b, b)
    height = max(1, BLOCK_BYTES // (8 * len(b)))
    for start in range(0, len(a), height):
        rows = slice(start, start + height)
        norms = a_norm[rows, None] + b_norm[None]
        distance = a[rows] @ b.T
        distance *= -2
        distance += norms
        norms *= COINCIDENT
        distance[distance < norms] = 0
        yield rows, distance


def _pair(
    real: np.ndarray, fake: np.ndarray, real_neighbours: int, fake_neighbours: int
) -> tuple[np.ndarray, np.ndarray]:
    """Both sets centred, each larger than the neighbours that it is asked for."""
    real, fake = check_pair(real, fake, ("real", "fake"))
    if real_neighbours < 1:
        raise SettingError(f"neighbours must be at least 1, not {real_neighbours}")
    for name, points, k in (("real", real, real_neighbours), ("fake", fake, fake_neighbours)):
        if len(points) <= k:
            raise SettingError(
                f"{k} neighbours need more than {k} samples; {name} has {len(points)}"
            )
    return _centred(fake, real)[::-1]


def _centred(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both less b's mean: an offset common to all would cost the products their digits."""
    mean = b.mean(0, dtype=np.float64)
    return a - mean, b - mean
