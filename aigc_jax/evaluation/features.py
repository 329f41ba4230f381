"""Feature networks by name: what a metric of sets of images is measured in, and is named after.

A metric is called `fid` with Inception alone; with another network it carries that one's name, as
`fd_resnet56` does: distances in two feature spaces are not comparable.
"""

import hashlib
import pathlib
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax import files
from aigc_jax.checks import one_of
from aigc_jax.errors import MissingError, SettingError
from aigc_jax.evaluation.metrics.frechet import check_statistics
from aigc_jax.formats import lpips as lpips_files
from aigc_jax.formats import torch_file
from aigc_jax.networks.judges import classifiers, inception, lpips

# (height, width, channels) of the images that each network was trained on; 0 where any will do.
SHAPES = {
    "inception": (0, 0, 3),
    "resnet56": (32, 32, 3),
    "lenet": (28, 28, 1),
    "stacked_lenet": (28, 28, 3),
    "digits": (8, 8, 1),
    "vgg16": (0, 0, 3),
    "alexnet": (0, 0, 3),
}
# Where the weights of a network lie in $AIGC_WEIGHTS, by the names under which they are passed on;
# `formats.lpips` knows those of VGG-16 and AlexNet.
FILES = {
    "inception": "pt_inception-2015-12-05-6726825d.pth",
    "resnet56": "cifar10_resnet56.npz",
    "lenet": "mnist_lenet.npz",
    "stacked_lenet": "mnist_lenet.npz",
}
NAMES = tuple(SHAPES)
WITHOUT_CLASSES = tuple(lpips.TRUNKS)  # convolutions alone: they tell no class
DIGITS_WIDTH = 64


class FeatureNetwork(NamedTuple):
    """A network as a feature extractor.

    Attributes:
      name: one of NAMES.
      apply: (variables, images float32 [B, H, W, C] of values 0..255) -> (features [B, d],
        logits [B, K], K = 0 for a network of WITHOUT_CLASSES).
      variables: its weights.
      preprocessing: what happens to the bytes inside `apply`; part of a cache's key.
    """

    name: str
    apply: Callable
    variables: Any
    preprocessing: str

    @property
    def digest(self) -> str:
        """Of weights and preprocessing: networks of equal digest give equal features."""
        total = hashlib.sha256(f"{self.name} {self.preprocessing}".encode())
        for path, leaf in jax.tree_util.tree_flatten_with_path(self.variables)[0]:
            total.update(jax.tree_util.keystr(path).encode())
            total.update(np.ascontiguousarray(leaf).tobytes())
        return total.hexdigest()[:16]


class Features(NamedTuple):
    """What a network makes of n images: features float32 [n, d], logits float32 [n, K], K >= 0."""

    features: np.ndarray
    logits: np.ndarray

    def subsample(self, n: int) -> "Features":
        """n of them, or all."""
        index = subsample(len(self.features), n)
        return Features(self.features[index], self.logits[index])


def subsample(length: int, n: int) -> np.ndarray:
    """n of `length` indices at random, in order and always the same; all where there are fewer.

    At random, since data may lie in the order of their classes, or with classes in turn.
    """
    n = min(n, length)
    return np.sort(np.random.default_rng(0).choice(length, n, replace=False))


def check(name: str, shape: tuple[int, ...]) -> None:
    """Raises ValueError for an unknown network, and where it was not trained on such images.

    Args:
      name: one of NAMES.
      shape: (height, width, channels) of the images that are to be judged.
    """
    one_of("evaluation.network", name, NAMES)
    takes = SHAPES[name]
    fits = [a in (0, b) for a, b in zip(takes, shape, strict=True)]
    grey = takes == (0, 0, 3) and shape[2] == 1  # repeated to RGB
    if not (all(fits[:2]) and (fits[2] or grey)):
        height, width, channels = (n or "any" for n in takes)
        raise SettingError(
            f"feature network {name!r} takes images of {height}x{width}x{channels}, not "
            f"{'x'.join(map(str, shape))}: set evaluation.network to one of {', '.join(NAMES)}"
        )
    smallest = lpips.TRUNKS[name].size_min if name in lpips.TRUNKS else 0
    if min(shape[:2]) < smallest:
        raise SettingError(
            f"feature network {name!r} takes images of at least {smallest}x{smallest}, not "
            f"{shape[0]}x{shape[1]}: set evaluation.network to another"
        )


