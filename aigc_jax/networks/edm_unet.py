"""The UNet of EDM: 55.7 million parameters for CIFAR-10 at its default widths.

Karras, Aittala, Aila & Laine, "Elucidating the Design Space of Diffusion-Based Generative Models",
2022 (arXiv:2206.00364), table 7, the column of DDPM++. The network is that of Song et al.,
"Score-Based Generative Modeling through Stochastic Differential Equations", 2021
(arXiv:2011.13456), appendix H: each sum of two branches is divided by the square root of 2, and a
map is halved and doubled within residual blocks.
"""

import math
from functools import partial
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.checks import OR_EMPTY, BelowOne, Count, Counts, DType, Whole
from aigc_jax.networks.layers import (
    GroupNorm,
    SelfAttention,
    augment_embedding,
    block_of,
    check_extra,
    check_label,
    conv,
    dense,
    halved_sides,
    mean_pool,
    nearest,
    sinusoidal_embedding,
)

# Keeps the variance of a sum of two branches.
SKIP_SCALE = math.sqrt(0.5)
# The last layer of a branch: Glorot's uniform weights times 1e-5, so that a block starts as its
# shortcut.
SMALL = nn.initializers.variance_scaling(1e-10, "fan_avg", "uniform")
# Glorot's weights times sqrt(0.2) for queries, keys and values as one layer of three times the
# width: of half the variance that layers of their own would have.
ATTENTION = nn.initializers.variance_scaling(0.1, "fan_avg", "uniform")


class EDMUNet(nn.Module):
    """A map from a noisy image and its noise level to an image.

    Attributes:
        out_channels: channels of the output.
        width: channels of the first map, and of the embedding of the noise level.
        attention: heights of the feature maps that get attention after every block on the way down
            and after the last on the way up. Heights that the image never reaches have no effect.
            The middle always has one attention.
        dropout: rate before the second convolution of a block.
        augment_dim: numbers that say how an example was augmented, 9 in the paper; 0 for none.
        multipliers, blocks, num_classes, second_time, dtype: as `unet.UNet`'s.
    """

    out_channels: int
    width: Count = 128
    multipliers: Counts = (2, 2, 2)
    blocks: Count = 4
    attention: Annotated[Counts, OR_EMPTY] = (16,)
    dropout: BelowOne = 0.13
    num_classes: int = 0
    augment_dim: Whole = 0
    second_time: bool = False
    dtype: DType = "float32"
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        label: jax.Array | None = None,
        *,
        augment: jax.Array | None = None,
        t2: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Returns [B, H, W, out_channels] float32.

        x: [B, H, W, C]. t: [B], any number that tells the noise level; ln(sigma)/4 in the paper.
        label: [B] int32; num_classes, like no label at all, is no class. augment: [B, augment_dim]
        float32, zeros where it is None. t2: [B], as t, which it is where it is None. Dropout draws
        from rng "dropout" when train is True.
        ValueError for an image that cannot be halved often enough, for widths that their groups do
        not divide and for an input that the attributes do not announce.
        """
        check_label(label, self.num_classes, optional=True)
        check_extra(augment, self.augment_dim, t2, self.second_time)
        setting = f"network.multipliers={tuple(self.multipliers)}"
        halved_sides(x.shape[1:3], len(self.multipliers) - 1, setting)
        block = partial(block_of(Block, self.remat), dropout=self.dropout if train else 0.0)
        widths = [self.width * m for m in self.multipliers]

        embedding = self._embedding(t, label, augment, t2)
        h = conv(x.astype(self.dtype), self.width, name="conv_in")

        skips = [h]
        for i, width in enumerate(widths):
            if i > 0:
                down = block(widths[i - 1], resample="down", name=f"down_{i}_downsample")
                h = down(h, embedding)
                skips.append(h)
            for j in range(self.blocks):
                attends = h.shape[1] in self.attention
                h = block(width, attention=attends, name=f"down_{i}_block_{j}")(h, embedding)
                skips.append(h)

        for j in range(2):
            h = block(widths[-1], attention=j == 0, name=f"middle_block_{j}")(h, embedding)

        for i, width in reversed(list(enumerate(widths))):
            if i < len(widths) - 1:
                up = block(widths[i + 1], resample="up", name=f"up_{i}_upsample")
                h = up(h, embedding)
            for j in range(self.blocks + 1):
                attends = j == self.blocks and h.shape[1] in self.attention
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = block(width, attention=attends, name=f"up_{i}_block_{j}")(h, embedding)

        h = h.astype(jnp.float32)
        h = nn.swish(GroupNorm(_groups(h), name="norm_out")(h))
        return conv(h, self.out_channels, name="conv_out", init=SMALL)

    def _embedding(
        self,
        t: jax.Array,
        label: jax.Array | None,
        augment: jax.Array | None,
        t2: jax.Array | None,
    ) -> jax.Array:
        """The noise level, and whatever else the network is told, as [B, 4 * width] float32."""
        h = sinusoidal_embedding(t, self.width)
        if self.second_time:
            second = sinusoidal_embedding(t if t2 is None else t2, self.width)
            h = h + dense(second, self.width, name="second_time", use_bias=False)
        if self.augment_dim:
            h = h + augment_embedding(augment, len(t), self.augment_dim, self.width)
        if self.num_classes:
            if label is None:
                label = jnp.full(t.shape, self.num_classes, jnp.int32)
            # Of variance 1 for a class; the index after the last one is all zeros.
            classes = jax.nn.one_hot(label, self.num_classes) * math.sqrt(self.num_classes)
            h = h + dense(classes, self.width, name="label")
        h = nn.swish(dense(h, 4 * self.width, name="time_0"))
        return nn.swish(dense(h, 4 * self.width, name="time_1"))


class Block(nn.Module):
    """Two convolutions beside a shortcut, then attention; an embedding shifts the map between them.

    x: [B, H, W, C] to [B, H, W, features], or half or twice the sides. embedding: [B, E] float32.

    Attributes:
        resample: "down" halves the map by means of 2x2 in both branches, "up" doubles it by its
            nearest neighbours; "" does neither.
        dropout: rate, drawn from rng "dropout"; 0 outside training.
    """

    features: int
    resample: str = ""
    attention: bool = False
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array) -> jax.Array:
        h = nn.swish(GroupNorm(_groups(x), name="norm1")(x))
        if self.resample:
            x, h = (mean_pool(a) if self.resample == "down" else nearest(a, 2) for a in (x, h))
        h = conv(h, self.features, name="conv1")
        h = h + dense(embedding, self.features, name="embedding").astype(h.dtype)[:, None, None, :]
        h = nn.swish(GroupNorm(_groups(h), name="norm2")(h))
        h = nn.Dropout(self.dropout, deterministic=False)(h)
        h = conv(h, self.features, name="conv2", init=SMALL)
        if self.resample or x.shape[-1] != self.features:
            x = dense(x, self.features, name="shortcut")
        h = (x + h) * SKIP_SCALE
        if self.attention:
            attention = SelfAttention(
                groups=_groups(h), qkv_init=ATTENTION, out_init=SMALL, name="attention"
            )
            h = attention(h) * SKIP_SCALE
        return h


def _groups(x: jax.Array) -> int:
    """32, of at least 4 channels each."""
    return max(1, min(32, x.shape[-1] // 4))
