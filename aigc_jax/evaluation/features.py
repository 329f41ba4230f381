"""Feature networks by name: what a distribution metric is measured in, and is named after.

A metric is called `fid` with Inception alone; with another network it carries that one's name, as
`fd_resnet56` does: distances in two feature spaces are not comparable.
"""

import hashlib
import os
import pathlib
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.networks import classifiers, inception, torch_file

# Where the weights of a network lie in $AIGC_WEIGHTS, by the names under which they are passed on.
FILES = {
    "inception": "pt_inception-2015-12-05-6726825d.pth",
    "resnet56": "cifar10_resnet56.npz",
    "lenet": "mnist_lenet.npz",
    "stacked_lenet": "mnist_lenet.npz",
}
NAMES = (*FILES, "digits")
DIGITS_WIDTH = 64


class FeatureNetwork(NamedTuple):
    """A classifier as a feature extractor.

    Attributes:
      name: one of NAMES.
      apply: (variables, images float32 [B, H, W, C] of values 0..255) -> (features [B, d],
        logits [B, K]).
      variables: its weights.
      shape: (height, width, channels) that it takes; 0 where any will do.
      preprocessing: what happens to the bytes inside `apply`; part of a cache's key.
    """

    name: str
    apply: Callable
    variables: Any
    shape: tuple[int, int, int]
    preprocessing: str

    def check(self, shape: tuple[int, int, int]) -> None:
        """Raises ValueError where images of `shape` are not what the network was trained on."""
        fits = [a in (0, b) for a, b in zip(self.shape, shape, strict=True)]
        grey = self.shape[2] == 3 and shape[2] == 1 and self.shape[0] == 0  # repeated to RGB
        if not (all(fits[:2]) and (fits[2] or grey)):
            height, width, channels = (n or "any" for n in self.shape)
            raise ValueError(
                f"feature network {self.name!r} takes images of {height}x{width}x{channels}, not "
                f"{'x'.join(map(str, shape))}: set evaluation.network to one of {', '.join(NAMES)}"
            )

    @property
    def digest(self) -> str:
        """Of weights and preprocessing: networks of equal digest give equal features."""
        total = hashlib.sha256(f"{self.name} {self.preprocessing}".encode())
        for path, leaf in jax.tree_util.tree_flatten_with_path(self.variables)[0]:
            total.update(jax.tree_util.keystr(path).encode())
            total.update(np.ascontiguousarray(leaf).tobytes())
        return total.hexdigest()[:16]


class Features(NamedTuple):
    """What a network makes of n images: features float32 [n, d], logits float32 [n, K]."""

    features: np.ndarray
    logits: np.ndarray

    def some(self, n: int) -> "Features":
        """n of them, or all."""
        index = some(len(self.features), n)
        return Features(self.features[index], self.logits[index])


def some(length: int, n: int) -> np.ndarray:
    """n of `length` indices at random, in order and always the same; all where there are fewer.

    At random, since data may lie in the order of their classes, or with classes in turn.
    """
    n = min(n, length)
    return np.sort(np.random.default_rng(0).choice(length, n, replace=False))


