"""A UNet with Fourier features of its input (Kingma et al. 2021, arXiv:2107.00630)."""

from typing import Any

import jax
import jax.numpy as jnp

from aigc_jax.networks.unet import UNet

EXPONENTS = (7, 8)  # of bytes in [-1, 1], 2 / 255 apart: waves of 1 and of 2 steps of a byte


class FourierUNet(UNet):
    """A `UNet` whose input comes with its Fourier features."""

    def __call__(self, x: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        """As `UNet`."""
        return super().__call__(jnp.concatenate([x, fourier_features(x)], -1), *args, **kwargs)


def fourier_features(x: jax.Array) -> jax.Array:
    """sin(2^n pi x) and cos(2^n pi x) of n in `EXPONENTS`, [..., C] to [..., 4 C] float32."""
    angles = jnp.concatenate([2**n * jnp.pi * x.astype(jnp.float32) for n in EXPONENTS], axis=-1)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
