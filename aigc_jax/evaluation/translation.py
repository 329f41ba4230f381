"""How far translated images are from real ones of the domain that they are translated to."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from aigc_jax.evaluation.comparison import moments, named
from aigc_jax.evaluation.features import subsample
from aigc_jax.evaluation.metrics import frechet, kernel
from aigc_jax.evaluation.results import Row


class Translated(NamedTuple):
    """One direction, in features [n, d] of one network.

    Attributes:
      made: of the translations of held-out images.
      reference: of the images of that domain that the model is trained on.
      held_out: of real images of that domain that it is not trained on.
    """

    made: np.ndarray
    reference: np.ndarray
    held_out: np.ndarray


def distances_of(found: Mapping[str, Translated], network: str, name: str) -> list[Row]:
    """The Fréchet and the kernel distance of each direction, "fd_vgg16/a2b".

    Args:
      found: {direction: its features}.
      network: of the features.
      name: data set and split of the reference.
    """
    rows = []
    for direction, (made, reference, held_out) in found.items():
        n, target = len(made), moments(reference)
        real = held_out[subsample(len(held_out), n)]
        fd, fd_real = (frechet.frechet_distance(*moments(x), *target) for x in (made, real))
        kd, kd_real = (kernel.kernel_distance(x, reference) for x in (made, real))
        note = f"fewer images than the {made.shape[1]} features: biased upwards"
        stated = {"network": network, "reference": f"{name} ({len(reference)})"}
        rows += [
            Row(
                f"{named('fd', network)}/{direction}",
                fd,
                n,
                real=fd_real,
                note=note if n <= made.shape[1] else "",
                **stated,
            ),
            Row(f"{named('kd', network)}/{direction}", kd[0], n, kd[1], kd_real[0], **stated),
        ]
    return rows
