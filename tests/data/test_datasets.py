"""Data sets: what is read is right, and what cannot be read says so in one line."""

import ast
import pathlib
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import specs
import tensorflow_datasets as tfds
from PIL import Image

from aigc_jax.data import datasets, digits
from aigc_jax.data.images import DataError
from aigc_jax.data.sources import ArraySource, StreamedSource

ROOT = pathlib.Path(__file__).resolve().parents[2]
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
INDICES = np.array([3, 0, 199, 50, 3])


def load_both(name, splits=("test",), **options):
    return [
        datasets.load(name, in_memory=in_memory, splits=splits, **options)
        for in_memory in (True, False)
    ]


def assert_same_source(held, streamed, indices=INDICES):
    assert isinstance(held, ArraySource)
    assert isinstance(streamed, StreamedSource)
    one, other = held.fetch(indices), streamed.fetch(indices)
    assert one.keys() == other.keys()
    for key in one:
        assert one[key].dtype == other[key].dtype
        np.testing.assert_array_equal(one[key], other[key])


# Real data


@pytest.mark.parametrize(
    ("name", "shape", "mean"), [("cifar10", (32, 32, 3), 121.5), ("mnist", (28, 28, 1), 33.8)]
)
def test_real_sets_streamed_equal_in_memory(shared_tfds, name, shape, mean):
    held, streamed = load_both(name, data_dir=shared_tfds)
    names = {"cifar10": CIFAR10, "mnist": ()}[name]  # the digits' names say no more than numbers
    assert held.spec == streamed.spec == specs.images(shape, 10, {"test": 10_000}, names=names)
    assert held.identity == streamed.identity
    assert_same_source(held.sources["test"], streamed.sources["test"])
    everything = held.sources["test"].fetch(np.arange(10_000))
    assert abs(everything["x"].mean() - mean) < 0.1
    assert set(np.bincount(everything["label"])) <= set(range(892, 1136))


def test_cycle_gan_maps(shared_tfds):
    held, streamed = load_both("cycle_gan/maps", ("testA", "testB"), data_dir=shared_tfds)
    assert held.spec == specs.images(
        (128, 128, 3), 2, {"testA": 200, "testB": 200}, names=("A", "B")
    )
    for split in ("testA", "testB"):
        assert_same_source(held.sources[split], streamed.sources[split])
    (small,) = load_both("cycle_gan/maps", ("testA",), data_dir=shared_tfds, image_size=32)[:1]
    assert small.spec.shape == (32, 32, 3)
    # A resized image is the mean of its parts: the picture is the same one.
    full = held.sources["testA"].x[:8].reshape(8, 32, 4, 32, 4, 3).mean((2, 4))
    assert np.abs(full - small.sources["testA"].x[:8]).mean() < 6


def test_celeba_zip(celeba_zip):
    options = {"path": celeba_zip, "image_size": 32, "crop": 80}
    held, streamed = load_both("folder", **options)
    assert held.spec == specs.images((32, 32, 3), 0, {"test": 241})
    assert_same_source(held.sources["test"], streamed.sources["test"], INDICES)
    whole = datasets.load("folder", in_memory=False, **options)
    assert whole.spec.sizes == {"train": 4759, "test": 241}


def test_stacked_mnist(shared_tfds):
    held, streamed = (
        datasets.load("stacked_mnist", data_dir=shared_tfds, splits=("test",), in_memory=in_memory)
        for in_memory in (True, False)
    )
    assert held.spec == streamed.spec == specs.images((28, 28, 3), 1000, {"test": 26_000})
    one, other = (d.sources["test"].fetch(INDICES) for d in (held, streamed))
    assert (one["x"].dtype, one["label"].dtype) == (np.uint8, np.int32)
    for key in one:
        np.testing.assert_array_equal(one[key], other[key])
    source = held.sources["test"]
    assert source.source.x.shape == (10_000, 28, 28, 1)  # and nothing larger is held
    batch, parts = source.fetch(np.arange(2000)), source.parts[:2000]
    digit = source.source.labels[parts]
    np.testing.assert_array_equal(batch["label"], digit @ [100, 10, 1])
    for channel in range(3):
        want = source.source.x[parts[:, channel], :, :, 0]
        np.testing.assert_array_equal(batch["x"][..., channel], want)
    every = source.fetch(np.arange(26_000))["label"]
    assert len(np.unique(every)) == 1000
    few = datasets.load(
        "stacked_mnist", data_dir=shared_tfds, splits=("test[5:10]",), in_memory=False
    )
    assert few.spec.sizes == {"test[5:10]": 5}
    np.testing.assert_array_equal(
        few.sources["test[5:10]"].fetch(np.arange(5))["x"], batch["x"][5:10]
    )


