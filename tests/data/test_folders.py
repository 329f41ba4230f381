"""People's own images as they keep them: what each layout is taken for, and what is said of it."""

import numpy as np
import pytest
from picture_folders import counts, fill, sizes, tree, zipped
from PIL import Image

from aigc_jax.data import datasets, folders
from aigc_jax.data.images import DataError

# {path: images} -> splits, classes, and words of the line


LAYOUTS = {
    "train and test": ({"train": 4, "test": 2}, {"train": 4, "test": 2}, {}, "(folders)"),
    "of classes": (
        {"train__cat": 3, "train__dog": 2, "test__cat": 1, "test__dog": 1},
        {"train": 5, "test": 2},
        {"cat": 4, "dog": 3},
        "2 classes from folders: cat 4, dog 3",
    ),
    "by other names": (
        {"Training__cat": 3, "Training__dog": 2, "Testing__cat": 1, "DEV__dog": 1},
        {"train": 5, "test": 1, "validation": 1},
        {"cat": 4, "dog": 3},
        "(folders); DEV/ is validation; Testing/ is test; Training/ is train",
    ),
    "of sets": (
        {"train_set": 3, "test_set": 2, "val-set": 1},
        {"train": 3, "test": 2, "val": 1},
        {},
        "splits train 3, test 2, val 1 (folders); test_set/ is test; train_set/ is train",
    ),
    "training alone": ({"training": 3}, {"train": 3}, {}, "no split test (under 20 images"),
    "classes that are called set and training": (
        {"set": 2, "training": 2, "trains": 2},
        {"train": 6},
        {"set": 2, "training": 2, "trains": 2},
        "",
    ),
    "in any case, with a wrapper in each": (
        {"Data__TRAIN__images": 2, "Data__Valid__images": 1, "Data__Test__images": 1},
        {"train": 2, "test": 1, "valid": 1},
        {},
        "no classes, splits train 2, test 1, valid 1",
    ),
    "val is the only other one": (
        {"train__a": 2, "train__b": 2, "val__a": 1, "val__b": 1},
        {"train": 4, "val": 2, "test": 2},
        {"a": 3, "b": 3},
        "val is test too",
    ),
    "a class in one split only": (
        {"train__a": 2, "train__b": 1, "test__a": 1, "test__c": 1},
        {"train": 3, "test": 2},
        {"a": 3, "b": 1, "c": 1},
        "(none to train on of c)",
    ),
    "test images without a class": (
        {"train__a": 2, "train__b": 2, "test": 3},
        {"train": 4},
        {"a": 2, "b": 2},
        "passed over: 3 images without a label",
    ),
    "beside the splits": (
        {"train": 2, "test": 2, "old": 1, ".": 2},
        {"train": 2, "test": 2},
        {},
        "passed over: 3 images beside the folders of splits",
    ),
    "beside the splits of classes": (
        {"train__a": 2, "train__b": 1, "test__b": 1, "old__c": 3},
        {"train": 3, "test": 1},
        {"a": 2, "b": 2},
        "2 classes from folders: a 2, b 2, splits train 3, test 1 (folders); passed over: 3 images",
    ),
    "domains": (
        {"horses__TrainA__x": 2, "horses__trainB__y": 1, "horses__testA": 1, "horses__testB": 1},
        {"trainA": 2, "trainB": 1, "testA": 1, "testB": 1},
        {},
        "no classes, splits trainA 2, trainB 1, testA 1, testB 1 (folders)",
    ),
    "enough without the test images": (
        {"train__a": 20, "train__b": 20, "test": 3},
        {"train": 38, "test": 2},
        {"a": 20, "b": 20},
        "(by name); passed over: 3 images without a label",
    ),
    "a class that is called train": (
        {"bus": 2, "train": 2},
        {"train": 4},
        {"bus": 2, "train": 2},
        "bus 2, train 2",
    ),
    "train alone": (
        {"train": 3},
        {"train": 3},
        {},
        "no split test (under 20 images",
    ),
    "train alone, of classes": ({"train__a": 1, "train__b": 1}, {"train": 2}, {"a": 1, "b": 1}, ""),
    "numbers": ({"10": 1, "9": 1, "1": 1}, {"train": 3}, {"1": 1, "9": 1, "10": 1}, ""),
    "wrappers": ({"x__y__a": 2, "x__y__b": 1}, {"train": 3}, {"a": 2, "b": 1}, ""),
    "one class": ({"x__a": 3}, {"train": 3}, {}, "no classes"),
    "loose images": (
        {".": 1, "a": 2, "b": 2},
        {"train": 4},
        {"a": 2, "b": 2},
        "passed over: 1 image without a label",
    ),
    "most images are loose": (
        {".": 9, "a": 2, "b": 2},
        {"train": 13},
        {},
        "3 folders of images are not taken for classes",
    ),
    "two depths": (
        {"a": 1, "a__new": 2, "b__2020": 1, "b__2021": 1},
        {"train": 5},
        {"a": 3, "b": 2},
        "deeper folders count to the class that they lie in",
    ),
    "one folder beside a loose image": (
        {".": 1, "pets__a": 2, "pets__b": 2},
        {"train": 5},
        {},
        "3 folders of images are not taken for classes",
    ),
}


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(tmp_path, name, packed):
    layout, splits, classes, words = LAYOUTS[name]
    root = tree(tmp_path / "data", **layout)
    path = zipped(root, tmp_path / "z") if packed else root
    found = folders.open_folder(str(path))
    assert (sizes(found), counts(found)) == (splits, classes)
    assert words in found.about
    assert found.about.startswith(f"folder {path}: {len(found.names)} image")
    assert "\n" not in found.about
    read = [
        r
        for s, chosen in found.splits.items()
        for r in folders.reader(found, chosen)(range(len(chosen)))
    ]
    assert all(record.data for record in read)
    assert ({r.label for r in read} == {None}) == (not classes)


