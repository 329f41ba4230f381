"""The residual GAN for 32x32, and by the same rule for other images.

Gulrajani et al., "Improved Training of Wasserstein GANs", 2017 (arXiv:1704.00028), appendix F;
Miyato et al., "Spectral Normalization for GANs", 2018 (arXiv:1802.05957), table 4; with
labels Miyato & Koyama 2018 (arXiv:1802.05637). SNGAN for CIFAR-10 is the default: 4,276,739 and
1,053,825 parameters. WGAN-GP has width 128 in both, norm="none" and pool="mean".
"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.checks import Count, DType, OneOf, one_of
from aigc_jax.errors import SettingError
from aigc_jax.networks.gan.layers import (
    CONDITIONINGS,
    GLOROT_RELU,
    ConditionalBatchNorm,
    SelfAttention,
    check_conditioning,
    conv,
    dense,
    head,
    with_label,
)
from aigc_jax.networks.layers import INIT, check_shape, mean_pool, nearest

NORMS = ("spectral", "none")
POOLS = ("sum", "mean")


def doublings(shape: Sequence[int]) -> int:
    """How often a map whose smaller side is 4 to 7 doubles to make the image: 64, 4 times from 4.

    ValueError for an image that this does not reach: 28 is 7 doubled twice, 30 is nothing.
    """
    height, width = shape[:2]
    number = min(height, width).bit_length() - 3
    if number < 1 or height % 2**number or width % 2**number:
        raise SettingError(
            f"images are {height}x{width}, but this network doubles a map whose smaller side is 4, "
            "5, 6 or 7 at least once: both sides have to be that power of two times a whole "
            "number, as 8, 28, 32, 48 and 64 are"
        )
    return number


class Generator(nn.Module):
    """A linear map of z, residual blocks that double it, then norm, relu, convolution and tanh.

    z [B, latent] and label [B] int to images [B, H, W, C] float32 in [-1, 1]. The label chooses
    gain and bias of every norm in a block; the last norm is the same for all classes, as in the
    paper. ValueError for sides that no map of 4 to 7 doubles to, and where num_classes and label
    do not go together.

    Attributes:
        shape: (H, W, C) of the output.
        latent: numbers in z.
        width: channels of every map.
        attention: whether the map of half the output's size, 16x16 of 32x32, has self-attention.
        num_classes: 0 for a network without labels.
        dtype: of the activations, "float32" or "bfloat16". Parameters, norms and the last layer
            are float32.
    """

    shape: tuple[int, int, int] = (32, 32, 3)
    latent: Count = 128
    width: Count = 256
    attention: bool = False
    num_classes: int = 0
    dtype: DType = "float32"

    @nn.compact
    def __call__(
        self, z: jax.Array, label: jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        height, width, channels = self.shape
        blocks = doublings(self.shape)
        start = (height >> blocks, width >> blocks, self.width)
        h = dense(
            z.astype(self.dtype), start[0] * start[1] * start[2], name="in", init=INIT
        ).reshape(-1, *start)
        for i in range(blocks):
            if self.attention and i == blocks - 1:
                h = SelfAttention(name="attention")(h, train=train)
            h = _Up(self.width, self.num_classes, name=f"up_{i}")(h, label, train=train)
        h = ConditionalBatchNorm(name="norm_out")(h.astype(jnp.float32), train=train)
        return jnp.tanh(conv(nn.relu(h), channels, name="out", padding=1, init=INIT))


class Discriminator(nn.Module):
    """Residual blocks, some of which halve the map, then relu, one pool and a linear layer.

    x [B, H, W, C] and label [B] int to (logits [B], class logits [B, num_classes] or None), all
    float32. Blocks halve the map down to 8x8 to 15x15, the first one always, and two more follow.
    ValueError for images of another shape, for sides that do not halve to 4 to 7, and for
    conditioning without labels.

    Attributes:
        shape: (H, W, C) of the input.
        width: channels of every map.
        norm: "spectral", of every layer, or "none".
        pool: of the last map: "sum" in SNGAN, "mean" in WGAN-GP.
        attention: whether the map of half the input's size, 16x16 of 32x32, has self-attention.
        num_classes: 0 for data without labels.
        conditioning: "none", which ignores the label; "concat" adds it to the image as one-hot
            maps; "projection" and "classifier" as in `layers.head`.
        dtype: of the activations, "float32" or "bfloat16". Parameters, the pool and logits are
            float32.
    """

    shape: tuple[int, int, int] = (32, 32, 3)
    width: Count = 128
    norm: Annotated[str, OneOf(NORMS)] = "spectral"
    pool: Annotated[str, OneOf(POOLS)] = "sum"
    attention: bool = False
    num_classes: int = 0
    conditioning: Annotated[str, OneOf(CONDITIONINGS)] = "none"
    dtype: DType = "float32"

    @nn.compact
    def __call__(
        self, x: jax.Array, label: jax.Array | None = None, *, train: bool = False
    ) -> tuple[jax.Array, jax.Array | None]:
        check_conditioning(self.conditioning, self.num_classes)
        one_of("network.discriminator.norm", self.norm, NORMS)
        one_of("network.discriminator.pool", self.pool, POOLS)
        check_shape(x, self.shape)
        spectral = self.norm == "spectral"
        halvings = max(doublings(self.shape) - 1, 1)
        block = partial(_Down, self.width, spectral)
        if self.conditioning == "concat":
            x = with_label(x, label, self.num_classes)
        h = block(first=True, name="down_0")(x.astype(self.dtype), train=train)
        if self.attention:
            h = SelfAttention(spectral, name="attention")(h, train=train)
        for i in range(1, halvings):
            h = block(name=f"down_{i}")(h, train=train)
        for i in range(2):
            h = block(half=False, name=f"block_{i}")(h, train=train)
        h = nn.relu(h.astype(jnp.float32))
        return head(
            h.sum(axis=(1, 2)) if self.pool == "sum" else h.mean(axis=(1, 2)),
            label,
            num_classes=self.num_classes,
            conditioning=self.conditioning,
            init=INIT,
            spectral=spectral,
            train=train,
        )


class _Up(nn.Module):
    """[B, H, W, C] to [B, 2H, 2W, features]."""

    features: int
    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, label: jax.Array | None, *, train: bool) -> jax.Array:
        norm = partial(ConditionalBatchNorm, self.num_classes)
        layer = partial(conv, features=self.features, padding=1, init=GLOROT_RELU)
        h = nn.relu(norm(name="norm1")(x, label, train=train))
        h = layer(nearest(h, 2), name="conv1")
        h = nn.relu(norm(name="norm2")(h, label, train=train))
        h = layer(h, name="conv2")
        # A 1x1 convolution of the small map: the same as of the large one, at a quarter of it.
        return h + nearest(dense(x, self.features, name="shortcut", init=INIT), 2)


class _Down(nn.Module):
    """[B, H, W, C] to [B, H/2, W/2, features], or to [B, H, W, C] with half=False."""

    features: int
    spectral: bool
    first: bool = False  # nothing is rectified before the image's own convolutions
    half: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        settings = {"spectral": self.spectral, "train": train}
        layer = partial(conv, features=self.features, padding=1, init=GLOROT_RELU, **settings)
        h = layer(x if self.first else nn.relu(x), name="conv1")
        h = layer(nn.relu(h), name="conv2")
        if not self.half:
            return x + h
        shortcut = dense(mean_pool(x), self.features, name="shortcut", init=INIT, **settings)
        return mean_pool(h) + shortcut
