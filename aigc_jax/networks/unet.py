"""The UNet of DDPM: 35,746,307 parameters for CIFAR-10 at its default widths.

Ho, Jain & Abbeel, "Denoising Diffusion Probabilistic Models", 2020 (arXiv:2006.11239), appendix B.
Labels are added to the time embedding as in Nichol & Dhariwal, "Improved Denoising Diffusion
Probabilistic Models", 2021 (arXiv:2102.09672), whose network this is with `scale_shift`; the row
for "no label" is that of Ho & Salimans, "Classifier-Free Diffusion Guidance", 2022
(arXiv:2207.12598).
"""

from functools import partial
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.checks import OR_EMPTY, BelowOne, Count, Counts, DType, Positive, Range, Whole
from aigc_jax.errors import SettingError
from aigc_jax.networks.layers import (
    EPSILON,
    ZERO,
    Downsample,
    GroupNorm,
    ResBlock,
    SelfAttention,
    Upsample,
    augment_embedding,
    block_of,
    check_extra,
    check_label,
    conv,
    dense,
    halved_sides,
    label_embedding,
    sinusoidal_embedding,
)


class UNet(nn.Module):
    """A map from a noisy image and its time step to an image, such as the noise in it.

    Attributes:
        out_channels: channels of the output.
        width: channels at full resolution.
        multipliers: of the width, one for each resolution; each is half of the one before.
        blocks: residual blocks at each resolution on the way down; one more on the way up.
        attention: heights of the feature maps that get attention after every block. Heights that
            the image never reaches have no effect. The middle always has one attention.
        heads: of every attention.
        head_dim: channels of a head, of which an attention has as many as its width holds; 0 takes
            `heads` everywhere.
        dropout: rate before the second convolution of a block.
        groups: of every GroupNorm; as many as the width where the width is smaller.
        num_classes: 0 for a network without labels.
        scale_shift: whether embeddings scale and shift maps after the norm, see `ResBlock`.
        norm_eps: of every GroupNorm, added to the variance.
        downsample_padding: 0 pads a map at its end before it is halved, 1 at its beginning too.
        freq_shift, flip_sin_to_cos: of the embedding of time, see `sinusoidal_embedding`.
        augment_dim: numbers that say how an example was augmented; 0 for none.
        second_time: whether the network is told a second time, as one that jumps between two is.
        dtype: of the activations, "float32" or "bfloat16". Parameters are float32, and norms,
            softmax, embeddings and the last layer compute in float32.
        remat: whether blocks and attentions keep no activations for their gradients.
    """

    out_channels: int
    width: Count = 128
    multipliers: Counts = (1, 2, 2, 2)
    blocks: Count = 2
    attention: Annotated[Counts, OR_EMPTY] = (16,)
    heads: Count = 1
    dropout: BelowOne = 0.1
    groups: Count = 32
    num_classes: int = 0
    head_dim: Whole = 0
    scale_shift: bool = False
    norm_eps: Positive = EPSILON
    downsample_padding: Annotated[int, Range(0, 1)] = 0
    freq_shift: Annotated[int, Range(0, 1)] = 1
    flip_sin_to_cos: bool = False
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

        x: [B, H, W, C]. t: [B], in steps 0..T-1. label: [B] int32; num_classes, like no label at
        all, is the null row. augment: [B, augment_dim] float32, zeros where it is None. t2: [B],
        as t, which it is where it is None. Dropout draws from rng "dropout" when train is True.
        ValueError for an image that cannot be halved often enough, for groups that do not divide
        the width and for an input that the attributes do not announce.
        """
        groups = min(self.groups, self.width)
        self._check(x, groups, label)
        check_extra(augment, self.augment_dim, t2, self.second_time)
        norm = {"groups": groups, "eps": self.norm_eps}
        dropout = self.dropout if train else 0.0
        block = block_of(ResBlock, self.remat)
        block = partial(block, dropout=dropout, scale_shift=self.scale_shift, **norm)
        attention = block_of(SelfAttention, self.remat)
        attention = partial(attention, heads=self.heads, head_dim=self.head_dim, **norm)
        widths = [self.width * m for m in self.multipliers]

        embedding = self._embedding(t, label, augment, t2)
        h = conv(x.astype(self.dtype), self.width, name="conv_in")

        skips = [h]
        for i, width in enumerate(widths):
            for j in range(self.blocks):
                h = block(width, name=f"down_{i}_block_{j}")(h, embedding)
                if h.shape[1] in self.attention:
                    h = attention(name=f"down_{i}_attention_{j}")(h)
                skips.append(h)
            if i < len(widths) - 1:
                h = Downsample(self.downsample_padding, name=f"down_{i}_downsample")(h)
                skips.append(h)

        h = block(widths[-1], name="middle_block_0")(h, embedding)
        h = attention(name="middle_attention_0")(h)
        h = block(widths[-1], name="middle_block_1")(h, embedding)

        for i, width in reversed(list(enumerate(widths))):
            for j in range(self.blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = block(width, name=f"up_{i}_block_{j}")(h, embedding)
                if h.shape[1] in self.attention:
                    h = attention(name=f"up_{i}_attention_{j}")(h)
            if i > 0:
                h = Upsample(name=f"up_{i}_upsample")(h)

        # The target is unit noise, so its last bits are not given to bfloat16.
        h = nn.swish(GroupNorm(**norm, name="norm_out")(h.astype(jnp.float32)))
        return conv(h, self.out_channels, name="conv_out", init=ZERO)

    def _embedding(
        self,
        t: jax.Array,
        label: jax.Array | None,
        augment: jax.Array | None,
        t2: jax.Array | None,
    ) -> jax.Array:
        """The time, and whatever else the network is told, as [B, 4 * width] float32."""
        features = 4 * self.width
        h = self._time(t, "time")
        if self.second_time:
            h = h + self._time(t if t2 is None else t2, "second_time")
        if self.augment_dim:
            h = h + augment_embedding(augment, len(t), self.augment_dim, features)
        if self.num_classes:
            normal = nn.initializers.normal(1.0)
            h = h + label_embedding(label, len(t), self.num_classes, features, normal)
        return h

    def _time(self, t: jax.Array, name: str) -> jax.Array:
        features = 4 * self.width
        h = sinusoidal_embedding(
            t, self.width, freq_shift=self.freq_shift, flip_sin_to_cos=self.flip_sin_to_cos
        )
        h = dense(h, features, name=f"{name}_0")
        return dense(nn.swish(h), features, name=f"{name}_1")

    def _check(self, x: jax.Array, groups: int, label: jax.Array | None) -> None:
        if self.width % groups:
            raise SettingError(
                f"network.groups={groups} does not divide network.width={self.width}"
            )
        check_label(label, self.num_classes, optional=True)
        setting = f"network.multipliers={tuple(self.multipliers)}"
        halved_sides(x.shape[1:3], len(self.multipliers) - 1, setting)
