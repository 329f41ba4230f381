"""Convolutions that halve and double the sides: PyTorch's, and their derivatives XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from aigc_jax.networks.strided import LAYOUT, Doubling, UpConv, halve

NORMAL = nn.initializers.normal(1.0)


def channels_first(x):
    return np.array(x).transpose(0, 3, 1, 2).copy()


def test_up_conv_is_torchs_transposed_convolution():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, target = (rng.normal(size=s).astype(np.float32) for s in ((2, 5, 3, 4), (2, 10, 6, 3)))
    ours = UpConv(3, NORMAL)
    kernel = ours.init(jax.random.key(1), x)["params"]["kernel"]
    assert kernel.shape == (4, 4, 4, 3)

    def loss(kernel):
        out = ours.apply({"params": {"kernel": kernel}}, x)
        return (out * target).sum(), out

    gradient, out = jax.jit(jax.grad(loss, has_aux=True))(kernel)
    weight = torch.tensor(np.array(kernel.transpose(2, 3, 0, 1)), requires_grad=True)
    expected = torch.nn.functional.conv_transpose2d(
        torch.from_numpy(channels_first(x)), weight, stride=2, padding=1
    )
    np.testing.assert_allclose(channels_first(out), expected.detach(), rtol=1e-4, atol=1e-4)
    (expected * torch.from_numpy(channels_first(target))).sum().backward()
    np.testing.assert_allclose(
        gradient.transpose(2, 3, 0, 1), weight.grad.numpy(), rtol=1e-4, atol=1e-4
    )


def test_the_doubling_is_the_transposed_convolution_of_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, kernel, bias = (
        rng.normal(size=s).astype(np.float32) for s in ((2, 5, 7, 3), (3, 3, 3, 4), 4)
    )
    out = Doubling(4, NORMAL).apply({"params": {"kernel": kernel, "bias": bias}}, x)
    expected = torch.nn.functional.conv_transpose2d(
        torch.from_numpy(channels_first(x)),
        torch.from_numpy(kernel.transpose(2, 3, 0, 1).copy()),
        torch.from_numpy(bias),
        stride=2,
        padding=1,
        output_padding=1,
    )
    np.testing.assert_allclose(out, expected.permute(0, 2, 3, 1), atol=1e-5)


def test_derivatives_of_the_halving_to_the_second_are_those_of_the_plain_convolution():
    rng = np.random.default_rng(0)
    x, kernel, direction = (
        rng.normal(size=s).astype(np.float32) for s in ((2, 8, 6, 3), (4, 4, 3, 5), (2, 4, 3, 5))
    )

    def plain(x, kernel):
        sides = ((1, 1), (1, 1))
        return jax.lax.conv_general_dilated(x, kernel, (2, 2), sides, dimension_numbers=LAYOUT)

    def derivatives(conv):
        def score(x, kernel):  # not linear, so that its slope depends on both
            return jnp.sum(direction * jnp.tanh(0.2 * conv(x, kernel)))

        def slope(x, kernel):
            return jnp.sum(jnp.square(jax.grad(score)(x, kernel)))

        both = (0, 1)
        return conv(x, kernel), jax.grad(score, both)(x, kernel), jax.grad(slope, both)(x, kernel)

    ours, theirs = (jax.tree.leaves(jax.jit(lambda c=c: derivatives(c))()) for c in (halve, plain))
    for found, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
