"""Are samples copies of training images? Held-out images say how near chance alone would come."""

from typing import NamedTuple

import numpy as np

from aigc_jax.evaluation.metrics.manifold import nearest


class Memorisation(NamedTuple):
    """How near samples lie to training images, measured against how near held-out images lie.

    Attributes:
      closer: probability that a sample lies nearer to its nearest training image than a held-out
        image does to its own, ties counted half. 0.5 is what new images of the same kind get; the
        statistic of Meehan, Chaudhuri & Dasgupta 2020 (arXiv:2004.05675).
      copies: share of samples nearer to training data than all but 1 % of the held-out images.
      train, test: [n], each sample's nearest training and held-out image, as its number.
      distances: [n, 2], to these.
    """

    closer: float
    copies: float
    train: np.ndarray
    test: np.ndarray
    distances: np.ndarray


def memorisation(samples: np.ndarray, train: np.ndarray, test: np.ndarray) -> Memorisation:
    """Compares distances in feature space: samples [n, d], train [m, d], test [k, d]."""
    to_train, train_index = nearest(samples, train)
    to_test, test_index = nearest(samples, test)
    usual = np.sort(nearest(test, train)[0])
    farther = len(usual) - np.searchsorted(usual, to_train, side="right")
    ties = len(usual) - np.searchsorted(usual, to_train, side="left") - farther
    return Memorisation(
        closer=float((farther + 0.5 * ties).mean() / len(usual)),
        copies=float((to_train < np.quantile(usual, 0.01)).mean()),
        train=train_index,
        test=test_index,
        distances=np.stack([to_train, to_test], axis=1),
    )
