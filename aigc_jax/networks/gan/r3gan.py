"""R3GAN: residual blocks of grouped convolutions without norm, from one learned map and back.

Huang, Gokaslan, Kuleshov & Tompkin, "The GAN is dead; long live the GAN! A Modern Baseline GAN",
2024 (arXiv:2501.05441). With ten classes the defaults are the authors' network for CIFAR-10:
20,781,952 and 21,280,512 parameters, 14.04 GFLOP in the convolutions of a generated image.

No layer has a bias but the two activations of a block. Weights start as N(0, gain^2 / fan-in),
where the gain is 1 unless a leaky relu follows. The smallest maps compute in float32, as the
authors' do: with four resolutions of one width they are an 85th of the work.
"""

from collections.abc import Sequence
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.checks import Count, Counts, DType, OneOf, one_of
from aigc_jax.errors import SettingError
from aigc_jax.networks.gan.layers import (
    ZEROS,
    check_conditioning,
    dense,
    leaky_relu,
)
from aigc_jax.networks.layers import block_of, check_label, check_shape, halved_sides
from aigc_jax.networks.strided import LAYOUT

UNIT = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
CONDITIONINGS = ("none", "projection")
# The mean square of leaky_relu(x, 0.2) for x ~ N(0, 1).
LEAK = (1 + 0.2**2) / 2