def load(
    name: str,
    weights: str | None,
    digits: Callable[[], tuple[np.ndarray, np.ndarray]],
    cache: pathlib.Path,
) -> FeatureNetwork:
    """A feature network by name.

    Args:
      name: "inception" (the FID Inception V3), "vgg16" or "alexnet" (the convolutions of
        ImageNet's classifiers), "resnet56" (CIFAR-10), "lenet" (MNIST), "stacked_lenet" (three
        MNIST digits as the channels of one image: 1,000 classes), or "digits", fitted on the
        embedded data.
      weights: file of its weights; None looks for the usual name in $AIGC_WEIGHTS, and for the
        package of `formats.lpips`.
      digits: () -> (images uint8 [N, 8, 8, 1], labels) to fit "digits" on.
      cache: folder in which its weights are kept.

    Raises:
      ValueError: an unknown name, or weights of another network.
      FileNotFoundError: no weights there.
    """
    one_of("evaluation.network", name, NAMES)
    if name == "digits":
        if weights is not None:
            raise SettingError(
                f"feature network 'digits' has no file of weights: unset evaluation.weights "
                f"({weights})"
            )
        apply = classifiers.DigitsNet(DIGITS_WIDTH).apply
        arrays = cached(cache, "digits-classifier-1", _DIGITS, lambda: _fit(*digits()))
        variables = classifiers.digits_from(arrays[:2], arrays[2:])
        return FeatureNetwork(name, apply, variables, "1")
    where = {"what": f"weights of feature network {name!r}", "setting": "evaluation.weights"}
    if name in lpips.TRUNKS:
        variables, _ = lpips_files.read(name, weights, **where)
        return FeatureNetwork(name, partial(_pooled, name), variables, "1")
    path = torch_file.locate(
        weights,
        FILES[name],
        **where,
        source=inception.WEIGHTS_URL if name == "inception" else "",
    )
    tensors = torch_file.read(path)
    if name == "inception":
        variables = inception.from_torch(tensors)
        return FeatureNetwork(name, _inception, variables, "tf1-299")
    if name == "resnet56":
        variables = classifiers.resnet56_from(tensors)
        return FeatureNetwork(name, classifiers.ResNet56().apply, variables, "1")
    apply = _stacked_lenet if name == "stacked_lenet" else classifiers.LeNet().apply
    return FeatureNetwork(name, apply, classifiers.lenet_from(tensors), "1")


def _inception(variables: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Grey images become RGB, as when they are saved as such."""
    shape = (*images.shape[:3], 3)
    return inception.Inception().apply(variables, jnp.broadcast_to(images, shape))


def _pooled(name: str, variables: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The means of the last map's channels: features [B, 512] of VGG-16, [B, 256] of AlexNet."""
    features = lpips.maps(name, variables, images, "highest")[-1].mean(axis=(1, 2))
    return features, jnp.zeros((len(images), 0))


def _stacked_lenet(variables: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """LeNet on each of three channels: features [B, 1500], logits of the modes 100 a + 10 b + c."""
    n = len(images)
    digit = jnp.moveaxis(images, 3, 1).reshape(3 * n, 28, 28, 1)
    features, logits = classifiers.LeNet().apply(variables, digit)
    a, b, c = jnp.moveaxis(jax.nn.log_softmax(logits).reshape(n, 3, 10), 1, 0)
    joint = a[:, :, None, None] + b[:, None, :, None] + c[:, None, None, :]
    return features.reshape(n, -1), joint.reshape(n, 1000)


def cached(
    folder: pathlib.Path,
    key: str,
    names: Sequence[str],
    compute: Callable[[], Sequence[np.ndarray]],
    on_all: Callable[[bool], bool] = bool,
) -> tuple[np.ndarray, ...]:
    """Arrays from the file of that key, or computed and left there; a damaged file is redone.

    `on_all` says whether all processes found theirs, where `compute` takes all of them.
    """
    path, found = folder / f"{key}.npz", None
    try:
        with np.load(path) as arrays:
            found = tuple(arrays[name] for name in names)
    except FileNotFoundError:
        pass
    except Exception:  # whatever NumPy makes of a damaged file
        warnings.warn(f"{path} is damaged: computed again", stacklevel=2)
    if on_all(found is not None):
        return found
    found = tuple(compute())
    files.write_arrays(path, dict(zip(names, found, strict=True)))
    return found


def load_statistics(path: str | pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """The mean (`mu`) and the covariance (`sigma`) of features, float64, in an `.npz` file.

    These are the keys of the statistics published with FID's first code.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is damaged, lacks `mu` or `sigma`, or they do not fit or hold NaN or inf.
    """
    path = files.expanded(path)
    if not path.is_file():
        raise MissingError(
            f"no statistics at {path}: name an .npz file of mu and sigma by evaluation.statistics"
        )
    try:
        with np.load(path) as file:
            if missing := {"mu", "sigma"} - set(file.files):
                raise KeyError(", ".join(sorted(missing)))
            mean, covariance = file["mu"], file["sigma"]
    except KeyError as error:
        raise SettingError(f"{path} has no {error.args[0]}: it needs mu and sigma") from error
    except Exception as error:  # whatever NumPy makes of a damaged file
        raise SettingError(f"{path} is no readable .npz file: write it again") from error
    return check_statistics(mean, covariance, f"{path}: the")


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
        # 100 passes are what it is meant to get, converged or not.
        warnings.simplefilter("ignore", ConvergenceWarning)
        network.fit(images.reshape(len(images), -1) / 255.0, labels)
    return [*network.coefs_, *network.intercepts_]