def load(
    name: str,
    weights: str | None,
    digits: Callable[[], tuple[np.ndarray, np.ndarray]],
    cache: pathlib.Path,
) -> FeatureNetwork:
    """A feature network by name.

    Args:
      name: "inception" (the FID Inception V3), "resnet56" (CIFAR-10), "lenet" (MNIST),
        "stacked_lenet" (three MNIST digits as the channels of one image: 1,000 classes), or
        "digits", fitted on the embedded data.
      weights: file of its weights; None looks for the usual name in $AIGC_WEIGHTS.
      digits: () -> (images uint8 [N, 8, 8, 1], labels) to fit "digits" on.
      cache: folder in which its weights are kept.

    Raises:
      ValueError: an unknown name, or weights of another network.
      FileNotFoundError: no weights there.
    """
    if name not in NAMES:
        raise ValueError(f"evaluation.network is one of {', '.join(NAMES)}, not {name!r}")
    if name == "digits":
        apply = classifiers.DigitsNet(DIGITS_WIDTH).apply
        arrays = cached(cache, "digits-classifier-1", _DIGITS, lambda: _fit(*digits()))
        variables = classifiers.digits_from(arrays[:2], arrays[2:])
        return FeatureNetwork(name, apply, variables, (8, 8, 1), "1")
    path = torch_file.locate(
        weights,
        FILES[name],
        what=f"weights of feature network {name!r}",
        setting="evaluation.weights",
        source=inception.WEIGHTS_URL if name == "inception" else "",
    )
    tensors = torch_file.read(path)
    if name == "inception":
        network = inception.Inception()

        def apply(variables: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
            shape = (*images.shape[:3], 3)  # grey becomes RGB, as when it is saved as such
            return network.apply(variables, jnp.broadcast_to(images, shape))

        return FeatureNetwork(name, apply, inception.from_torch(tensors), (0, 0, 3), "tf1-299")
    if name == "resnet56":
        variables = classifiers.resnet56_from(tensors)
        return FeatureNetwork(name, classifiers.ResNet56().apply, variables, (32, 32, 3), "1")
    variables, lenet = classifiers.lenet_from(tensors), classifiers.LeNet().apply
    if name == "lenet":
        return FeatureNetwork(name, lenet, variables, (28, 28, 1), "1")

    def stacked(variables: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        n = len(images)
        digit = jnp.moveaxis(images, 3, 1).reshape(3 * n, 28, 28, 1)
        features, logits = lenet(variables, digit)
        a, b, c = jnp.moveaxis(jax.nn.log_softmax(logits).reshape(n, 3, 10), 1, 0)
        joint = a[:, :, None, None] + b[:, None, :, None] + c[:, None, None, :]
        return features.reshape(n, -1), joint.reshape(n, 1000)  # mode 100 a + 10 b + c

    return FeatureNetwork(name, stacked, variables, (28, 28, 3), "1")


def extract(
    apply: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], batches: Iterable[np.ndarray]
) -> Features:
    """Features of images that come as uint8 batches [b, H, W, C]; `apply` runs on the devices."""
    pairs = [apply(batch) for batch in batches]
    if not pairs:
        raise ValueError("there are no images to take features of")
    features, logits = (np.concatenate(arrays) for arrays in zip(*pairs, strict=True))
    return Features(features, logits)


def cached(
    folder: pathlib.Path,
    key: str,
    names: Sequence[str],
    compute: Callable[[], Sequence[np.ndarray]],
) -> tuple[np.ndarray, ...]:
    """Arrays from the file of that key, or computed and left there; a damaged file is redone."""
    path = folder / f"{key}.npz"
    try:
        with np.load(path) as arrays:
            return tuple(arrays[name] for name in names)
    except FileNotFoundError:
        pass
    except Exception:  # whatever NumPy makes of a damaged file
        warnings.warn(f"{path} is damaged: computed again", stacklevel=2)
    found = tuple(compute())
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".npz", delete=False) as file:
        np.savez(file, **dict(zip(names, found, strict=True)))
    os.replace(file.name, path)
    return found


_DIGITS = ("coefs0", "coefs1", "intercepts0", "intercepts1")


def _fit(images: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """Weights and biases of the digits' classifier: less than a second, the same each time."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    # 98.3 % of the held-out digits right, sure of 91.6 % of them.
    network = MLPClassifier(
        (DIGITS_WIDTH,), alpha=1e-3, learning_rate_init=3e-3, max_iter=100, random_state=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ConvergenceWarning
        )  # 100 passes are what it is meant to get
        network.fit(images.reshape(len(images), -1) / 255.0, labels)
    return [*network.coefs_, *network.intercepts_]
