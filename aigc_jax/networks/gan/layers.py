"""Layers that the adversarial networks share, channels last.

Every layer computes in the dtype of its input; parameters, the statistics of a norm, spectral norms
and the softmax of an attention are float32. What a layer keeps from call to call besides its
parameters is in the collection "batch_stats": with train=True it uses what it finds in this call
and stores it if that collection is mutable, with train=False it uses what is stored.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.checks import one_of
from aigc_jax.errors import SettingError
from aigc_jax.networks.layers import INIT, check_label
from aigc_jax.networks.strided import LAYOUT, halve

# Glorot & Bengio 2010 before a rectifier; `networks.layers.INIT` elsewhere.
GLOROT_RELU = nn.initializers.variance_scaling(2.0, "fan_avg", "uniform")
SMALL = nn.initializers.normal(0.02)  # Radford et al. 2016
ONES, ZEROS = nn.initializers.ones_init(), nn.initializers.zeros_init()
MOMENTUM = 0.9  # of a batch norm's stored statistics: what they keep at each update
CONDITIONINGS = ("none", "projection", "concat", "classifier")


def gain(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """An initialiser of a norm's gains: N(1, 0.02)."""
    return 1.0 + SMALL(key, shape, dtype)


leaky_relu = partial(nn.leaky_relu, negative_slope=0.2)


def conv(
    x: jax.Array,
    features: int,
    *,
    name: str,
    padding: int,
    init: nn.initializers.Initializer,
    size: int = 3,
    stride: int = 1,
    use_bias: bool = True,
    spectral: bool = False,
    train: bool = False,
) -> jax.Array:
    """A convolution, inside a compact module, padded by as many zeros on all four sides.

    x: [B, H, W, C]; the kernel is [size, size, C, features], divided by its spectral norm where
    spectral is True.
    """
    shape = (size, size, x.shape[-1], features)
    kernel, bias = _Weights(shape, use_bias, spectral, init, name=name)(train)
    sides = ((padding, padding), (padding, padding))
    kernel = kernel.astype(x.dtype)
    if (size, stride, padding) == (4, 2, 1):
        return _add(halve(x, kernel), bias)
    h = jax.lax.conv_general_dilated(x, kernel, (stride, stride), sides, dimension_numbers=LAYOUT)
    return _add(h, bias)


def dense(
    x: jax.Array,
    features: int,
    *,
    name: str,
    init: nn.initializers.Initializer,
    use_bias: bool = True,
    spectral: bool = False,
    train: bool = False,
) -> jax.Array:
    """A linear map of the last axis, inside a compact module: on an image, a 1x1 convolution.

    The kernel is [C, features], divided by its spectral norm where spectral is True.
    """
    shape = (x.shape[-1], features)
    kernel, bias = _Weights(shape, use_bias, spectral, init, name=name)(train)
    return _add(x @ kernel.astype(x.dtype), bias)


class _Weights(nn.Module):
    """(kernel, bias or None), float32, of one linear layer; the kernel maybe over its norm.

    Miyato, Kataoka, Koyama & Yoshida, "Spectral Normalization for Generative Adversarial Networks",
    2018 (arXiv:1802.05957), algorithm 1: one power iteration for every call with train=True,
    none with train=False, and u and v are constants to the gradient. The matrix is
    [everything else, outputs], so v is as long as an output's inputs and u as the outputs.
    """

    shape: tuple[int, ...]
    use_bias: bool
    spectral: bool
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, train: bool) -> tuple[jax.Array, jax.Array | None]:
        kernel = self.param("kernel", self.kernel_init, self.shape)
        bias = self.param("bias", ZEROS, self.shape[-1:]) if self.use_bias else None
        if self.spectral:
            kernel = kernel / self.norm(kernel.reshape(-1, self.shape[-1]), train)
        return kernel, bias

    def norm(self, matrix: jax.Array, train: bool) -> jax.Array:
        product = partial(jnp.matmul, precision="highest")
        frozen = jax.lax.stop_gradient(matrix)
        u = self.variable(
            "batch_stats",
            "u",
            lambda: _unit(jax.random.normal(self.make_rng("params"), matrix.shape[1:])),
        )
        # From u, not at random: a stored norm is positive before the first step too.
        v = self.variable("batch_stats", "v", lambda: _unit(product(frozen, u.value)))
        right, left = u.value, v.value
        if train and not self.is_initializing():
            left = _unit(product(frozen, right))
            right = _unit(product(left, frozen))
            if self.is_mutable_collection("batch_stats"):
                u.value, v.value = right, left
        return product(product(left, matrix), right)


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(jnp.linalg.norm(x), 1e-12)


