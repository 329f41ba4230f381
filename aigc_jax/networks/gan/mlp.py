"""A fully connected generator and discriminator.

Goodfellow et al., "Generative Adversarial Nets", 2014 (arXiv:1406.2661). Examples may have any
shape: they are flattened. Points of the plane, which have no range, take output="linear".
"""

import math
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.checks import Count, Counts, DType, OneOf, one_of
from aigc_jax.networks.gan.layers import (
    CONDITIONINGS,
    GLOROT_RELU,
    check_conditioning,
    dense,
    head,
    leaky_relu,
    with_label,
)
from aigc_jax.networks.layers import INIT, check_shape

ACTIVATIONS = ("relu", "leaky_relu")
OUTPUTS = ("tanh", "linear")


class Generator(nn.Module):
    """Linear layers with rectifiers between them: 100-256-512-1024-784 by default.

    z [B, latent] and label [B] int to examples [B, ...] float32; the label enters beside z as a
    one-hot vector. ValueError where num_classes and label do not go together.

    Attributes:
        shape: of one example, the output.
        latent: numbers in z.
        hidden: widths of the layers between.
        activation: "relu", or "leaky_relu" with the discriminator's slope of 0.2.
        output: "tanh", in [-1, 1], or "linear".
        num_classes: 0 for a network without labels.
        dtype: of the activations, "float32" or "bfloat16". Parameters and the last layer are
            float32.
    """

    shape: tuple[int, ...] = (28, 28, 1)
    latent: Count = 100
    hidden: Counts = (256, 512, 1024)
    activation: Annotated[str, OneOf(ACTIVATIONS)] = "relu"
    output: Annotated[str, OneOf(OUTPUTS)] = "tanh"
    num_classes: int = 0
    dtype: DType = "float32"

    @nn.compact
    def __call__(
        self, z: jax.Array, label: jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        one_of("network.generator.output", self.output, OUTPUTS)
        one_of("network.generator.activation", self.activation, ACTIVATIONS)
        rectify = nn.relu if self.activation == "relu" else leaky_relu
        h = with_label(z, label, self.num_classes).astype(self.dtype)
        for i, width in enumerate(self.hidden):
            name = f"hidden_{i}" if i else "in"
            h = rectify(dense(h, width, name=name, init=GLOROT_RELU))
        h = dense(h.astype(jnp.float32), math.prod(self.shape), name="out", init=INIT)
        h = h.reshape(-1, *self.shape)
        return jnp.tanh(h) if self.output == "tanh" else h


class Discriminator(nn.Module):
    """Linear layers with leaky rectifiers between them: 784-1024-512-256-1 by default.

    x [B, ...] and label [B] int to (logits [B], class logits [B, num_classes] or None), all
    float32. ValueError for examples of another shape and for conditioning without labels.

    Attributes:
        shape: of one example, the input.
        hidden: widths of the layers between.
        num_classes: 0 for data without labels.
        conditioning: "none", which ignores the label; "concat" puts it beside the values as a
            one-hot vector; "projection" and "classifier" as in `layers.head`.
        dtype: of the activations, "float32" or "bfloat16". Parameters and logits are float32.
    """

    shape: tuple[int, ...] = (28, 28, 1)
    hidden: Counts = (1024, 512, 256)
    num_classes: int = 0
    conditioning: Annotated[str, OneOf(CONDITIONINGS)] = "none"
    dtype: DType = "float32"

    @nn.compact
    def __call__(
        self, x: jax.Array, label: jax.Array | None = None, *, train: bool = False
    ) -> tuple[jax.Array, jax.Array | None]:
        check_conditioning(self.conditioning, self.num_classes)
        check_shape(x, self.shape)
        h = x.reshape(x.shape[0], -1)
        if self.conditioning == "concat":
            h = with_label(h, label, self.num_classes)
        h = h.astype(self.dtype)
        for i, width in enumerate(self.hidden):
            h = leaky_relu(dense(h, width, name=f"hidden_{i}", init=GLOROT_RELU))
        return head(
            h,
            label,
            num_classes=self.num_classes,
            conditioning=self.conditioning,
            init=INIT,
        )