class Generator(nn.Module):
    """A learned map times a linear map of z, blocks at each resolution, a linear map to pixels.

    z [B, latent] and label [B] int to images [B, H, W, C] float32 of any size: there is no tanh.
    ValueError where the doublings do not make the image, where the lengths of the tuples differ,
    where the groups do not divide the channels, and where num_classes and label do not go together.

    Attributes:
        shape: (H, W, C) of the output.
        latent: numbers in z.
        num_classes: 0 for a network without labels.
        embed: numbers that a label becomes, beside z.
        widths: channels at each resolution, from the smallest map up, each twice the one before.
        blocks: residual blocks at each resolution.
        cardinality: groups of the 3x3 convolutions at each resolution.
        expansion: channels of the 3x3 convolutions, in widths.
        dtype: of the activations, "float32" or "bfloat16". Parameters, the smallest maps and the
            last layer are float32.
        remat: whether blocks keep no activations for their gradients.
    """

    shape: tuple[int, int, int] = (32, 32, 3)
    latent: Count = 64
    num_classes: int = 0
    embed: Count = 64
    widths: Counts = (768, 768, 768, 768)
    blocks: Counts = (2, 2, 2, 2)
    cardinality: Counts = (96, 96, 96, 96)
    expansion: Count = 2
    dtype: DType = "float32"
    remat: bool = False

    @nn.compact
    def __call__(
        self, z: jax.Array, label: jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        check_label(label, self.num_classes)
        sizes = _smallest_map(self.shape, self.widths, self.blocks, self.cardinality)
        h = z.astype(jnp.float32)
        if self.num_classes:
            label = jax.nn.one_hot(label, self.num_classes)
            label = dense(label, self.embed, name="embedding", init=UNIT, use_bias=False)
            h = jnp.concatenate([h, label], axis=-1)
        h = dense(h, self.widths[0], name="in", init=UNIT, use_bias=False)
        basis = self.param("basis", nn.initializers.normal(1.0), (*sizes, self.widths[0]))
        h = basis[None] * h[:, None, None, :]
        for i, features in enumerate(self.widths):
            if i > 0:
                h = h.astype(self.dtype)
                if features != h.shape[-1]:
                    h = dense(h, features, name=f"to_{i}", init=UNIT, use_bias=False)
                h = upsample(h)
            for j in range(self.blocks[i]):
                h = _block(self, i, j)(h)
        h = h.astype(jnp.float32)
        return dense(h, self.shape[-1], name="out", init=UNIT, use_bias=False)


class Discriminator(nn.Module):
    """A linear map of the pixels, blocks at each resolution, one learned map to weigh the last.

    x [B, H, W, C] and label [B] int to (logits [B] float32, None). With "projection" the label
    becomes as many numbers as there are features, and the logit is their inner product.
    ValueError for images of another shape, where the halvings do not fit the image, where the
    lengths of the tuples differ, where the groups do not divide the channels, and for a projection
    without labels.

    Attributes:
        shape: (H, W, C) of the input.
        num_classes: 0 for data without labels.
        conditioning: "none", which ignores labels, or "projection".
        widths: channels at each resolution, from the smallest map up, each twice the one before.
        blocks: residual blocks at each resolution.
        cardinality: groups of the 3x3 convolutions at each resolution.
        expansion: channels of the 3x3 convolutions, in widths.
        dtype: of the activations, "float32" or "bfloat16". Parameters, the smallest maps and
            what follows them are float32.
        remat: whether blocks keep no activations for their gradients.
    """

    shape: tuple[int, int, int] = (32, 32, 3)
    num_classes: int = 0
    conditioning: Annotated[str, OneOf(CONDITIONINGS)] = "none"
    widths: Counts = (768, 768, 768, 768)
    blocks: Counts = (2, 2, 2, 2)
    cardinality: Counts = (96, 96, 96, 96)
    expansion: Count = 2
    dtype: DType = "float32"
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, label: jax.Array | None = None, *, train: bool = False
    ) -> tuple[jax.Array, None]:
        one_of("network.discriminator.conditioning", self.conditioning, CONDITIONINGS)
        check_conditioning(self.conditioning, self.num_classes)
        check_shape(x, self.shape)
        sizes = _smallest_map(self.shape, self.widths, self.blocks, self.cardinality)
        h = dense(x.astype(self.dtype), self.widths[-1], name="in", init=UNIT, use_bias=False)
        for i, features in reversed(list(enumerate(self.widths))):
            if i < len(self.widths) - 1:
                h = downsample(h)
                if features != h.shape[-1]:
                    h = dense(h, features, name=f"to_{i}", init=UNIT, use_bias=False)
            if i == 0:
                h = h.astype(jnp.float32)
            for j in range(self.blocks[i]):
                h = _block(self, i, j)(h)
        # A depthwise convolution with a kernel as large as the map.
        basis_init = nn.initializers.normal((sizes[0] * sizes[1]) ** -0.5)
        basis = self.param("basis", basis_init, (*sizes, self.widths[0]))
        h = jnp.einsum("bhwc,hwc->bc", h, basis)
        if self.conditioning == "none":
            return dense(h, 1, name="out", init=UNIT, use_bias=False)[:, 0], None
        check_label(label, self.num_classes)
        h = dense(h, self.widths[0], name="out", init=UNIT, use_bias=False)
        init = nn.initializers.variance_scaling(1 / self.widths[0], "fan_in", "normal")
        label = jax.nn.one_hot(label, self.num_classes)
        label = dense(label, self.widths[0], name="embedding", init=init, use_bias=False)
        return (h * label).sum(axis=-1), None


