"""Convolutions that halve or double the sides of a map, all of whose derivatives are fast.

XLA's own derivatives of strided and transposed convolutions are many times slower on a CPU than
those of plain ones, so here each is written as plain ones of the map's phases where that counts.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

LAYOUT = ("NHWC", "HWIO", "NHWC")


@jax.custom_vjp
def halve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 4x4 convolution of stride 2: [B, 2H, 2W, C] to [B, H, W, features].

    Its gradient with respect to x is `double`, whose own gradients are fast on a CPU: there a
    penalty on the slope of a DCGAN's discriminator takes a fifth of the time of XLA's own
    derivatives of a strided convolution. No forward-mode derivatives.
    """
    return _halve(x, kernel)


def _halve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    sides = ((1, 1), (1, 1))
    return jax.lax.conv_general_dilated(x, kernel, (2, 2), sides, dimension_numbers=LAYOUT)


def _halve_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple]:
    return halve(x, kernel), (x, kernel)


def _halve_backward(kept: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    _, to_kernel = jax.vjp(lambda k: _halve(x, k), kernel)
    return double(g, kernel.swapaxes(2, 3)), *to_kernel(g)


halve.defvjp(_halve_forward, _halve_backward)


def double(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 4x4 transposed convolution of stride 2: [B, H, W, C] to [B, 2H, 2W, features].

    Equal to torch's conv_transpose2d(stride=2, padding=1). Kernel [4, 4, C, features] is torch's
    [C, features, 4, 4] transposed, not flipped, so x[i] adds x[i] kernel[k] to output 2i - 1 + k.

    As one 2x2 convolution to the four phases of the larger map, which are then laid side by side:
    on a CPU the gradient of the transposed convolution itself is some ten times slower.
    """
    b, h, w, c = x.shape
    features = kernel.shape[-1]
    # Window i holds x[i - 1], x[i]: output 2i - 1 is k[2], k[0] of them, 2i is k[3], k[1].
    order = np.array([2, 3, 0, 1])
    taps = kernel[order][:, order].reshape(2, 2, 2, 2, c, features)
    taps = taps.transpose(0, 2, 4, 1, 3, 5).reshape(2, 2, c, 4 * features)
    # Padded in two goes: where a 2x2 convolution's output is larger than its input, the gradient of
    # its kernel is fifty times slower on a CPU.
    x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    y = jax.lax.conv_general_dilated(x, taps, (1, 1), ((1, 0), (1, 0)), dimension_numbers=LAYOUT)
    y = y.reshape(b, h + 1, w + 1, 2, 2, features).transpose(0, 1, 3, 2, 4, 5)
    # The first window makes output -1 and the last one output 2H, which are outside the map.
    return y.reshape(b, 2 * h + 2, 2 * w + 2, features)[:, 1:-1, 1:-1]


class UpConv(nn.Module):
    """`double`, no bias: [B, H, W, C] to [B, 2H, 2W, features].

    Every output sees 2x2 of the 4x4, which an initialisation by fan-in would have to know.
    """

    features: int
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (4, 4, x.shape[-1], self.features))
        return double(x, kernel.astype(x.dtype))


class Doubling(nn.Module):
    """A 3x3 transposed convolution of stride 2: [B, H, W, C] to [B, 2H, 2W, features].

    Equal to torch's ConvTranspose2d(C, features, 3, stride=2, padding=1, output_padding=1): the
    kernel [3, 3, C, features] is torch's [C, features, 3, 3] transposed, not flipped, so that x[i]
    adds x[i] kernel[k] to output 2i - 1 + k.

    As one 2x2 convolution to the four phases of the larger map, which are then laid side by side:
    on a CPU the gradient of the transposed convolution itself is some ten times slower.
    """

    features: int
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, h, w, c = x.shape
        kernel = self.param("kernel", self.kernel_init, (3, 3, c, self.features)).astype(x.dtype)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,)).astype(x.dtype)
        # Output 2i is x[i] k[1], and 2i + 1 is x[i] k[2] + x[i + 1] k[0].
        order = np.array([1, 2, 3, 0])  # number 3 is the zero kernel
        taps = jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0)))[order][:, order]
        taps = taps.reshape(2, 2, 2, 2, c, self.features).transpose(0, 2, 4, 1, 3, 5)
        y = jax.lax.conv_general_dilated(
            x,
            taps.reshape(2, 2, c, 4 * self.features),
            window_strides=(1, 1),
            padding=((0, 1), (0, 1)),
            dimension_numbers=LAYOUT,
        )
        y = y.reshape(b, h, w, 2, 2, self.features).transpose(0, 1, 3, 2, 4, 5)
        return y.reshape(b, 2 * h, 2 * w, self.features) + bias.reshape(1, 1, 1, -1)
