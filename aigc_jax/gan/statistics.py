"""What networks keep from batch to batch: statistics of batch norms, vectors of spectral norms."""

from typing import Any

import jax
import jax.numpy as jnp

from aigc_jax.family import Extra
from aigc_jax.networks.gan.layers import MOMENTUM


def in_training(module: Any, params: Any, stats: Any, *inputs: Any) -> tuple[Any, Any]:
    """Outputs of a network that normalises by this batch, and the statistics to keep after it."""
    variables = {"params": params, "batch_stats": stats}
    out, new = module.apply(variables, *inputs, train=True, mutable=["batch_stats"])
    return out, new.get("batch_stats", {})


def updated(extra: Extra, player: str, stats: Any) -> dict[str, Any]:
    """`extra` with a player's new statistics, where it has any."""
    return {**extra, player: stats} if player in extra else dict(extra)


def of_one_batch(module: Any, params: Any, stats: Any, *inputs: Any) -> Any:
    """Batch statistics as one batch alone has them, in the form of `stats`, which are not used."""
    empty = jax.tree.map(jnp.zeros_like, stats)
    _, new = in_training(module, params, empty, *inputs)
    return jax.tree.map(lambda s: s / (1 - MOMENTUM), new)