class Block(nn.Module):
    """1x1, grouped 3x3 and 1x1 convolutions beside the identity, which it is at first.

    x: [B, H, W, C] to the same shape. Kernels before an activation start with the gain that keeps
    its output's mean square at depth^(-1/2) times its input's: so the sum of `depth` branches
    stays of the order of one once they are no longer zero.
    ValueError where the groups do not divide the channels.

    Attributes:
        expanded: channels of the 3x3 convolution.
        groups: of the 3x3 convolution.
        depth: blocks in the whole network.
    """

    expanded: int
    groups: int
    depth: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.expanded % self.groups:
            raise SettingError(
                f"{self.groups} groups do not divide {self.expanded} channels: an entry of network."
                "*.cardinality divides expansion times its entry of widths"
            )
        init = nn.initializers.variance_scaling(self.depth**-0.5 / LEAK, "fan_in", "normal")
        h = leaky_relu(dense(x, self.expanded, name="conv1", init=init))
        shape = (3, 3, self.expanded // self.groups, self.expanded)
        kernel = self.param("kernel", init, shape).astype(h.dtype)
        bias = self.param("bias", ZEROS, (self.expanded,)).astype(h.dtype)
        h = leaky_relu(grouped_conv(h, kernel) + bias.reshape(1, 1, 1, -1))
        return x + dense(h, x.shape[-1], name="conv3", init=ZEROS, use_bias=False)


def _block(net: Generator | Discriminator, resolution: int, number: int) -> Block:
    return block_of(Block, net.remat)(
        net.expansion * net.widths[resolution],
        net.cardinality[resolution],
        sum(net.blocks),
        name=f"block_{resolution}_{number}",
    )


def grouped_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 3x3 convolution within groups of channels, padded by one zero on all four sides.

    x: [B, H, W, G * C], kernel: [3, 3, C, G * D], to [B, H, W, G * D].

    On a CPU as a product of matrices: the gradient of XLA's own grouped convolution is some thirty
    times slower there.
    """
    return jax.lax.platform_dependent(x, kernel, cpu=_by_matrices, default=_by_convolution)


def _by_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=((1, 1), (1, 1)),
        dimension_numbers=LAYOUT,
        feature_group_count=x.shape[-1] // kernel.shape[2],
    )


def _by_matrices(x: jax.Array, kernel: jax.Array) -> jax.Array:
    b, height, width, _ = x.shape
    c = kernel.shape[2]
    groups = x.shape[-1] // c
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    x = x.reshape(b, height + 2, width + 2, groups, c)
    windows = [x[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    h = jnp.einsum(
        "bhwgc,cgd->bhwgd", jnp.concatenate(windows, axis=-1), kernel.reshape(9 * c, groups, -1)
    )
    return h.reshape(b, height, width, -1)


def upsample(x: jax.Array) -> jax.Array:
    """Doubles a map between its pixels: 3/4 of the nearest, 1/4 of the next, along each axis.

    x: [B, H, W, C] to [B, 2H, 2W, C]; zeros surround the map. It is zeros between the pixels, then
    4 times the filter [1, 3, 3, 1] / 8 along both axes, which is the authors' [1, 2, 1] / 4 after
    a doubling by nearest neighbours; 4 times the transpose of `downsample`.
    """
    for axis in (1, 2):
        phases = [0.75 * x + 0.25 * _shift(x, axis, step) for step in (1, -1)]
        shape = list(x.shape)
        shape[axis] *= 2
        x = jnp.stack(phases, axis=axis + 1).reshape(shape)
    return x


def downsample(x: jax.Array) -> jax.Array:
    """Halves a map after the filter [1, 3, 3, 1] / 8 along each axis.

    x: [B, H, W, C] to [B, H/2, W/2, C]; zeros surround the map. It is the authors' [1, 2, 1] / 4,
    then means of 2x2.
    """
    for axis in (1, 2):
        even, odd = (jax.lax.slice_in_dim(x, i, None, 2, axis) for i in (0, 1))
        x = 0.375 * (even + odd) + 0.125 * (_shift(odd, axis, 1) + _shift(even, axis, -1))
    return x


def _shift(x: jax.Array, axis: int, step: int) -> jax.Array:
    """x[i - step] at i, for a step of 1 or -1, and zero where there is none."""
    size = x.shape[axis]
    pads = [(0, 0)] * x.ndim
    pads[axis] = (1, 0) if step == 1 else (0, 1)
    start = 0 if step == 1 else 1
    return jax.lax.slice_in_dim(jnp.pad(x, pads), start, start + size, axis=axis)


def _smallest_map(
    shape: Sequence[int],
    widths: Sequence[int],
    blocks: Sequence[int],
    cardinality: Sequence[int],
) -> tuple[int, int]:
    """(height, width) of the map that len(widths) - 1 doublings make the image of."""
    if not len(widths) == len(blocks) == len(cardinality):
        raise SettingError(
            f"widths={tuple(widths)}, blocks={tuple(blocks)} and cardinality={tuple(cardinality)} "
            "are not of one length: each has one number for each resolution"
        )
    return halved_sides(shape[:2], len(widths) - 1, f"widths={tuple(widths)}")