def test_what_is_guessed_can_be_overruled(tmp_path):
    root = str(tree(tmp_path, train__a=2, train__b=2, test__a=1, test__b=1))
    both = folders.open_folder(root, labels_from="none")
    assert (sizes(both), counts(both)) == ({"train": 4, "test": 2}, {})
    split_names = folders.open_folder(root, splits_from="names")
    assert (sizes(split_names), counts(split_names)) == ({"train": 6}, {"test": 2, "train": 4})
    alone = str(tree(tmp_path / "alone", test__x=1, test__y=1))
    assert sizes(folders.open_folder(alone, splits_from="folders")) == {"test": 2}
    alone = str(tree(tmp_path / "single", testing__x=1, testing__y=1))
    assert sizes(folders.open_folder(alone, splits_from="folders")) == {"test": 2}
    loose = str(tree(tmp_path / "loose", **{".": 9, "a": 2, "b": 2}))
    for path, options, message in (
        (loose, {"labels_from": "folders"}, "data.labels_from='folders', but"),
        (loose, {"splits_from": "folders"}, "has no subfolder train, test, val"),
        (loose, {"labels_from": "tags.csv"}, "data.labels_from='tags.csv' is no file in"),
        (loose, {"splits_from": "name"}, "data.splits_from is one of folders, names, not 'name'"),
    ):
        with pytest.raises(ValueError, match=message):
            folders.open_folder(path, **options)
    with pytest.raises(DataError, match=r"are of data\.name='folder'"):
        datasets.load("mnist", labels_from="none")


def test_a_split_that_is_not_there_is_explained(tmp_path):
    """A small folder has no test images: the default splits say why, and what to do."""
    options = {"path": str(tree(tmp_path, few=15)), "image_size": 4}
    with pytest.raises(DataError) as error:
        datasets.load("folder", splits=("train", "test"), **options)
    told = str(error.value)
    assert told.startswith(f"'folder' has no split 'test': it has train; folder {tmp_path}: 15 ima")
    assert "(under 20 images none is held out: add images, or set --config.data.test_" in told
    assert len(datasets.load("folder", splits=("train",), **options).sources["train"]) == 15
    options["path"] = str(tree(tmp_path / "own", train=2, test=2))
    with pytest.raises(DataError, match=r"it has train, test; folder .*splits train 2, test 2 \(f"):
        datasets.load("folder", splits=("dev",), **options)


# Held out by name


def names_of(count, folder=""):
    return [f"{folder}{i:04d}.png" for i in range(count)]


def test_about_a_twentieth_is_held_out_and_others_may_come_and_go():
    names = names_of(4000)
    out = folders.held_out(names)
    assert 160 < out.sum() < 240
    kept = np.arange(4000) % 3 > 0
    np.testing.assert_array_equal(
        folders.held_out([n for n, k in zip(names, kept, strict=True) if k]), out[kept]
    )
    ids = [i % 7 for i in range(4000)]
    np.testing.assert_array_equal(folders.held_out(names, ids), out)


def test_few_images_are_held_out_sensibly():
    for seed in range(40):
        names = names_of(60, f"{seed}/")
        assert not folders.held_out(names[:19]).any()
        assert folders.held_out(names[:20]).sum() >= 1
        three = folders.held_out(names, [i // 20 for i in range(60)]).reshape(3, 20)
        assert (three.sum(1) >= 1).all()  # of every class of 20
        small = folders.held_out(names, [i // 2 for i in range(60)]).reshape(30, 2)
        assert small.sum() >= 1
        assert not small.all(1).any()  # and each keeps one to train on
    every = folders.held_out(names_of(60))
    for first in range(20, 60):  # the same, once a name is low enough
        np.testing.assert_array_equal(folders.held_out(names_of(first)), every[:first])


# Channels


def test_a_folder_is_grey_where_all_its_images_are(tmp_path, monkeypatch):
    fill(tmp_path, 3, mode="L")
    fill(tmp_path, 1, ".tif", mode="I;16")
    (tmp_path / "broken.png").write_bytes(b"")
    load = lambda **k: datasets.load(  # noqa: E731
        "folder", path=str(tmp_path), image_size=4, on_corrupt="skip", **k
    )
    grey = load()
    assert grey.spec.shape == (4, 4, 1)
    assert ": 5 images (grey, 4 .png, 1 .tif)" in grey.about
    assert load(channels=3).spec.shape == (4, 4, 3)
    monkeypatch.setattr(folders, "HEADERS", 2)
    assert "(grey by 2 of them, " in load().about
    monkeypatch.undo()
    fill(tmp_path, 1, ".jpg")
    colour = load()
    assert colour.spec.shape == (4, 4, 3)
    assert "(colour, " in colour.about
    assert load(channels=1).sources["train"].fetch(np.arange(2))["x"].shape == (2, 4, 4, 1)
    for name, channels, path in (
        ("folder", 2, tmp_path),
        ("ring", 1, ""),
        ("stacked_mnist", 3, ""),
    ):
        with pytest.raises(DataError, match=r"data\.channels"):
            datasets.load(name, path=str(path) or None, channels=channels)


def test_channels_of_tfds_can_be_set(tmp_path):
    dataset = datasets.load("digits", data_dir=str(tmp_path), channels=3)
    assert dataset.spec.shape == (8, 8, 3)


def test_pixels_of_unknown_range_are_refused(tmp_path):
    Image.new("F", (4, 4), 0.5).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif .*floating-point numbers: save them as 8 or 16"):
        datasets.load("folder", path=str(tmp_path), image_size=4)
