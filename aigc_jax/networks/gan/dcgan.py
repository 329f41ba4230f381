"""The deep convolutional GAN, from a map of 4x4 (to 6x6) by doublings, and back.

Radford, Metz & Chintala, "Unsupervised Representation Learning with Deep Convolutional Generative
Adversarial Networks", 2016 (arXiv:1511.06434). At width 64 and 64x64x3 it is the network of
PyTorch's examples, 3,576,704 and 2,765,568 parameters; the paper has width 128.

Images that no such map doubles to are cut out of the next larger that one does, and surrounded by
zeros up to its size: 28 is the middle of 32, and MNIST has as many layers as 32x32.

Weights start as N(0, 0.02) and the gains of a norm as N(1, 0.02). A layer before a norm has no
bias, and in that network the first and the last layers have none either.
"""

from collections.abc import Sequence
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.checks import Count, DType, OneOf, one_of
from aigc_jax.errors import SettingError
from aigc_jax.networks.gan.layers import (
    CONDITIONINGS,
    SMALL,
    ConditionalBatchNorm,
    MinibatchStd,
    check_conditioning,
    conv,
    dense,
    gain,
    head,
    leaky_relu,
    with_label,
)
from aigc_jax.networks.layers import check_shape
from aigc_jax.networks.strided import UpConv

NORMS = ("batch", "spectral", "none")


def canvas(shape: Sequence[int]) -> tuple[int, tuple[int, int]]:
    """(n, (h, w)): how often a map of h x w doubles until the image fits in.

    The map is the smallest of 4 pixels at least.
    64x64: 4 times from 4x4; 28x28: 3 times from 4x4 to 32x32; 48x40: 3 times from 6x5.
    ValueError for an image under 7 pixels.
    """
    sides, number = shape[:2], 0
    while -(-min(sides) // 2 ** (number + 1)) >= 4:
        number += 1
    if not number:
        raise SettingError(
            f"images are {sides[0]}x{sides[1]}, but this network's sides are at least 7 pixels"
        )
    return number, tuple(-(-side // 2**number) for side in sides)


def margins(shape: Sequence[int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Pixels above and below, and left and right, of the image on what its map doubles to."""
    number, sides = canvas(shape)
    spare = [(side << number) - own for side, own in zip(sides, shape[:2], strict=True)]
    return tuple((each // 2, each - each // 2) for each in spare)


class Generator(nn.Module):
    """A linear map of z, then 4x4 transposed convolutions of stride 2, each after norm and relu.

    z [B, latent] and label [B] int to images [B, H, W, C] float32 in [-1, 1]; the label enters
    beside z as a one-hot vector. ValueError for sides under 7 pixels, and where num_classes and
    label do not go together.

    Attributes:
        shape: (H, W, C) of the output.
        latent: numbers in z.
        width: channels before the last layer; twice as many before each layer above it.
        num_classes: 0 for a network without labels.
        dtype: of the activations, "float32" or "bfloat16". Parameters, norms and the last layer
            are float32.
    """

    shape: tuple[int, int, int] = (64, 64, 3)
    latent: Count = 100
    width: Count = 64
    num_classes: int = 0
    dtype: DType = "float32"

    @nn.compact
    def __call__(
        self, z: jax.Array, label: jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        number, sides = canvas(self.shape)
        last, start = number - 1, (*sides, self.width << (number - 1))
        h = with_label(z, label, self.num_classes).astype(self.dtype)
        h = dense(h, start[0] * start[1] * start[2], name="in", init=SMALL, use_bias=False)
        h = h.reshape(-1, *start)
        for i in range(last + 1):
            h = ConditionalBatchNorm(scale_init=gain, name=f"norm_{i}")(h, train=train)
            h = nn.relu(h)
            if i < last:
                h = UpConv(self.width << (last - 1 - i), SMALL, name=f"up_{i}")(h)
        h = UpConv(self.shape[-1], SMALL, name="out")(h.astype(jnp.float32))
        (top, _), (left, _) = margins(self.shape)
        return jnp.tanh(h[:, top:, left:][:, : self.shape[0], : self.shape[1]])


class Discriminator(nn.Module):
    """4x4 convolutions of stride 2 down to a map of 4 to 6, then one linear layer of all of it.

    x [B, H, W, C] and label [B] int to (logits [B], class logits [B, num_classes] or None), all
    float32. The first layer has no batch norm. ValueError for images of another shape, for sides
    under 7 pixels, and for conditioning without labels.

    Attributes:
        shape: (H, W, C) of the input.
        width: channels after the first layer; each later one doubles them.
        norm: "batch"; "spectral", of every layer; or "none". The last two have biases.
        minibatch_std: whether a channel of the last map says how much the images of a batch differ.
        num_classes: 0 for data without labels.
        conditioning: "none", which ignores the label; "concat" adds it to the image as one-hot
            maps; "projection" and "classifier" as in `layers.head`, of the whole last map.
        dtype: of the activations, "float32" or "bfloat16". Parameters, norms and logits are
            float32.
    """

    shape: tuple[int, int, int] = (64, 64, 3)
    width: Count = 64
    norm: Annotated[str, OneOf(NORMS)] = "batch"
    minibatch_std: bool = False
    num_classes: int = 0
    conditioning: Annotated[str, OneOf(CONDITIONINGS)] = "none"
    dtype: DType = "float32"

    @nn.compact
    def __call__(
        self, x: jax.Array, label: jax.Array | None = None, *, train: bool = False
    ) -> tuple[jax.Array, jax.Array | None]:
        check_conditioning(self.conditioning, self.num_classes)
        one_of("network.discriminator.norm", self.norm, NORMS)
        check_shape(x, self.shape)
        settings = {
            "init": SMALL,
            "use_bias": self.norm != "batch",
            "spectral": self.norm == "spectral",
            "train": train,
        }
        h = x
        if self.conditioning == "concat":
            h = with_label(h, label, self.num_classes)
        h = jnp.pad(h.astype(self.dtype), ((0, 0), *margins(self.shape), (0, 0)))
        for i in range(canvas(self.shape)[0]):
            h = conv(h, self.width << i, name=f"down_{i}", size=4, stride=2, padding=1, **settings)
            if i > 0 and self.norm == "batch":
                h = ConditionalBatchNorm(scale_init=gain, name=f"norm_{i}")(h, train=train)
            h = leaky_relu(h)
        if self.minibatch_std:
            h = MinibatchStd()(h)
        return head(
            h.reshape(h.shape[0], -1),
            label,
            num_classes=self.num_classes,
            conditioning=self.conditioning,
            **settings,
        )
