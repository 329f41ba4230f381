"""The kinds of data by name."""

from aigc_jax import checks
from aigc_jax.modalities.base import Modality
from aigc_jax.modalities.image import IMAGE
from aigc_jax.modalities.points import POINTS

MODALITIES: dict[str, Modality] = {"image": IMAGE, "points": POINTS}


def of(kind: str) -> Modality:
    """The modality of a kind of data, such as `DataSpec.kind`. Raises ValueError on others."""
    checks.one_of("the kind of data", kind, MODALITIES)
    return MODALITIES[kind]
