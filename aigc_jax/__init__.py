"""Generative models in JAX: GANs, VAEs and diffusion models through one trainer.

`config`, `train`, `rows` and `load` are those of `aigc_jax.api`, imported when first asked for: JAX
alone takes a second.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aigc_jax.api import Run, config, load, rows, train

__all__ = ["Run", "config", "load", "rows", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from aigc_jax import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
