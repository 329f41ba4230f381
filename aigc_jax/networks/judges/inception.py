"""Inception V3 as the Frechet Inception Distance uses it: the TensorFlow graph of 2015-12-05.

It differs from the paper's network, and from the one of torchvision: average pools do not count
their padding, the last block pools by the maximum, there are 1008 logits, and images are resized
as TensorFlow 1 did, inside the graph.

Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2015
(arXiv:1512.00567); Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a
Local Nash Equilibrium", 2017 (arXiv:1706.08500).
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.networks import torch_names

SIZE = 299
# The graph's weights as PyTorch tensors, 91 MB; Apache License 2.0.
WEIGHTS_URL = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth"
)


def from_torch(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The variables of Inception from the tensors of WEIGHTS_URL, as torch_file.read gives them.

    ValueError that names the first tensors which are missing, unexpected or of another shape.
    """
    return torch_names.fit(
        Inception().init,
        (1, SIZE, SIZE, 3),
        tensors,
        what="the FID Inception network",
        ignored=("num_batches_tracked", "AuxLogits.", "fc.bias"),
    )


def resize_tf1(x: jax.Array, size: int = SIZE) -> jax.Array:
    """Bilinear resizing of TensorFlow 1: output i lies at input i * in / out, with no half pixel.

    x: [B, H, W, C] to [B, size, size, C]; x itself where it has that size already. Nothing is
    averaged on the way down, as nothing was then: FID's numbers depend on it.

    Parmar et al., "On Aliased Resizing and Surprising Subtleties in GAN Evaluation", 2022
    (arXiv:2104.11222).
    """
    if x.shape[1:3] == (size, size):
        return x
    rows, columns = (_interpolation(n, size).astype(x.dtype) for n in x.shape[1:3])
    x = jnp.einsum("oh,bhwc->bowc", rows, x, precision=jax.lax.Precision.HIGHEST)
    return jnp.einsum("pw,bowc->bopc", columns, x, precision=jax.lax.Precision.HIGHEST)


def _interpolation(n: int, size: int) -> np.ndarray:
    """The matrix [size, n] of linear interpolation, two weights a row."""
    # TensorFlow finds the positions in float32; at 256 their rounding moves a byte by 0.004.
    position = np.arange(size, dtype=np.float32) * np.float32(n / size)
    low = position.astype(np.int32)
    weight = position - low
    matrix = np.zeros((size, n), np.float32)
    np.add.at(matrix, (np.arange(size), low), 1 - weight)
    # Behind the last pixel there is only that pixel.
    np.add.at(matrix, (np.arange(size), np.minimum(low + 1, n - 1)), weight)
    return matrix


class Inception(nn.Module):
    """x: float32 [B, H, W, 3] of bytes 0..255 to (features [B, 2048], logits [B, 1008]), float32.

    The features are the last pool's. The logits are WITHOUT the bias of the last layer, because
    the published Inception Scores are of those ("logits_unbiased" of torch-fidelity). Everything
    is float32 at the highest precision: a TPU would multiply in bfloat16 otherwise.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = (resize_tf1(x.astype(jnp.float32)) - 128) / 128
        x = conv(x, 32, 3, "Conv2d_1a_3x3", stride=2, padding="VALID")  # 149
        x = conv(x, 32, 3, "Conv2d_2a_3x3", padding="VALID")  # 147
        x = conv(x, 64, 3, "Conv2d_2b_3x3")
        x = nn.max_pool(x, (3, 3), (2, 2))  # 73
        x = conv(x, 80, 1, "Conv2d_3b_1x1")
        x = conv(x, 192, 3, "Conv2d_4a_3x3", padding="VALID")  # 71
        x = nn.max_pool(x, (3, 3), (2, 2))  # 35
        x = BlockA(32, name="Mixed_5b")(x)
        x = BlockA(64, name="Mixed_5c")(x)
        x = BlockA(64, name="Mixed_5d")(x)
        x = BlockB(name="Mixed_6a")(x)  # 17
        x = BlockC(128, name="Mixed_6b")(x)
        x = BlockC(160, name="Mixed_6c")(x)
        x = BlockC(160, name="Mixed_6d")(x)
        x = BlockC(192, name="Mixed_6e")(x)
        x = BlockD(name="Mixed_7a")(x)  # 8
        x = BlockE(pool=average, name="Mixed_7b")(x)
        x = BlockE(pool=maximum, name="Mixed_7c")(x)
        features = x.mean(axis=(1, 2))
        logits = nn.Dense(1008, use_bias=False, precision="highest", name="fc")(features)
        return features, logits


class ConvNorm(nn.Module):
    """A convolution, the normalisation by stored statistics, a rectifier."""

    features: int
    kernel: tuple[int, int]
    stride: int
    padding: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(
            self.features,
            self.kernel,
            self.stride,
            self.padding,
            use_bias=False,
            precision="highest",
            name="conv",
        )(x)
        return nn.relu(nn.BatchNorm(use_running_average=True, epsilon=1e-3, name="bn")(x))


def conv(
    x: jax.Array,
    features: int,
    kernel: int | tuple[int, int],
    name: str,
    *,
    stride: int = 1,
    padding: str = "SAME",
) -> jax.Array:
    """A ConvNorm, inside a compact module."""
    kernel = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    return ConvNorm(features, kernel, stride, padding, name=name)(x)


def chain(x: jax.Array, name: str, *layers: tuple[int, int | tuple[int, int]]) -> jax.Array:
    """Convolutions name_1, name_2, ... of the given features and kernels."""
    for i, (features, kernel) in enumerate(layers, start=1):
        x = conv(x, features, kernel, f"{name}_{i}")
    return x


def average(x: jax.Array) -> jax.Array:
    """Mean over each 3x3 neighbourhood, of the pixels that exist."""
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def maximum(x: jax.Array) -> jax.Array:
    """Maximum over each 3x3 neighbourhood."""
    return nn.max_pool(x, (3, 3), (1, 1), "SAME")


def concatenate(*branches: jax.Array) -> jax.Array:
    """The branches' channels, one after the other."""
    return jnp.concatenate(branches, axis=-1)