def _add(h: jax.Array, bias: jax.Array | None) -> jax.Array:
    if bias is None:
        return h
    return h + bias.astype(h.dtype).reshape(*(1,) * (h.ndim - 1), -1)


class ConditionalBatchNorm(nn.Module):
    """Batch normalisation whose gain and bias belong to the class of the example.

    x: [B, ..., C] and label: [B] int, to the shape of x. num_classes 0: one gain and bias for all,
    and no label. Stored statistics keep 0.9 of what they were at each update. The stored variance
    is the one that normalised, sum / n; torch stores sum / (n - 1).
    ValueError where num_classes and label do not go together.

    Ioffe & Szegedy 2015 (arXiv:1502.03167); Dumoulin et al. 2017 (arXiv:1610.07629), de Vries
    et al. 2017 (arXiv:1707.00683).
    """

    num_classes: int = 0
    scale_init: nn.initializers.Initializer = ONES

    @nn.compact
    def __call__(
        self, x: jax.Array, label: jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        check_label(label, self.num_classes)
        channels = x.shape[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        var = self.variable("batch_stats", "var", jnp.ones, channels)
        shape = (self.num_classes, *channels) if self.num_classes else channels
        scale, bias = self.param("scale", self.scale_init, shape), self.param("bias", ZEROS, shape)

        def per_channel(a: jax.Array) -> jax.Array:  # [C] or [B, C] beside x
            return a.reshape(*a.shape[:-1], *(1,) * (x.ndim - a.ndim), -1)

        h = x.astype(jnp.float32)
        center, variance = mean.value, var.value
        if train:
            axes = tuple(range(x.ndim - 1))
            center = h.mean(axes)
            # Not E[x^2] - E[x]^2, which cancels where the mean is large.
            variance = jnp.square(h - per_channel(center)).mean(axes)
            if self.is_mutable_collection("batch_stats") and not self.is_initializing():
                mean.value = MOMENTUM * mean.value + (1 - MOMENTUM) * center
                var.value = MOMENTUM * var.value + (1 - MOMENTUM) * variance
        if self.num_classes:
            scale, bias = scale[label], bias[label]
        h = (h - per_channel(center)) * per_channel(jax.lax.rsqrt(variance + 1e-5))
        return (h * per_channel(scale) + per_channel(bias)).astype(x.dtype)


class MinibatchStd(nn.Module):
    """Appends how much the examples of a group differ. [B, H, W, C] to [B, H, W, C + features].

    Every group_size examples that lie B / group_size apart are a group, so that a batch whose
    halves are of different sources mixes them; a batch smaller than group_size is one group. The
    standard deviations over a group are averaged over positions and over C / features channels.
    It depends on the rest of the batch, with train=False too.
    ValueError where a group does not divide the batch, or features the channels.

    Karras et al., "Progressive Growing of GANs", 2018 (arXiv:1710.10196), section 3, in groups as
    in Karras et al. 2020 (arXiv:1912.04958).
    """

    group_size: int = 4
    features: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, height, width, c = x.shape
        group = min(self.group_size, b)
        if b % group:
            raise SettingError(f"groups of {group} do not divide a batch of {b}")
        if c % self.features:
            raise SettingError(f"{self.features} features do not divide {c} channels")
        h = x.astype(jnp.float32).reshape(group, b // group, height, width, self.features, -1)
        std = jnp.sqrt(jnp.square(h - h.mean(axis=0, keepdims=True)).mean(axis=0) + 1e-8)
        std = std.mean(axis=(1, 2, 4))[None, :, None, None, :]
        std = jnp.broadcast_to(std, (group, b // group, height, width, self.features))
        std = std.reshape(b, height, width, self.features)
        return jnp.concatenate([x, std.astype(x.dtype)], axis=-1)


class SelfAttention(nn.Module):
    """Every position attends to a map of half the size, beside a connection around it.

    x: [B, H, W, C] to the same shape; the identity at first. ValueError unless 8 divides C and
    2 divides H and W.

    Zhang, Goodfellow, Metaxas & Odena, "Self-Attention Generative Adversarial Networks", 2019
    (arXiv:1805.08318), section 3: scores are not scaled and the 1x1 convolutions have no bias.
    Keys and values are max-pooled as in the authors' code.
    """

    spectral: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        b, height, width, c = x.shape
        if c % 8 or height % 2 or width % 2:
            raise SettingError(
                f"attention halves the sides and takes 1/8 of the channels of {x.shape}"
            )
        layer = partial(dense, init=INIT, use_bias=False, spectral=self.spectral, train=train)
        query = layer(x, c // 8, name="query").reshape(b, height * width, c // 8)
        key = _max_pool(layer(x, c // 8, name="key")).reshape(b, -1, c // 8)
        value = _max_pool(layer(x, c // 2, name="value")).reshape(b, -1, c // 2)
        # Not `jax.nn.dot_product_attention`, whose values are as wide as its keys.
        scores = jnp.einsum("bqc,bkc->bqk", query, key, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        h = jnp.einsum("bqk,bkc->bqc", weights, value).reshape(b, height, width, c // 2)
        gamma = self.param("gamma", ZEROS, ())
        return x + gamma.astype(x.dtype) * layer(h, c, name="out")


def _max_pool(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (2, 2), (2, 2))


def head(
    h: jax.Array,
    label: jax.Array | None,
    *,
    num_classes: int,
    conditioning: str,
    init: nn.initializers.Initializer,
    use_bias: bool = True,
    spectral: bool = False,
    train: bool = False,
) -> tuple[jax.Array, jax.Array | None]:
    """(logits [B], class logits [B, num_classes] or None) of features [B, D], all in float32.

    Inside the compact module of a discriminator, where `check_conditioning` went before. Class
    logits: Odena, Olah & Shlens, "Conditional Image Synthesis With Auxiliary Classifier GANs", 2017
    (arXiv:1610.09585). Projection: Miyato & Koyama, "cGANs with Projection Discriminator", 2018
    (arXiv:1802.05637), equation 3.
    """
    layer = partial(dense, init=init, spectral=spectral, train=train)
    h = h.astype(jnp.float32)
    logits = layer(h, 1, name="out", use_bias=use_bias)[:, 0]
    if conditioning == "projection":
        check_label(label, num_classes)
        one_hot = jax.nn.one_hot(label, num_classes)
        logits += (layer(one_hot, h.shape[-1], name="embedding", use_bias=False) * h).sum(axis=-1)
    if conditioning == "classifier":
        return logits, layer(h, num_classes, name="classes")
    return logits, None


def with_label(x: jax.Array, label: jax.Array | None, num_classes: int) -> jax.Array:
    """x with the one-hot label as more features, or as more channels at every position of an image.

    x: [B, ..., C] to [B, ..., C + num_classes]. ValueError where num_classes and label do not go
    together.
    """
    check_label(label, num_classes)
    if not num_classes:
        return x
    one_hot = jax.nn.one_hot(label, num_classes, dtype=x.dtype)
    one_hot = one_hot.reshape(x.shape[0], *(1,) * (x.ndim - 2), num_classes)
    return jnp.concatenate([x, jnp.broadcast_to(one_hot, (*x.shape[:-1], num_classes))], axis=-1)


def check_conditioning(conditioning: str, num_classes: int) -> None:
    """ValueError for a discriminator's conditioning that does not exist, or that lacks labels."""
    one_of("network.discriminator.conditioning", conditioning, CONDITIONINGS)
    if conditioning != "none" and not num_classes:
        raise SettingError(
            f"network.discriminator.conditioning={conditioning!r} needs data with labels; this "
            "data set has none"
        )
