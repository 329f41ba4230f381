"""A fully connected network for diffusion in the plane, where distributions can be looked at."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.checks import Count, DType
from aigc_jax.networks.layers import (
    ZERO,
    check_label,
    dense,
    label_embedding,
    sinusoidal_embedding,
)

FAN_IN = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


class MLP(nn.Module):
    """Residual layers on points [B, D], each shifted by an embedding of the time and the label.

    Attributes:
        out_channels: of the output, numbers a point.
        width: of the layers, and of the embedding.
        depth: how many residual layers.
        num_classes: 0 for a network without labels.
        second_time: whether it takes a second time, t2.
        dtype: of the activations. Parameters, embeddings and the last layer are float32.
    """

    out_channels: int
    width: Count = 128
    depth: Count = 3
    num_classes: int = 0
    second_time: bool = False
    dtype: DType = "float32"

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        label: jax.Array | None = None,
        *,
        t2: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Returns [B, out_channels] float32. x: [B, D]. t, t2: [B]. label: int32 [B] or None."""
        check_label(label, self.num_classes, optional=True)
        embedding = dense(self._waves(t), self.width, name="time")
        if self.second_time:
            embedding += dense(self._waves(t if t2 is None else t2), self.width, name="time2")
        if self.num_classes:
            normal = nn.initializers.normal(1.0)
            embedding += label_embedding(label, len(t), self.num_classes, self.width, normal)
        # By its inputs alone: of few, the mean of inputs and width makes activations so small that
        # the network starts as a linear one, and stays so where nothing linear is left to learn,
        # as of EDM's target of data of deviation sigma_data.
        h = dense(x.astype(self.dtype), self.width, name="input", init=FAN_IN)
        for i in range(self.depth):
            shift = dense(nn.swish(embedding), self.width, name=f"embedding_{i}").astype(h.dtype)
            inner = dense(nn.swish(h) + shift, self.width, name=f"layer_{i}_0")
            h = h + dense(nn.swish(inner), self.width, name=f"layer_{i}_1")
        return dense(h.astype(jnp.float32), self.out_channels, name="output", init=ZERO)

    def _waves(self, t: jax.Array) -> jax.Array:
        return sinusoidal_embedding(t, self.width)