def test_both_splits_of_stacked_mnist_are_of_their_own(shared_tfds):
    options = {"data_dir": shared_tfds, "image_size": 14, "in_memory": False}  # decodes no more
    dataset = datasets.load("stacked_mnist", **options)
    assert dataset.spec == specs.images((14, 14, 3), 1000, {"train": 128_000, "test": 26_000})
    assert len(dataset.sources["train"].source) == 60_000
    assert dataset.sources["train"].parts.max() > 59_900
    assert dataset.sources["test"].fetch(INDICES)["x"].shape == (5, 14, 14, 3)


def test_digits(tmp_path):
    held, streamed = load_both("digits", ("train", "test"), data_dir=str(tmp_path))
    assert held.spec == specs.images((8, 8, 1), 10, {"train": 1501, "test": 296})
    assert (tmp_path / "digits").is_dir()
    for split in ("train", "test"):
        assert_same_source(held.sources[split], streamed.sources[split])
        source = held.sources[split]
        assert source.x.min() == 0
        assert source.x.max() == 255
        want = sorted((x.tobytes(), y) for x, y in zip(*digits.arrays(split), strict=True))
        pairs = zip(source.x, source.labels, strict=True)
        assert sorted((x.tobytes(), y) for x, y in pairs) == want
        assert np.bincount(source.labels).min() > 0.95 * len(source) / 10


def test_digits_need_no_writable_folder(tmp_path, capsys):
    (tmp_path / "file").touch()
    dataset = datasets.load("digits", data_dir=str(tmp_path / "file" / "below"))
    assert dataset.spec.sizes == {"train": 1501, "test": 296}
    assert "taken from scikit-learn instead" in capsys.readouterr().out


def test_a_set_in_another_format_is_refused(tmp_path):
    datasets.load("digits", data_dir=str(tmp_path))
    info = tmp_path / "digits" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(DataError, match="another format than ArrayRecord: set another data"):
        datasets.load("digits", data_dir=str(tmp_path))


def test_small_sets_are_held_and_large_ones_streamed(tmp_path, monkeypatch):
    load = lambda: datasets.load("digits", data_dir=str(tmp_path)).sources["test"]  # noqa: E731
    assert isinstance(load(), ArraySource)
    monkeypatch.setattr(datasets, "MEMORY_LIMIT", 1797 * 64)
    assert isinstance(load(), StreamedSource)


# A folder of one's own


