"""What a classifier's answers say of samples: how sure, how varied, and which modes are missed.

Float64 on the host.
"""

import itertools
from typing import NamedTuple

import numpy as np
from scipy.special import log_softmax, logsumexp

from aigc_jax.errors import SettingError
from aigc_jax.evaluation.metrics.arrays import check_features


class ModeCoverage(NamedTuple):
    """How samples spread over the modes of the data.

    Attributes:
      covered: modes hit at least once.
      kl: KL(samples || real) in nats; 0 is perfect, finite where modes are missed. PacGAN (Lin et
        al. 2018, arXiv:1712.04086) calls it the reverse KL.
    """

    covered: int
    kl: float


def inception_score(
    logits: np.ndarray, *, splits: int = 10, seed: int | None = 0
) -> tuple[float, float]:
    """exp E_x KL(p(y|x) || p(y)), the mean over splits of the samples and the deviation over them.

    Salimans et al. 2016 (arXiv:1606.03498), section 4. Between 1 and K, for sets of any size biased
    towards 1. The deviation is the population's, as reported with it; it is 0 with one split.

    Args:
      logits: [n, K], a classifier's outputs before the softmax.
      splits: parts scored apart, each with its own p(y); at most n.
      seed: of the shuffle before the split, as samples may be sorted by class; None for none.

    Raises:
      ValueError: another rank, NaN or inf, fewer samples than splits.
    """
    if splits < 1:
        raise SettingError(f"splits must be at least 1, not {splits}")
    logits = check_features(logits, "logits", at_least=splits).astype(np.float64)
    if seed is not None:
        logits = np.random.default_rng(seed).permutation(logits)
    log_p = log_softmax(logits, axis=1)
    edges = np.arange(splits + 1) * len(log_p) // splits
    scores = [_score(log_p[a:b]) for a, b in itertools.pairwise(edges)]
    return float(np.mean(scores)), float(np.std(scores))


def _score(log_p: np.ndarray) -> float:
    """exp of the mean KL of rows to their average; in logs, as p(y) may be below 1e-308."""
    log_marginal = logsumexp(log_p, axis=0) - np.log(len(log_p))
    return float(np.exp((np.exp(log_p) * (log_p - log_marginal[None])).sum(1).mean()))


def mode_coverage(predicted: np.ndarray, real_frequencies: np.ndarray) -> ModeCoverage:
    """Modes that samples reach, and how far their shares are from the data's.

    Srivastava et al. 2017 (VEEGAN, arXiv:1705.07761).

    Args:
      predicted: int [n], the mode of each sample, in 0..K-1; the divergence of none is infinite.
      real_frequencies: [K], shares or counts of the modes among real data.

    Raises:
      ValueError: modes outside 0..K-1, frequencies that are none, or samples in a mode that real
        data does not have, for which the divergence is infinite.
    """
    predicted = np.asarray(predicted)
    real = np.asarray(real_frequencies, np.float64)
    if real.ndim != 1 or not np.isfinite(real).all() or (real < 0).any() or not real.sum() > 0:
        raise SettingError("real_frequencies must be [K], none negative, NaN or inf, and not all 0")
    if predicted.ndim != 1 or predicted.dtype.kind not in "iu":
        raise SettingError(
            f"predicted must be integers [n], not {predicted.dtype} {list(predicted.shape)}"
        )
    if not predicted.size:
        return ModeCoverage(covered=0, kl=float("inf"))
    if predicted.min() < 0 or predicted.max() >= len(real):
        raise SettingError(
            f"predicted must lie in 0..{len(real) - 1}, not in {predicted.min()}..{predicted.max()}"
        )
    share = np.bincount(predicted, minlength=len(real)) / len(predicted)
    real, hit = real / real.sum(), share > 0
    if (real[hit] == 0).any():
        unknown = np.flatnonzero(hit & (real == 0))[0]
        raise SettingError(f"samples fall in mode {unknown}, which real_frequencies gives 0")
    kl = (share[hit] * np.log(share[hit] / real[hit])).sum()
    return ModeCoverage(covered=int(hit.sum()), kl=max(float(kl), 0.0))


def mixture_modes(
    points: np.ndarray, centres: np.ndarray, std: float
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of a mixture's modes to each point, and whether the point is of high quality.

    That is within 3 std of the centre (Srivastava et al. 2017, arXiv:1705.07761).

    Args:
      points: [n, 2].
      centres: [K, 2].
      std: of each mode, above 0.

    Returns:
      (mode int [n], high_quality bool [n]). Of a mixture in two dimensions itself, 98.9 % are.

    Raises:
      ValueError: other shapes, NaN or inf.
    """
    points, centres = check_features(points, "points"), check_features(centres, "centres")
    if points.shape[1] != 2 or centres.shape[1] != 2:
        raise SettingError(
            f"points and centres must be [n, 2], not {list(points.shape)}, {list(centres.shape)}"
        )
    if not std > 0:
        raise SettingError(f"std must be above 0, not {std}")
    points, centres = points.astype(np.float64), centres.astype(np.float64)
    distance = np.linalg.norm(points[:, None] - centres[None], axis=-1)
    return distance.argmin(1), distance.min(1) <= 3 * std
