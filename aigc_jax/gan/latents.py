"""The latents z that a generator makes examples of: their prior, and ways from one to another."""

from dataclasses import dataclass
from typing import Annotated

import jax

from aigc_jax.checks import NonNegative, OneOf
from aigc_jax.errors import SettingError
from aigc_jax.gan.directions import slerp

PRIORS = ("normal", "uniform")


@dataclass(frozen=True)
class Latents:
    """The prior of z.

    Attributes:
      size: numbers in z.
      prior: "normal", or "uniform" in [-1, 1].
      truncation: samples draw z from the prior within +-truncation (Brock et al. 2019,
        arXiv:1809.11096, section 3.1); 0: from all of it. Training always does.
    """

    size: int
    prior: Annotated[str, OneOf(PRIORS)] = "normal"
    truncation: NonNegative = 0.0

    def __post_init__(self) -> None:
        if self.truncation and self.prior != "normal":
            raise SettingError(
                "sampling.truncation is of gan.prior='normal' only: set one of them otherwise"
            )

    def draw(self, key: jax.Array, n: int) -> jax.Array:
        """n latents [n, size] of the whole prior."""
        return self._draw(key, (n, self.size))

    def sample(self, keys: jax.Array) -> jax.Array:
        """Latents [n, size] within the truncation, each from its own key of keys [n]."""
        return jax.vmap(self._sample)(keys)

    def way(self, a: jax.Array, b: jax.Array, share: float | jax.Array) -> jax.Array:
        """Latents a share of the way from a to b: on the sphere where z is normal."""
        return slerp(a, b, share) if self.prior == "normal" else a + share * (b - a)

    def _draw(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        if self.prior == "uniform":
            return jax.random.uniform(key, shape, minval=-1.0)
        return jax.random.normal(key, shape)

    def _sample(self, key: jax.Array) -> jax.Array:
        if self.truncation:
            limit = self.truncation
            return jax.random.truncated_normal(key, -limit, limit, (self.size,))
        return self._draw(key, (self.size,))
