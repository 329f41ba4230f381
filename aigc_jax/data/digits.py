"""scikit-learn's 1,797 handwritten digits, 8x8 grey pixels, as a TFDS data set with no download."""

import io
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from aigc_jax.data.images import Record

CLASSES = 10
_STRIDE = 6  # within each class every 6th example is held out: 1,501 to train, 296 to test


def arrays(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The images, uint8 [N, 8, 8, 1] with 0..16 spread over 0..255, and labels, int32 [N]."""
    from sklearn.datasets import load_digits  # a second to import, for this one data set

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int32)
    test = np.zeros(len(labels), bool)
    for label in range(CLASSES):
        test[np.flatnonzero(labels == label)[_STRIDE - 1 :: _STRIDE]] = True
    chosen = test if split == "test" else ~test
    return images[chosen], labels[chosen]


def records(split: str) -> list[Record]:
    """The split as PNG bytes with labels: given an array, TFDS's feature would call TensorFlow."""
    encoded = []
    for index, (image, label) in enumerate(zip(*arrays(split), strict=True)):
        png = io.BytesIO()
        Image.fromarray(image[:, :, 0]).save(png, format="png")
        encoded.append(Record(f"digits {split}[{index}]", png.getvalue(), int(label)))
    return encoded


class Digits(tfds.core.GeneratorBasedBuilder):
    """Optical recognition of handwritten digits (Alpaydin and Kaynak, UCI, 1998)."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=CLASSES),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        del dl_manager  # scikit-learn carries the data
        return {split: self._generate_examples(split) for split in ("train", "test")}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        for index, record in enumerate(records(split)):
            yield index, {"image": record.data, "label": record.label}
