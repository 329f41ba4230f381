"""How distribution metrics behave on real data: their floor, their bias, what moves them.

    PYTHONPATH=. AIGC_WEIGHTS=DIR python benchmarks/metric_behaviour.py --data_dir=DIR
    PYTHONPATH=. AIGC_WEIGHTS=DIR python benchmarks/metric_behaviour.py --data_dir=DIR \\
        --images=2000 --on cifar10:vgg16 cifar10:alexnet cifar10:resnet56

For CIFAR-10 in ResNet-56 features and MNIST in LeNet features, everything against the whole
training set: test images at several sample sizes, then 10,000 training images, as they are, with
part of one class left out, with Gaussian noise, and blurred. Two tables in Markdown; about seven
minutes on two CPU cores, the training set's features kept for the next time. --images takes only
the first so many of each split, --on other data sets and networks: the second command lasts three
minutes on one core.
"""

import argparse

import numpy as np
from PIL import Image, ImageFilter

from aigc_jax.data import datasets
from aigc_jax.evaluation import evaluators, features
from aigc_jax.evaluation.comparison import ImageComparison
from aigc_jax.runs.examples import RealData
from aigc_jax.runs.extractors import FeatureExtractors, real_split
from aigc_jax.training import sharding

SETS = ("cifar10:resnet56", "mnist:lenet")
SIZES = (1000, 5000, 10_000)
NAMES = ("fid", "kid", "precision_recall", "inception_score", "modes", "memorisation")
SHOWN = ("fd", "kd", "precision", "recall", "density", "coverage", "score", "class_kl", "copies")


def noisy(images: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian noise of `sigma` in units of the full range 0..1."""
    noise = np.random.default_rng(0).normal(0, 255 * sigma, images.shape)
    return np.clip(np.round(images + noise), 0, 255).astype(np.uint8)


def blurred(images: np.ndarray, radius: float) -> np.ndarray:
    """A Gaussian blur of `radius` pixels."""
    grey = images.shape[-1] == 1

    def blur(image: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(image[..., 0] if grey else image)
        return np.asarray(picture.filter(ImageFilter.GaussianBlur(radius)))

    return np.stack([blur(image) for image in images]).reshape(images.shape)


def study(
    name: str, network: str, data_dir: str, images: int, manifold_count: int
) -> list[list[str]]:
    """Rows of one table."""
    splits = tuple(f"{split}[:{images}]" if images else split for split in ("train", "test"))
    dataset = datasets.load(name, data_dir=data_dir, splits=splits)
    data = RealData(name, dataset, *splits, 500)
    extract = FeatureExtractors(sharding.make_mesh(), 500).open(network, None, data.spec.shape)
    train, test = (real_split(data, split, extract) for split in splits)
    asked = [n for n in NAMES if not evaluators.without_classes(n, network)]

    def measure(title: str, found: features.Features) -> list[str]:
        comparison = ImageComparison(
            network=network,
            drawn=lambda: found,
            labels=None,
            reference=train,
            held_out=test,
            statistics=None,
            manifold_count=manifold_count,
        )
        rows = [row for n in asked for row in evaluators.of_samples(n, comparison, real=False)]
        by_name = {row.metric: row for row in rows}
        cells = [title, str(len(found.features))]
        for metric in SHOWN:
            row = by_name.get(f"{metric}_{network}")
            if row is None:  # a network that tells no classes
                cells.append("")
                continue
            error = f" ± {row.error:.2g}" if row.error and metric == "kd" else ""
            cells.append(f"{row.value:.4g}{error}")
        print(" | ".join(cells), flush=True)
        return cells

    real, count = train.features, min(images or SIZES[-1], SIZES[-1])
    sizes = [*(n for n in SIZES if n < count), count]
    rows = [measure(f"test, {n} images", test.features.subsample(n)) for n in sizes]
    rows += [measure(f"train, {n} images", real.subsample(n)) for n in sizes]
    chosen = dataset.sources[splits[0]].fetch(features.subsample(len(real.features), count))
    pictures, labels = chosen["x"], chosen["label"]
    clean = real.subsample(count)
    members = np.flatnonzero(labels == 3)
    for share in (0.1, 0.5, 1.0):
        kept = np.setdiff1d(np.arange(count), members[: round(share * len(members))])
        part = features.Features(clean.features[kept], clean.logits[kept])
        rows.append(measure(f"train, {share:.0%} of class 3 left out", part))
    for sigma in (0.02, 0.05, 0.1):
        rows.append(measure(f"train, noise of sigma {sigma}", extract(noisy(pictures, sigma))))
    for radius in (0.4, 0.6, 1.0):
        rows.append(measure(f"train, blur of {radius} pixels", extract(blurred(pictures, radius))))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True, help="folder of TFDS")
    parser.add_argument("--manifold_count", type=int, default=10_000)
    parser.add_argument("--images", type=int, default=0, help="of each split; 0: all")
    parser.add_argument("--on", nargs="+", default=SETS, help="data sets and networks, SET:NETWORK")
    options = parser.parse_args()
    given = {key: getattr(options, key) for key in ("data_dir", "images", "manifold_count")}
    pairs = [pair.split(":") for pair in options.on]
    tables = {f"{name} in {network}": study(name, network, **given) for name, network in pairs}
    for title, rows in tables.items():
        print(f"\n### {title}\n\n| images | n | {' | '.join(SHOWN)} |")
        print("|---" * (len(SHOWN) + 2) + "|")
        for row in rows:
            print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
