"""Evaluators: they get pure functions and arrays, and know no family and no trainer."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def per_example(
    evaluate: Callable[..., Mapping[str, jax.Array]],
    batches: Iterable[Mapping[str, jax.Array]],
    key: jax.Array,
) -> dict[str, float]:
    """Means of what a family computes for each example of a data set.

    Args:
      evaluate: (batch, key) -> {name: [B]}; jitted here is not assumed.
      batches: each with "mask" [B], 1 for a real row and 0 for padding.
      key: batch i is given fold_in(key, i), so that equal models get equal values.
    """
    sums: dict[str, Any] = {}
    count = 0.0
    for i, batch in enumerate(batches):
        values = evaluate(batch, jax.random.fold_in(key, i))
        mask = batch["mask"]
        for name, value in values.items():
            # A padded row must not turn the mean into NaN either.
            total = jnp.sum(jnp.where(mask > 0, value, 0.0))
            sums[name] = sums.get(name, 0.0) + np.float64(total)
        count += float(jnp.sum(mask))
    return {name: float(total / count) for name, total in sums.items()}
