"""Layers of a discriminator that keep what they have learned (Mo et al. 2020, arXiv:2002.10964)."""

from collections.abc import Mapping
from typing import Any

import jax

from aigc_jax.errors import SettingError

LOWER = ("down", "norm", "hidden")  # kinds of layers that are numbered from the input


def lower_layers(params: Mapping[str, Any], count: int) -> list[str]:
    """Names of a discriminator's first `count` layers, from the input.

    Raises:
      ValueError: it has fewer layers.
    """
    found = {name: name.rpartition("_") for name in params}
    numbered = {n: int(i) for n, (kind, _, i) in found.items() if kind in LOWER and i.isdigit()}
    most = max(numbered.values(), default=-1) + 1
    if not 0 <= count <= most:
        raise SettingError(f"gan.frozen lies in 0..{most} for this discriminator, not {count}")
    return [name for name, number in numbered.items() if number < count]


def freeze(params: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The parameters, with no gradient to the lowest `count` layers."""
    kept = lower_layers(params, count)
    return {k: jax.lax.stop_gradient(v) if k in kept else v for k, v in params.items()}
