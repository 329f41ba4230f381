"""Classifiers in whose features small images are compared: a ResNet, LeNet, one hidden layer.

All take float32 [B, H, W, C] of bytes 0..255 and give (features, logits), float32, at the highest
precision: a TPU would multiply in bfloat16 otherwise, and the scores would move.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.networks import torch_names

# Of ImageNet, in [0, 1]: what the ResNet was trained with.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def resnet56_from(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The variables of ResNet56 from a state dict such as cifar10_resnet56.npz.

    ValueError that names the first tensors which are missing, unexpected or of another shape.
    """
    return torch_names.fit(
        ResNet56().init,
        (1, 32, 32, 3),
        tensors,
        what="a ResNet-56 for CIFAR-10",
        ignored=("num_batches_tracked",),
    )


def lenet_from(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The variables of LeNet from Caffe's blobs, conv1_0, conv1_1, ..., such as mnist_lenet.npz.

    ValueError that names the first tensors which are missing, unexpected or of another shape.
    """
    return torch_names.fit(
        LeNet().init, (1, 28, 28, 1), tensors, what="Caffe's LeNet", leaves=torch_names.CAFFE
    )


def digits_from(coefs: Sequence[np.ndarray], intercepts: Sequence[np.ndarray]) -> dict[str, Any]:
    """The variables of DigitsNet(hidden) from coefs_ and intercepts_ of an MLPClassifier.

    hidden is coefs[0].shape[1]. ValueError for any but one hidden layer and 10 classes.
    """
    hidden, pixels = np.shape(coefs[0])[::-1] if len(coefs) else (0, 0)
    found = {f"coefs[{i}]": np.shape(a) for i, a in enumerate(coefs)}
    found |= {f"intercepts[{i}]": np.shape(a) for i, a in enumerate(intercepts)}
    expected = {
        "coefs[0]": (pixels, hidden),
        "coefs[1]": (hidden, 10),
        "intercepts[0]": (hidden,),
        "intercepts[1]": (10,),
    }
    torch_names.compare(expected, found, what="an MLP with one hidden layer and 10 classes")
    layers = zip(("hidden", "out"), coefs, intercepts, strict=True)
    return {
        "params": {
            name: {"kernel": np.asarray(w, np.float32), "bias": np.asarray(b, np.float32)}
            for name, w, b in layers
        }
    }


class ResNet56(nn.Module):
    """The CIFAR network of 56 layers. x: [B, 32, 32, 3] to (features [B, 64], logits [B, 10]).

    The features are the last map's means. The collection "intermediates" has the last map of each
    stage: "stage1" [B, 32, 32, 16], "stage2", "stage3"; for maps alone, images of any size will do.

    He, Zhang, Ren & Sun, "Deep Residual Learning for Image Recognition", 2015 (arXiv:1512.03385),
    section 4.2 with n = 9.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        mean, std = (jnp.asarray(a, jnp.float32)[None, None, None, :] for a in (MEAN, STD))
        x = (x.astype(jnp.float32) / 255 - mean) / std
        x = nn.relu(norm(conv3x3(x, 16, "conv1"), "bn1"))
        for stage, width in enumerate((16, 32, 64), start=1):
            for i in range(9):
                stride = 2 if stage > 1 and i == 0 else 1
                x = BasicBlock(width, stride, name=f"layer{stage}.{i}")(x)
            self.sow("intermediates", f"stage{stage}", x)
        features = x.mean(axis=(1, 2))
        return features, nn.Dense(10, precision="highest", name="linear")(features)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut without parameters (the paper's option A)."""

    width: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = nn.relu(norm(conv3x3(x, self.width, "conv1", self.stride), "bn1"))
        h = norm(conv3x3(h, self.width, "conv2"), "bn2")
        # New channels are zeros, half of them before the old ones and half behind.
        new = (self.width - x.shape[-1]) // 2
        x = x[:, :: self.stride, :: self.stride, :]
        return nn.relu(h + jnp.pad(x, ((0, 0), (0, 0), (0, 0), (new, new))))


def conv3x3(x: jax.Array, features: int, name: str, stride: int = 1) -> jax.Array:
    """A 3x3 convolution without bias, inside a compact module, padded by one on every side."""
    padding = ((1, 1), (1, 1))  # "SAME" would pad a strided one at the end only
    return nn.Conv(
        features, (3, 3), stride, padding, use_bias=False, precision="highest", name=name
    )(x)


def norm(x: jax.Array, name: str) -> jax.Array:
    """Normalisation by stored statistics, inside a compact module."""
    return nn.BatchNorm(use_running_average=True, epsilon=1e-5, name=name)(x)


class LeNet(nn.Module):
    """Caffe's LeNet for MNIST. x: [B, 28, 28, 1] to (features [B, 500], logits [B, 10]).

    The features are the hidden layer's, rectified.

    LeCun et al., "Gradient-Based Learning Applied to Document Recognition", 1998, as Caffe's
    examples/mnist/lenet.prototxt has it.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = x.astype(jnp.float32) / 256
        for name, features in (("conv1", 20), ("conv2", 50)):
            x = nn.Conv(features, (5, 5), padding="VALID", precision="highest", name=name)(x)
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)  # Caffe's channels come first
        features = nn.relu(nn.Dense(500, precision="highest", name="ip1")(x))
        return features, nn.Dense(10, precision="highest", name="ip2")(features)


class DigitsNet(nn.Module):
    """One hidden layer. x: [B, H, W, C] to (features [B, hidden], logits [B, 10]).

    The network of scikit-learn's MLPClassifier with its rectifiers, fitted to flattened images
    in [0, 1].
    """

    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = x.astype(jnp.float32).reshape(x.shape[0], -1) / 255
        features = nn.relu(nn.Dense(self.hidden, precision="highest", name="hidden")(x))
        return features, nn.Dense(10, precision="highest", name="out")(features)
