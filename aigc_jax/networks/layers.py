"""Layers that convolutional networks of several families share, channels last.

Every layer computes in the dtype of its input; parameters are float32, and so are the statistics
of a norm, the softmax of an attention and all that happens to an embedding.

Ho, Jain & Abbeel, "Denoising Diffusion Probabilistic Models", 2020 (arXiv:2006.11239), appendix B.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.errors import SettingError

INIT = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
# A residual branch that ends in zeros starts as the identity.
ZERO = nn.initializers.zeros_init()
MAX_PERIOD = 10_000.0  # of a sinusoidal embedding
EPSILON = 1e-6  # of a group norm, added to the variance


def sinusoidal_embedding(
    t: jax.Array, width: int, *, freq_shift: int = 1, flip_sin_to_cos: bool = False
) -> jax.Array:
    """Sines, then cosines, of t at width/2 frequencies from 1 down to 1/10,000, both included.

    t: [B], in steps 0..T-1, may be fractional. Returns [B, width] float32.
    freq_shift: 0 is Vaswani et al.'s own spacing, whose last frequency is one ratio above 1/10,000.
    flip_sin_to_cos: the cosines come first.
    ValueError for a width that is odd or below 4.

    Vaswani et al. 2017, section 3.5, with the endpoints of Ho et al. 2020.
    """
    half = width // 2
    if width % 2 or half < 2:
        raise SettingError(
            f"an embedding needs an even width (network.width) of at least 4, not {width}"
        )
    # The frequencies are constants: rounded once, from float64. t = 999 needs every bit of them,
    # so the product is never left to a matrix unit or to bfloat16.
    exponents = -np.log(MAX_PERIOD) * np.arange(half) / (half - freq_shift)
    frequencies = np.exp(exponents).astype(np.float32)
    angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
    waves = [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate(waves[::-1] if flip_sin_to_cos else waves, axis=-1)


def dense(
    x: jax.Array,
    features: int,
    *,
    name: str,
    init: nn.initializers.Initializer = INIT,
    use_bias: bool = True,
) -> jax.Array:
    """A linear map of the last axis, inside a compact module: on an image, a 1x1 convolution."""
    layer = nn.Dense(features, use_bias, dtype=x.dtype, kernel_init=init, name=name)
    return layer(x)


def augment_embedding(
    augment: jax.Array | None, batch: int, augment_dim: int, features: int
) -> jax.Array:
    """A linear map of how examples were augmented, [B, features], inside a compact module.

    augment: [B, augment_dim] float32; None is zeros, an example as it is, which this maps to zeros.

    Karras, Aittala, Aila & Laine 2022 (arXiv:2206.00364), appendix F.2.
    """
    if augment is None:
        augment = jnp.zeros((batch, augment_dim), jnp.float32)
    return dense(augment, features, name="augment", use_bias=False)


def conv(
    x: jax.Array,
    features: int,
    *,
    name: str,
    stride: int = 1,
    padding: Sequence[tuple[int, int]] = ((1, 1), (1, 1)),
    init: nn.initializers.Initializer = INIT,
) -> jax.Array:
    """A 3x3 convolution, inside a compact module. x: [B, H, W, C]."""
    layer = nn.Conv(features, (3, 3), stride, padding, dtype=x.dtype, kernel_init=init, name=name)
    return layer(x)


def label_embedding(
    label: jax.Array | None,
    batch: int,
    classes: int,
    features: int,
    init: nn.initializers.Initializer,
) -> jax.Array:
    """The row of each label, or of "none", number `classes`, inside a compact module.

    Returns [batch, features]. label: int32 [batch], None for "none" of all (Ho & Salimans 2022,
    arXiv:2207.12598).
    """
    if label is None:
        label = jnp.full((batch,), classes, jnp.int32)
    return nn.Embed(classes + 1, features, embedding_init=init, name="label")(label)


class GroupNorm(nn.Module):
    """Normalises each group of channels of each example, over all positions, in float32.

    x: [B, ..., C] to the same shape and dtype. ValueError where the groups do not divide C.

    Wu & He 2018 (arXiv:1803.08494).
    """

    groups: int = 32
    eps: float = EPSILON

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        if channels % self.groups:
            raise SettingError(f"{self.groups} groups do not divide {channels} channels")
        scale = self.param("scale", nn.initializers.ones_init(), (channels,))[None]
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,))[None]
        h, mean, variance = centred(x, self.groups)
        scale = scale * jax.lax.rsqrt(variance + self.eps)
        h = h * scale[:, None] + (bias - mean * scale)[:, None]
        return h.reshape(x.shape).astype(x.dtype)


def centred(x: jax.Array, groups: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """An example's groups of channels about an origin of each, and their mean and variance there.

    One pass over x does it, for E[h^2] - E[h]^2 loses no digits where the origin is near the mean.
    It is the mean of the group at the first position, which is never further from the group's mean
    than its deviation times the square root of the number of positions.

    x: [B, ..., C]. Returns h [B, positions, C] and, the same for all channels of a group, mean and
    variance [B, C]; all float32.
    """
    b, channels = x.shape[0], x.shape[-1]

    # Positions first, then channels: a map whose last axis were a group's few channels would waste
    # the lanes of a TPU.
    def of_group(per_channel: jax.Array) -> jax.Array:
        grouped = per_channel.reshape(b, groups, -1)
        means = jnp.broadcast_to(grouped.mean(axis=-1, keepdims=True), grouped.shape)
        return means.reshape(b, channels)

    h = x.astype(jnp.float32).reshape(b, -1, channels)
    h = h - of_group(jax.lax.stop_gradient(h[:, 0]))[:, None]
    mean, square = of_group(h.mean(axis=1)), of_group(jnp.square(h).mean(axis=1))
    return h, mean, jnp.maximum(square - jnp.square(mean), 0.0)


def block_of(module: type[nn.Module], remat: bool) -> type[nn.Module]:
    """A block of a network; with `remat` its activations are computed again for its gradient.

    Of a block only the inputs are then kept (Chen et al. 2016, arXiv:1604.06174), and no name of a
    parameter changes.
    """
    return nn.remat(module) if remat else module


class ResBlock(nn.Module):
    """Two convolutions after norm and swish; an embedding shifts the map between them.

    x: [B, H, W, C] to [B, H, W, features]. embedding: [B, E] float32, or None for a network that
    is conditioned on nothing.

    Attributes:
        dropout: rate, drawn from rng "dropout"; 0 outside training.
        scale_shift: the embedding both scales and shifts each channel, after the second norm, which
            would take out again most of what is before it (Nichol & Dhariwal 2021,
            arXiv:2102.09672, appendix A: h' = (1 + scale) norm(h) + shift).
    """

    features: int
    dropout: float = 0.0
    groups: int = 32
    eps: float = EPSILON
    scale_shift: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array | None = None) -> jax.Array:
        h = nn.swish(GroupNorm(self.groups, self.eps, name="norm1")(x))
        h = conv(h, self.features, name="conv1")
        norm = GroupNorm(self.groups, self.eps, name="norm2")
        if embedding is None:
            h = norm(h)
        else:
            told = self.features * (2 if self.scale_shift else 1)
            told = dense(nn.swish(embedding), told, name="embedding")
            told = told.astype(h.dtype)[:, None, None, :]
            if self.scale_shift:
                scale, shift = jnp.split(told, 2, axis=-1)
                h = norm(h) * (1 + scale) + shift
            else:
                h = norm(h + told)
        h = nn.swish(h)
        h = nn.Dropout(self.dropout, deterministic=False)(h)
        h = conv(h, self.features, name="conv2", init=ZERO)
        if x.shape[-1] != self.features:
            x = dense(x, self.features, name="shortcut")
        return x + h


class SelfAttention(nn.Module):
    """Every position of the map attends to all of them, beside a residual connection.

    x: [B, H, W, C] to the same shape. ValueError where the heads, or a head's channels, do not
    divide C.

    Attributes:
        head_dim: channels of a head; there are then C / head_dim of them. 0: `heads`.
        qkv_init, out_init: of the kernels of q, k and v, and of the last.
    """

    heads: int = 1
    groups: int = 32
    eps: float = EPSILON
    head_dim: int = 0
    qkv_init: nn.initializers.Initializer = INIT
    out_init: nn.initializers.Initializer = ZERO

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, height, width, c = x.shape
        if c % (self.head_dim or self.heads):
            what = f"heads of {self.head_dim} channels" if self.head_dim else f"{self.heads} heads"
            raise SettingError(f"{what} do not divide {c} channels (network.heads)")
        heads = c // self.head_dim if self.head_dim else self.heads
        h = GroupNorm(self.groups, self.eps, name="norm")(x)
        q, k, v = (
            dense(h, c, name=name, init=self.qkv_init).reshape(b, height * width, heads, c // heads)
            for name in ("q", "k", "v")
        )
        # Scores and softmax are float32 in here whatever the activations are.
        h = jax.nn.dot_product_attention(q, k, v).reshape(x.shape)
        return x + dense(h, c, name="out", init=self.out_init)


class Downsample(nn.Module):
    """Halves the map by a strided convolution. x: [B, H, W, C] to [B, H/2, W/2, C].

    Padded at the end only, as the paper's TensorFlow did for even sizes; with `padding` 1 at the
    beginning too, as torch does.
    """

    padding: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        padding = ((self.padding, 1), (self.padding, 1))
        return conv(x, x.shape[-1], name="conv", stride=2, padding=padding)


class Upsample(nn.Module):
    """Doubles the map by its nearest neighbours, then convolves. [B, H, W, C] to [B, 2H, 2W, C]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return conv(nearest(x, 2), x.shape[-1], name="conv")


def nearest(x: jax.Array, times: int) -> jax.Array:
    """Enlarges the map by its nearest neighbours. [B, H, W, C] to [B, times H, times W, C]."""
    b, h, w, c = x.shape
    # A broadcast and a reshape; jax.image.resize would gather.
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, times, w, times, c))
    return x.reshape(b, times * h, times * w, c)