class BlockA(nn.Module):
    """Figure 5: a 5x5 and two 3x3 in parallel. [B, 35, 35, C] to [B, 35, 35, 224 + pooled]."""

    pooled: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return concatenate(
            conv(x, 64, 1, "branch1x1"),
            chain(x, "branch5x5", (48, 1), (64, 5)),
            chain(x, "branch3x3dbl", (64, 1), (96, 3), (96, 3)),
            conv(average(x), self.pooled, 1, "branch_pool"),
        )


class BlockB(nn.Module):
    """Figure 10: from 35x35 to 17x17 by strides in parallel to a pool. Adds 480 channels."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        double = chain(x, "branch3x3dbl", (64, 1), (96, 3))
        return concatenate(
            conv(x, 384, 3, "branch3x3", stride=2, padding="VALID"),
            conv(double, 96, 3, "branch3x3dbl_3", stride=2, padding="VALID"),
            nn.max_pool(x, (3, 3), (2, 2)),
        )


class BlockC(nn.Module):
    """Figure 6: 7x7 as rows and columns. [B, 17, 17, 768] to the same shape."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, row, column = self.width, (1, 7), (7, 1)
        return concatenate(
            conv(x, 192, 1, "branch1x1"),
            chain(x, "branch7x7", (c, 1), (c, row), (192, column)),
            chain(x, "branch7x7dbl", (c, 1), (c, column), (c, row), (c, column), (192, row)),
            conv(average(x), 192, 1, "branch_pool"),
        )


class BlockD(nn.Module):
    """From 17x17 to 8x8. [B, 17, 17, 768] to [B, 8, 8, 1280]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        single = conv(x, 192, 1, "branch3x3_1")
        seven = chain(x, "branch7x7x3", (192, 1), (192, (1, 7)), (192, (7, 1)))
        return concatenate(
            conv(single, 320, 3, "branch3x3_2", stride=2, padding="VALID"),
            conv(seven, 192, 3, "branch7x7x3_4", stride=2, padding="VALID"),
            nn.max_pool(x, (3, 3), (2, 2)),
        )


class BlockE(nn.Module):
    """Figure 7: rows and columns side by side. [B, 8, 8, C] to [B, 8, 8, 2048]."""

    pool: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        single = conv(x, 384, 1, "branch3x3_1")
        double = chain(x, "branch3x3dbl", (448, 1), (384, 3))
        return concatenate(
            conv(x, 320, 1, "branch1x1"),
            conv(single, 384, (1, 3), "branch3x3_2a"),
            conv(single, 384, (3, 1), "branch3x3_2b"),
            conv(double, 384, (1, 3), "branch3x3dbl_3a"),
            conv(double, 384, (3, 1), "branch3x3dbl_3b"),
            conv(self.pool(x), 192, 1, "branch_pool"),
        )
