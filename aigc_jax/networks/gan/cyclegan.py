"""The networks of CycleGAN: from image to image by residual blocks, and a judge of patches.

Zhu, Park, Isola & Efros, "Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial
Networks", 2017 (arXiv:1703.10593), section 7.2. At the defaults 11,378,179 and 2,764,737
parameters, those of the authors' code. Weights start as N(0, 0.02).
"""

from functools import partial
from typing import Annotated, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.checks import Count, DType, OneOf, one_of
from aigc_jax.errors import SettingError
from aigc_jax.networks.gan.layers import SMALL, conv, leaky_relu
from aigc_jax.networks.layers import check_shape
from aigc_jax.networks.strided import Doubling

NORMS = ("instance", "none")  # of a discriminator


class Generator(nn.Module):
    """Two halvings, residual blocks, two doublings. [B, H, W, C] to [B, H, W, out_channels].

    The output is float32 in [-1, 1]. H and W may be any multiples of 4 that are at least 8;
    ValueError for others, and for another C than image_shape has.

    After Johnson, Alahi & Fei-Fei, "Perceptual Losses for Real-Time Style Transfer and
    Super-Resolution", 2016 (arXiv:1603.08155).

    Attributes:
        image_shape: (H, W, C) of the input.
        out_channels: channels of the output.
        width: channels at full resolution; four times as many in the residual blocks.
        blocks: residual blocks: 9 for images of 256, 6 for images of 128.
        dtype: of the activations, "float32" or "bfloat16". Parameters, the statistics of a norm
            and the last convolution are float32.
    """

    image_shape: tuple[int, int, int] = (256, 256, 3)
    out_channels: int = 3
    width: Count = 64
    blocks: Count = 9
    dtype: DType = "float32"

    stride: ClassVar[int] = 4  # sides are halved twice and doubled twice

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        _, height, width, channels = x.shape
        if channels != self.image_shape[-1]:
            raise SettingError(f"images have {channels} channels, not {self.image_shape[-1]}")
        stride = self.stride
        if height % stride or width % stride or min(height, width) < 2 * stride:
            raise SettingError(
                f"images are {height}x{width}: each side has to be 8, 12, 16 or another multiple "
                "of 4, since it is halved twice and doubled twice"
            )
        layer = partial(conv, init=SMALL)
        h = layer(_reflect(x.astype(self.dtype), 3), self.width, name="in", size=7, padding=0)
        h = nn.relu(instance_norm(h))
        for i, features in enumerate((2 * self.width, 4 * self.width)):
            h = layer(h, features, name=f"down_{i}", stride=2, padding=1)
            h = nn.relu(instance_norm(h))
        for i in range(self.blocks):
            r = layer(_reflect(h, 1), 4 * self.width, name=f"block_{i}_conv1", padding=0)
            r = nn.relu(instance_norm(r))
            r = layer(_reflect(r, 1), 4 * self.width, name=f"block_{i}_conv2", padding=0)
            h = h + instance_norm(r)
        for i, features in enumerate((2 * self.width, self.width)):
            h = nn.relu(instance_norm(Doubling(features, SMALL, name=f"up_{i}")(h)))
        h = _reflect(h.astype(jnp.float32), 3)
        return jnp.tanh(layer(h, self.out_channels, name="out", size=7, padding=0))


class Discriminator(nn.Module):
    """Logits of overlapping patches: [B, H, W, C] to ([B, h, w] float32, None).

    With three layers each logit sees 70x70 pixels, every eighth pixel has one, and images of 256
    have 30x30 of them. There are no class logits; the None stands for them, as other
    discriminators put out both. ValueError for images of another shape, for images too small to
    leave a logit, and for a norm that does not exist.

    Isola, Zhu, Zhou & Efros, "Image-to-Image Translation with Conditional Adversarial Networks",
    2017 (arXiv:1611.07004), section 6.1.2.

    Attributes:
        image_shape: (H, W, C) of the input.
        width: channels after the first convolution; twice as many after each, up to eight times.
        layers: convolutions of stride 2; two more of stride 1 follow.
        norm: after each convolution but the first and the last: "instance" or "none".
        dtype: of the activations, "float32" or "bfloat16". Parameters, the statistics of a norm
            and the last convolution are float32.
    """

    image_shape: tuple[int, int, int] = (256, 256, 3)
    width: Count = 64
    layers: Count = 3
    norm: Annotated[str, OneOf(NORMS)] = "instance"
    dtype: DType = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
        one_of("network.discriminator.norm", self.norm, NORMS)
        check_shape(x, self.image_shape)
        if min(self.image_shape[:2]) < 3 * 2**self.layers:
            raise SettingError(
                f"images are {self.image_shape[0]}x{self.image_shape[1]}, but with "
                f"network.discriminator.layers={self.layers} a side has at least "
                f"{3 * 2**self.layers} pixels"
            )
        layer = partial(conv, init=SMALL, size=4, padding=1)
        h = leaky_relu(layer(x.astype(self.dtype), self.width, name="conv_0", stride=2))
        for i in range(1, self.layers + 1):
            h = layer(
                h,
                self.width * min(2**i, 8),
                name=f"conv_{i}",
                stride=2 if i < self.layers else 1,
            )
            h = leaky_relu(instance_norm(h) if self.norm == "instance" else h)
        return layer(h.astype(jnp.float32), 1, name="out")[..., 0], None


def instance_norm(x: jax.Array) -> jax.Array:
    """Normalises each channel of each example over its positions, in float32.

    x: [B, H, W, C] to the same shape and dtype. No parameters.

    Ulyanov, Vedaldi & Lempitsky 2016 (arXiv:1607.08022), with the epsilon of torch.
    """
    h = x.astype(jnp.float32)
    mean, variance = (f(h, axis=(1, 2), keepdims=True) for f in (jnp.mean, jnp.var))
    return ((h - mean) * jax.lax.rsqrt(variance + 1e-5)).astype(x.dtype)


def _reflect(x: jax.Array, size: int) -> jax.Array:
    """x continued by its mirror image on all four sides, the edge itself not repeated."""
    return jnp.pad(x, ((0, 0), (size, size), (size, size), (0, 0)), mode="reflect")
