"""Encoders and decoders of variational autoencoders with one group of latents.

Each module maps an example to the mean and log variance of q(z|x), and z to the parameters of
p(x|z); what they are parameters of, only the loss knows. Kingma & Welling, "Auto-Encoding
Variational Bayes", 2013 (arXiv:1312.6114).

All of them share these methods, in float32 whatever the activations are:
    encode(x [B, *shape] in the model's range, label [B] int) -> (mean, logvar), each
        [B, *latent_shape].
    decode(z [B, *latent_shape], label) -> [B, *shape[:-1], out_channels].
    __call__(x, label): decodes the mean. It creates every parameter.
`shape` is that of an example: (H, W, C) of an image, and for the MLP any other too, such as (2,) of
a point. Labels enter the encoder and the decoder as one-hot vectors; num_classes, like no label at
all, is the zero vector. No network here has dropout or batch statistics.
ValueError for a label where num_classes is 0 and for examples of another shape.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.checks import Count, Counts, DType, OneOf, one_of
from aigc_jax.errors import SettingError
from aigc_jax.networks.layers import (
    INIT,
    Downsample,
    GroupNorm,
    ResBlock,
    SelfAttention,
    Upsample,
    block_of,
    check_label,
    check_shape,
    conv,
    dense,
    halved_sides,
)
from aigc_jax.networks.strided import Doubling

ACTIVATIONS = {"relu": nn.relu, "tanh": jnp.tanh}


class _Autoencoder(nn.Module):
    def __call__(self, x: jax.Array, label: jax.Array | None = None) -> jax.Array:
        mean, _ = self.encode(x, label)
        return self.decode(mean, label)


class MLP(_Autoencoder):
    """Fully connected, both ways: 784-500-20-500-784 by default; 815,824 parameters.

    Its first layer sees values in [-1, 1] moved to [0, 1].

    The network of Burda et al., "Importance Weighted Autoencoders", 2015 (arXiv:1509.00519), is
    hidden=(200, 200), activation="tanh", latent=50.

    Attributes:
        shape: of an example, its last axis being its channels.
        latent: numbers in z.
        out_channels: channels of the output.
        hidden: widths on the way to z; the decoder has them in the other order.
        activation: "relu" or "tanh".
        num_classes: 0 for a network without labels.
        dtype: of the activations, "float32" or "bfloat16". Parameters are float32.
    """

    shape: tuple[int, ...] = (28, 28, 1)
    latent: Count = 20
    out_channels: int = 1
    hidden: Counts = (500,)
    activation: Annotated[str, OneOf(ACTIVATIONS)] = "relu"
    num_classes: int = 0
    dtype: DType = "float32"

    @property
    def latent_shape(self) -> tuple[int]:
        return (self.latent,)

    def setup(self) -> None:
        positions = math.prod(self.shape[:-1])
        layers = partial(_Layers, activation=_activation(self.activation), dtype=self.dtype)
        self.encoder = layers(self.hidden, 2 * self.latent)
        self.decoder = layers(self.hidden[::-1], positions * self.out_channels)

    def encode(self, x: jax.Array, label: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        check_shape(x, self.shape)
        # In [0, 1], where the background of digits is zero: from -1 it would be the same large
        # input of every image, and learning is several times slower.
        x = (x.reshape(x.shape[0], -1) + 1) / 2
        h = _with_label(x, label, self.num_classes)
        return _moments(self.encoder(h))

    def decode(self, z: jax.Array, label: jax.Array | None = None) -> jax.Array:
        h = self.decoder(_with_label(z, label, self.num_classes))
        return h.reshape(z.shape[0], *self.shape[:-1], self.out_channels)


class Conv(_Autoencoder):
    """Strided convolutions to a vector, transposed ones back: the usual small network for MNIST.

    Attributes:
        shape: (H, W, C) of the input; ValueError unless len(widths) halvings divide H and W.
        latent: numbers in z.
        out_channels: channels of the output.
        widths: channels after each halving; the decoder has them in the other order.
        num_classes: 0 for a network without labels.
        dtype: of the activations, "float32" or "bfloat16". Parameters are float32.
    """

    shape: tuple[int, int, int] = (28, 28, 1)
    latent: Count = 20
    out_channels: int = 1
    widths: Counts = (32, 64)
    num_classes: int = 0
    dtype: DType = "float32"

    @property
    def latent_shape(self) -> tuple[int]:
        return (self.latent,)

    def setup(self) -> None:
        sizes = halved_sides(
            self.shape[:2], len(self.widths), f"network.widths={tuple(self.widths)}"
        )
        self.encoder = _ConvEncoder(self.latent, self.widths, self.dtype)
        self.decoder = _ConvDecoder(sizes, self.out_channels, self.widths, self.dtype)

    def encode(self, x: jax.Array, label: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        check_shape(x, self.shape)
        return _moments(self.encoder(_with_label(x, label, self.num_classes)))

    def decode(self, z: jax.Array, label: jax.Array | None = None) -> jax.Array:
        return self.decoder(_with_label(z, label, self.num_classes))


class Residual(_Autoencoder):
    """The KL autoencoder of latent diffusion: a map of latents, 8 times smaller by default.

    Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2021
    (arXiv:2112.10752); 83,653,863 parameters at the defaults. A new network's residual
    branches are zero, which the paper's are not.

    Attributes:
        shape: (H, W, C) of the input; ValueError unless the halvings divide H and W.
        latent: channels of the map of latents.
        out_channels: channels of the output.
        width: channels at full resolution.
        multipliers: of the width, one for each resolution; each is half of the one before, so
            (1, 2, 4, 4) is f8 and (1, 2, 4) is f4.
        blocks: residual blocks at each resolution of the encoder; one more in the decoder.
        attention: whether the smallest map has one self-attention in its middle.
        groups: of every GroupNorm; as many as the width where the width is smaller.
        num_classes: 0 for a network without labels.
        dtype: of the activations, "float32" or "bfloat16". Parameters are float32, and norms,
            softmax, moments and the last convolution compute in float32.
        remat: whether blocks keep no activations for their gradients.
    """

    shape: tuple[int, int, int] = (256, 256, 3)
    latent: Count = 4
    out_channels: int = 3
    width: Count = 128
    multipliers: Counts = (1, 2, 4, 4)
    blocks: Count = 2
    attention: bool = True
    groups: Count = 32
    num_classes: int = 0
    dtype: DType = "float32"
    remat: bool = False

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        halvings = len(self.multipliers) - 1
        sizes = halved_sides(
            self.shape[:2], halvings, f"network.multipliers={tuple(self.multipliers)}"
        )
        return (*sizes, self.latent)

    def setup(self) -> None:
        groups = min(self.groups, self.width)
        if self.width % groups:
            raise SettingError(
                f"network.groups={groups} does not divide network.width={self.width}"
            )
        parts = {
            "widths": tuple(self.width * m for m in self.multipliers),
            "attention": self.attention,
            "groups": groups,
            "dtype": self.dtype,
            "remat": self.remat,
        }
        self.encoder = _ResidualEncoder(self.latent, blocks=self.blocks, **parts)
        self.decoder = _ResidualDecoder(self.out_channels, blocks=self.blocks + 1, **parts)

    def encode(self, x: jax.Array, label: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        _ = self.latent_shape  # raises an error that names the sizes that can be halved
        check_shape(x, self.shape)
        return _moments(self.encoder(x, _one_hot(label, self.num_classes, x.shape[0])))

    def decode(self, z: jax.Array, label: jax.Array | None = None) -> jax.Array:
        return self.decoder(z, _one_hot(label, self.num_classes, z.shape[0]))


class _Layers(nn.Module):
    """Linear layers with an activation between them; the last one is float32."""

    hidden: tuple[int, ...]
    features: int
    activation: Callable[[jax.Array], jax.Array]
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = x.astype(self.dtype)
        for i, width in enumerate(self.hidden):
            h = self.activation(dense(h, width, name=f"hidden_{i}"))
        return dense(h.astype(jnp.float32), self.features, name="out")


class _ConvEncoder(nn.Module):
    latent: int
    widths: tuple[int, ...]
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = x.astype(self.dtype)
        for i, width in enumerate(self.widths):
            h = nn.relu(conv(h, width, name=f"conv_{i}", stride=2, padding=((0, 1), (0, 1))))
        h = h.reshape(h.shape[0], -1).astype(jnp.float32)
        return dense(h, 2 * self.latent, name="out")


class _ConvDecoder(nn.Module):
    sizes: tuple[int, int]
    out_channels: int
    widths: tuple[int, ...]
    dtype: str

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        height, width = self.sizes
        h = dense(z.astype(self.dtype), height * width * self.widths[-1], name="in")
        h = nn.relu(h).reshape(-1, height, width, self.widths[-1])
        for i, features in reversed(list(enumerate(self.widths))):
            h = nn.relu(Doubling(features, INIT, name=f"conv_{i}")(h))
        return conv(h.astype(jnp.float32), self.out_channels, name="out")


class _ResidualEncoder(nn.Module):
    latent: int
    blocks: int
    widths: tuple[int, ...]
    attention: bool
    groups: int
    dtype: str
    remat: bool

    @nn.compact
    def __call__(self, x: jax.Array, label: jax.Array | None) -> jax.Array:
        block = partial(block_of(ResBlock, self.remat), groups=self.groups)
        h = conv(x.astype(self.dtype), self.widths[0], name="in")
        for i, width in enumerate(self.widths):
            for j in range(self.blocks):
                h = block(width, name=f"down_{i}_block_{j}")(h, label)
            if i < len(self.widths) - 1:
                h = Downsample(name=f"down_{i}_downsample")(h)
        h = _Middle(self.attention, self.groups, self.remat, name="middle")(h, label)
        h = nn.swish(GroupNorm(self.groups, name="norm_out")(h.astype(jnp.float32)))
        h = conv(h, 2 * self.latent, name="out")
        return dense(h, 2 * self.latent, name="moments")


class _ResidualDecoder(nn.Module):
    out_channels: int
    blocks: int
    widths: tuple[int, ...]
    attention: bool
    groups: int
    dtype: str
    remat: bool

    @nn.compact
    def __call__(self, z: jax.Array, label: jax.Array | None) -> jax.Array:
        block = partial(block_of(ResBlock, self.remat), groups=self.groups)
        h = dense(z, z.shape[-1], name="latent").astype(self.dtype)
        h = conv(h, self.widths[-1], name="in")
        h = _Middle(self.attention, self.groups, self.remat, name="middle")(h, label)
        for i, width in reversed(list(enumerate(self.widths))):
            for j in range(self.blocks):
                h = block(width, name=f"up_{i}_block_{j}")(h, label)
            if i > 0:
                h = Upsample(name=f"up_{i}_upsample")(h)
        h = nn.swish(GroupNorm(self.groups, name="norm_out")(h.astype(jnp.float32)))
        return conv(h, self.out_channels, name="out")


class _Middle(nn.Module):
    attention: bool
    groups: int
    remat: bool

    @nn.compact
    def __call__(self, x: jax.Array, label: jax.Array | None) -> jax.Array:
        block = partial(block_of(ResBlock, self.remat), x.shape[-1], groups=self.groups)
        h = block(name="block_0")(x, label)
        if self.attention:
            h = block_of(SelfAttention, self.remat)(groups=self.groups, name="attention")(h)
        return block(name="block_1")(h, label)


def _moments(h: jax.Array) -> tuple[jax.Array, jax.Array]:
    mean, logvar = jnp.split(h, 2, axis=-1)
    return mean, logvar


def _one_hot(label: jax.Array | None, num_classes: int, batch: int) -> jax.Array | None:
    """[B, num_classes] float32, zeros for no label; None for a network without labels."""
    check_label(label, num_classes, optional=True)
    if not num_classes:
        return None
    if label is None:
        return jnp.zeros((batch, num_classes), jnp.float32)
    return jax.nn.one_hot(label, num_classes)


def _with_label(x: jax.Array, label: jax.Array | None, num_classes: int) -> jax.Array:
    """The one-hot label as more features, or as more channels at every position of an image."""
    one_hot = _one_hot(label, num_classes, x.shape[0])
    if one_hot is None:
        return x
    one_hot = one_hot.reshape(x.shape[0], *(1,) * (x.ndim - 2), num_classes)
    return jnp.concatenate([x, jnp.broadcast_to(one_hot, (*x.shape[:-1], num_classes))], axis=-1)


def _activation(name: str) -> Callable[[jax.Array], jax.Array]:
    one_of("network.activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]