def picture(path, mode="RGB", size=(12, 10), color=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    color = color if color is not None else 77 if mode == "L" else (10, 20, 30)
    Image.new(mode, size, color).save(path)


@pytest.fixture
def folder(tmp_path):
    """Forty-one images of one colour each, named so that their order is not that of creation."""
    for i in reversed(range(41)):
        picture(tmp_path / "all" / f"{i:02d}.png", color=(i, 0, 0))
    return tmp_path / "all"


def red(source):
    return source.fetch(np.arange(len(source)))["x"][:, 0, 0, 0].tolist()


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_folder_is_read_in_order_and_split(folder, in_memory):
    dataset = datasets.load("folder", path=str(folder), image_size=8, in_memory=in_memory)
    assert dataset.spec == specs.images((8, 8, 3), 0, {"train": 39, "test": 2})
    assert red(dataset.sources["test"]) == [25, 40]
    assert red(dataset.sources["train"]) == [i for i in range(41) if i not in (25, 40)]


def test_a_zip_holds_what_its_folder_holds(folder, tmp_path):
    path = tmp_path / "all.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"top/{file.name}")
        archive.writestr("__MACOSX/top/._00.png", b"no image")
    (folder / ".hidden.png").touch()
    (folder / "notes.txt").touch()
    one, other = (
        datasets.load("folder", path=str(p), image_size=8).sources for p in (folder, path)
    )
    np.testing.assert_array_equal(one["train"].x, other["train"].x)


def test_subfolders_are_classes(tmp_path):
    for name in ("cat", "ant", "bee"):
        for i in range(2):
            picture(tmp_path / name / f"{i}.png")
    dataset = datasets.load("folder", path=str(tmp_path), image_size=8)
    assert (dataset.spec.classes, dataset.spec.class_names) == (3, ("ant", "bee", "cat"))
    assert dataset.sources["train"].labels.tolist() == [0, 0, 1, 1, 2, 2]
    (tmp_path / "ant" / "1.png").write_bytes(b"broken")
    own = {"path": str(tmp_path), "image_size": 8, "on_corrupt": "skip"}
    held, streamed = load_both("folder", ["train"], **own)
    for dataset in (held, streamed):
        assert dataset.sources["train"].fetch(np.arange(5))["label"].tolist() == [0, 1, 1, 2, 2]


def test_every_kind_of_image_becomes_rgb(tmp_path):
    picture(tmp_path / "a_grey.png", "L")
    picture(tmp_path / "b_clear.png", "RGBA", color=(10, 20, 30, 0))
    picture(tmp_path / "c_half.webp", "RGBA", color=(0, 0, 0, 255))
    Image.new("RGB", (12, 10), (3, 2, 1)).quantize().save(tmp_path / "d_palette.png")
    Image.fromarray(np.full((10, 12), 200 << 8, np.uint16)).save(tmp_path / "e_deep.png")
    turned = Image.new("RGB", (12, 10))
    turned.paste((255, 0, 0), (0, 0, 6, 10))  # its left half is red ...
    exif = turned.getexif()
    exif[0x0112] = 6  # ... and a viewer turns it clockwise: the upper half
    turned.save(tmp_path / "f_turned.png", exif=exif)
    source = datasets.load("folder", path=str(tmp_path), image_size=10).sources["train"]
    assert source.x[:5, 5, 5].tolist() == [
        [77, 77, 77],
        [255, 255, 255],
        [0, 0, 0],
        [3, 2, 1],
        [200, 200, 200],
    ]
    assert source.x[5, 0, [0, -1], 0].tolist() == [255, 255]
    assert source.x[5, -1, [0, -1], 0].tolist() == [0, 0]


@pytest.mark.parametrize("in_memory", [True, False])
def test_corrupt_images_are_named_or_left_out(folder, in_memory, capsys):
    (folder / "07.png").write_bytes((folder / "07.png").read_bytes()[:40])
    (folder / "25.png").write_bytes(b"")
    options = {"path": str(folder), "image_size": 8, "in_memory": in_memory}
    with pytest.raises(DataError, match=r"corrupt image 07\.png .*on_corrupt=skip"):
        red(datasets.load("folder", splits=["train"], **options).sources["train"])
    dataset = datasets.load("folder", on_corrupt="skip", **options)
    said = capsys.readouterr().out
    assert "folder train: left out 1 corrupt of 39: 07.png" in said
    assert "folder test: left out 1 corrupt of 2: 25.png" in said
    assert dataset.spec.sizes == {"train": 38, "test": 1}
    assert red(dataset.sources["test"]) == [40]
    assert red(dataset.sources["train"]) == [i for i in range(41) if i not in (7, 25, 40)]


# Slices


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_slice_is_a_part_of_its_split(folder, in_memory, tmp_path):
    own = {"path": str(folder), "image_size": 8, "in_memory": in_memory}
    slices = {"train[:10]": slice(10), "train[-9:]": slice(-9, None), "train[10%:20%]": slice(4, 8)}
    dataset = datasets.load("folder", splits=(*slices, "test", "train"), **own)
    assert dataset.spec.sizes == {
        "train[:10]": 10, "train[-9:]": 9, "train[10%:20%]": 4, "test": 2, "train": 39
    }  # fmt: skip
    for split, part in slices.items():
        assert red(dataset.sources[split]) == red(dataset.sources["train"])[part]
    digits_of = {"data_dir": str(tmp_path / "tfds"), "in_memory": in_memory}
    few, whole = (
        datasets.load("digits", splits=(split,), **digits_of).sources[split]
        for split in ("test[200:]", "test")
    )
    assert len(few) == 96
    np.testing.assert_array_equal(
        few.fetch(np.arange(7))["x"], whole.fetch(np.arange(200, 207))["x"]
    )


def test_only_the_images_of_a_slice_are_decoded(folder):
    (folder / "30.png").write_bytes(b"broken")
    own = {"path": str(folder), "image_size": 8, "in_memory": True}
    assert len(datasets.load("folder", splits=("train[:10]",), **own).sources["train[:10]"]) == 10
    (folder / "03.png").write_bytes(b"broken")
    skipped = datasets.load("folder", splits=("train[:10]",), on_corrupt="skip", **own)
    assert red(skipped.sources["train[:10]"]) == [0, 1, 2, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("train[:40]", "'train[:40]' cannot be taken: 'train' of 'folder' has 39 examples"),
        ("train[:0]", "'train[:0]' cannot be taken"),
        ("train[39:]", "'train[39:]' cannot be taken: 'train' of 'folder' has 39 examples"),
        ("train[-40:]", "'train[-40:]' cannot be taken"),
        ("train[9:9]", "'train[9:9]' cannot be taken"),
        ("train[0%:1%]", "'train[0%:1%]' cannot be taken"),
        ("train[:105%]", "'train[:105%]' cannot be taken"),
        ("train[5]", "is no slice of a split: write such as train[:100], train[-100:] or train[1"),
        ("train[:]", "is no slice"),
        ("train[10%:20]", "is no slice"),
        ("train[:5", "'train[:5' is no slice"),
        ("train[:5]x", "is no slice"),
        ("tain[:5]", "has no split 'tain': it has train, test"),
    ],
)
def test_slices_that_cannot_be_are_refused(folder, split, message):
    with pytest.raises(DataError, match=re.escape(message)):
        datasets.load("folder", path=str(folder), image_size=8, splits=(split,))


