"""The kinds of data: all that depends on whether x is an image, a point or something else.

No other file asks for a shape to find out what it holds: it takes `of(spec.kind)` instead.
"""

from aigc_jax.modalities.base import Modality
from aigc_jax.modalities.batches import augment_batch, to_model_batch
from aigc_jax.modalities.table import MODALITIES, of

__all__ = ["MODALITIES", "Modality", "augment_batch", "of", "to_model_batch"]