def mean_pool(x: jax.Array) -> jax.Array:
    """Means of 2x2. [B, H, W, C] to [B, H/2, W/2, C]."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def halved_sides(sides: Sequence[int], halvings: int, setting: str) -> tuple[int, int]:
    """(height, width) of an image of these sides after so many halvings.

    ValueError for sides that cannot be halved so often; it names `setting`, such as
    "network.widths=(32, 64)", and the nearest sizes that can.
    """
    height, width = sides
    step = 2**halvings
    for size in (height, width):
        if size % step or size == 0:
            sizes = [n for n in (size // step * step, (size // step + 1) * step) if n]
            raise SettingError(
                f"images are {height}x{width}, but {setting} halves them {halvings} times, which "
                f"{size} does not allow; the nearest sizes that do: "
                f"{' and '.join(map(str, sizes))}"
            )
    return height // step, width // step


def check_shape(x: jax.Array, shape: Sequence[int]) -> None:
    """ValueError for examples [B, ...] of another shape than the network was made for."""
    if x.shape[1:] != tuple(shape):
        raise SettingError(f"the network takes examples of shape {tuple(shape)}, not {x.shape[1:]}")


def check_label(label: jax.Array | None, num_classes: int, *, optional: bool = False) -> None:
    """ValueError for a label that a network cannot use, or misses where it is not optional."""
    if num_classes and label is None and not optional:
        raise SettingError(f"a network with num_classes={num_classes} was given no label")
    if not num_classes and label is not None:
        raise SettingError("a label was given to a network with num_classes=0")


def check_extra(
    augment: jax.Array | None, augment_dim: int, t2: jax.Array | None, second_time: bool
) -> None:
    """ValueError for an augmentation label or a second time that a network does not take."""
    if augment is not None and augment.shape[1:] != (augment_dim,):
        raise SettingError(
            f"an augmentation label of shape {augment.shape} was given to a network with "
            f"network.augment_dim={augment_dim}"
        )
    if t2 is not None and not second_time:
        raise SettingError("a second time was given to a network with network.second_time=False")