# Errors


def test_errors_say_what_to_do(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.zip").write_bytes(b"PK no zip")
    picture(tmp_path / "two" / "a.png", size=(12, 10))
    all_broken = tmp_path / "bad" / "a.png"
    picture(all_broken)
    all_broken.write_bytes(b"not a picture")

    def message(name, **options):
        with pytest.raises(DataError) as error:
            datasets.load(name, **options)
        assert "\n" not in str(error.value)
        return str(error.value)

    own = {"path": str(folder), "image_size": 8}
    assert "did you mean cifar10 or cifar100" in message("cifar1")
    assert "did you mean digits" in message("digit")
    assert "did you mean maps" in message("cycle_gan/mops")
    assert "unknown data set 'qqqqqqq'" in message("qqqqqqq")
    assert "did you mean stacked_mnist" in message("stack_mnist")
    assert "no folder or .zip of images at" in message("folder", path="absent", image_size=8)
    assert "needs data.path" in message("folder", image_size=8)
    assert "needs data.image_size" in message("folder", path=str(folder))
    assert "no images in" in message("folder", path=str(tmp_path / "empty"), image_size=8)
    broken = message("folder", path=str(tmp_path / "broken.zip"), image_size=8)
    assert "neither a folder nor a readable .zip" in broken
    assert "data.crop=11 is larger than its 12x10 pixels" in message("folder", crop=11, **own)
    assert "has no split 'tset': it has train, test" in message("folder", splits=["tset"], **own)
    assert "neither 'raise' nor 'skip'" in message("folder", on_corrupt="ignore", **own)
    bad = {"path": str(all_broken.parent), "image_size": 8, "on_corrupt": "skip"}
    assert "not one image could be decoded" in message("folder", **bad)


def test_sizes_that_differ_need_an_image_size(tmp_path):
    """Sizes are looked at only where no image_size is given: through a TFDS set of two sizes."""

    class Mixed(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        SIDES = (8, 9)

        def _info(self):
            features = tfds.features.FeaturesDict({"image": tfds.features.Image()})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for side in self.SIDES:
                yield side, {"image": Image.new("RGB", (side, 8))}

    Mixed(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    with pytest.raises(DataError, match=r"several sizes .*8x8.*: set data\.image_size"):
        datasets.load("mixed", data_dir=str(tmp_path))
    dataset = datasets.load("mixed", data_dir=str(tmp_path), image_size=6)
    assert dataset.spec == specs.images((6, 6, 3), 0, {"train": 2})


# TensorFlow


def test_tensorflow_is_never_imported(shared_tfds):
    script = f"""
import sys
import numpy as np
from aigc_jax import modalities
from aigc_jax.data import datasets, loader
dataset = datasets.load("cifar10", data_dir={shared_tfds!r}, in_memory=False)
next(loader.batches(dataset.sources["train"], batch_size=4, seed=0))
assert not [name for name in sys.modules if name.split(".")[0] == "tensorflow"]
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=60)


def test_no_file_imports_jax_or_flax():
    for path in (ROOT / "aigc_jax" / "data").glob("*.py"):
        tree = ast.walk(ast.parse(path.read_text()))
        names = [n.module for n in tree if isinstance(n, ast.ImportFrom)]
        tree = ast.walk(ast.parse(path.read_text()))
        names += [alias.name for n in tree if isinstance(n, ast.Import) for alias in n.names]
        tops = {name.split(".")[0] for name in names}
        assert not tops & {"jax", "flax", "tensorflow", "absl"}
