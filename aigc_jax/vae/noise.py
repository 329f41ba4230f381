"""What is random in a VAE's data: grey values drawn black or white, noise before the encoder."""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp

from aigc_jax.checks import NonNegative, OneOf, one_of
from aigc_jax.errors import SettingError

# How grey values in [-1, 1] become black and white: (key, x) -> x.
BINARISE = {
    "none": lambda key, x: x,
    "threshold": lambda key, x: jnp.where(x > 0, 1.0, -1.0),
    "dynamic": lambda key, x: jnp.where(jax.random.bernoulli(key, (x + 1) / 2), 1.0, -1.0),
}


def _gaussian(noise: "Noise", key: jax.Array, x: jax.Array) -> jax.Array:
    noisy = x + 2 * noise.level * jax.random.normal(key, x.shape)  # the range is 2 wide here
    return jnp.clip(noisy, -1.0, 1.0) if noise.clip else noisy


def _salt_pepper(noise: "Noise", key: jax.Array, x: jax.Array) -> jax.Array:
    hit_key, colour_key = jax.random.split(key)
    hit = jax.random.bernoulli(hit_key, noise.level, (*x.shape[:-1], 1))
    colour = jnp.where(jax.random.bernoulli(colour_key, 0.5, hit.shape), 1.0, -1.0)
    return jnp.where(hit, colour, x)


KINDS = {"none": lambda noise, key, x: x, "gaussian": _gaussian, "salt_pepper": _salt_pepper}


@dataclass(frozen=True)
class Noise:
    """(key, x [B, ...] in [-1, 1]) -> x with noise: what a denoising VAE's encoder is given.

    Im et al. 2017 (arXiv:1511.06406).

    Attributes:
      kind: "none"; "gaussian"; "salt_pepper", pixels that become black or white.
      level: of "gaussian" the deviation, in units of the range 0..1; of "salt_pepper" the share of
        pixels.
      clip: whether gaussian noise that leaves the range is cut off.
    """

    kind: Annotated[str, OneOf(KINDS)] = "none"
    level: NonNegative = 0.0
    clip: bool = True

    def __post_init__(self) -> None:
        one_of("vae.noise.kind", self.kind, KINDS)
        if self.kind != "none" and self.level <= 0:
            raise SettingError(f"vae.noise.level must be above 0, not {self.level}")
        if self.kind == "salt_pepper" and self.level > 1:
            raise SettingError(
                f"vae.noise.level is a share of pixels, so at most 1, not {self.level}"
            )

    def __call__(self, key: jax.Array, x: jax.Array) -> jax.Array:
        return KINDS[self.kind](self, key, x)

    def __str__(self) -> str:
        return f"{self.kind}={self.level}"
