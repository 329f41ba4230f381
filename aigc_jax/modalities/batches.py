"""Batches as loaded -> batches as a model sees them, each field by its kind."""

from collections.abc import Mapping
from typing import Any

import jax

from aigc_jax.family import Batch, DataSpec
from aigc_jax.modalities.table import of


def to_model_batch(spec: DataSpec, batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch as loaded, its fields ("x", and "other" of two domains) in the model's range.

    Labels and masks stay as they are. Arrays may be NumPy's or JAX's.
    """
    return {
        name: of(spec.fields[name].kind).to_model(x) if name in spec.fields else x
        for name, x in batch.items()
    }


def augment_batch(
    spec: DataSpec,
    batch: Batch,
    keys: Mapping[str, jax.Array],
    settings: Mapping[str, Any],
) -> dict[str, jax.Array]:
    """A batch as loaded -> in the model's range and augmented, each field by a key of its own.

    Args:
      spec: of the data.
      batch: {"x": [B, ...], ...} as loaded.
      keys: {"x": key, "other": key}; a field that the batch lacks needs none.
      settings: of the modality's `augment`.

    Raises:
      ValueError: a setting makes no sense for data of this kind.
    """
    found = to_model_batch(spec, batch)
    for name, field in spec.fields.items():
        if name in found:
            found[name] = of(field.kind).augment(keys[name], found[name], **settings)
    return found
