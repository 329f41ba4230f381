"""Labels in files beside a folder's images."""

import json

import pytest
from picture_folders import counts, fill, sizes, tree

from aigc_jax.data import folders, labels
from aigc_jax.data.images import DataError

STYLEGAN = {"labels": [["0/000.png", 3], ["0/001.png", 0], ["0/gone.png", 1]]}


@pytest.mark.parametrize(
    ("name", "text", "classes"),
    [
        ("dataset.json", json.dumps(STYLEGAN), {0: 1, 1: 0, 2: 0, 3: 1}),
        (
            "metadata.jsonl",
            '{"file_name": "0/000.png", "label": "b"}\n\n'
            '{"file_name": "./0/001.png", "label": "ä"}\n'
            '{"file_name": "0/gone.png", "label": "ä"}\n{"file_name": "0/002.png", "label": null}',
            {"b": 1, "ä": 1},
        ),
        (
            "labels.csv",
            "\ufefffilename,Label\n0/000.png, 1\n0\\001.png,0\ngone.png,0\n0/002.png,\n",
            {0: 1, 1: 1},
        ),
        (
            "metadata.csv",
            "label;file_name\nb10;0/000.png\nb9;0/001.png\nb9;x.png",
            {"b9": 1, "b10": 1},
        ),
        ("labels.csv", "id,label\n0/000,1.0\n0/001,0.0\ngone,2.0\n002,\n", {0: 1, 1: 1}),
        (
            "metadata.jsonl",
            '{"image_id": "0/000", "label": 1.0}\n{"image_id": "0/001", "label": 0.0}\n'
            '{"image_id": "gone", "label": 2.0}',
            {0: 1, 1: 1},
        ),
    ],
)
@pytest.mark.parametrize("wrapper", ["", "set/"])
def test_labels_of_files(tmp_path, name, text, classes, wrapper):
    fill(tmp_path / wrapper / "0", 2)
    fill(tmp_path / wrapper / "1", 3, start=2)  # these have no label
    (tmp_path / wrapper / name).write_text(text, encoding="utf-8")
    found = folders.open_folder(str(tmp_path))
    assert counts(found) == classes
    assert f"classes from {wrapper}{name}: " in found.about
    assert f"images named in {wrapper}{name} that are not there: 1" in found.about
    assert found.about.endswith("passed over: 3 images without a label")  # and not the file itself
    assert len(folders.open_folder(str(tmp_path), labels_from="none").names) == 5
    assert counts(folders.open_folder(str(tmp_path), labels_from="folders")) == {0: 2, 1: 3}


def test_label_files_of_the_top_and_of_each_split(tmp_path):
    tree(tmp_path, train=2, test=2)
    for split, names in (("train", "ab"), ("test", "bc")):
        rows = "".join(f"{i:03d}.png,{name}\n" for i, name in enumerate(names))
        (tmp_path / split / "metadata.csv").write_text("file_name,label\n" + rows)
    found = folders.open_folder(str(tmp_path))
    assert (sizes(found), counts(found)) == ({"train": 2, "test": 2}, {"a": 1, "b": 2, "c": 1})
    nested = tmp_path / "nested"
    fill(nested / "images", 2)
    (nested / "mine.csv").write_text("path,class\nimages/000.png,x\n001.png,y\n")
    (nested / "labels.csv").write_text("file_name,caption\n000.png,a cat\n")  # no labels in it
    assert counts(folders.open_folder(str(nested))) == {}
    assert counts(folders.open_folder(str(nested), labels_from="mine.csv")) == {"x": 1, "y": 1}


def test_a_file_that_says_there_are_no_labels_is_believed(tmp_path):
    tree(tmp_path, **{"00000": 3, "00001": 3})
    (tmp_path / "dataset.json").write_text('{"labels": null}')
    assert counts(folders.open_folder(str(tmp_path))) == {}
    (tmp_path / "dataset.json").write_text('{"labels": [["x.png", 0]]}')  # of some other images
    with pytest.raises(DataError, match=r"dataset\.json has labels of images that are not in .*"):
        folders.open_folder(str(tmp_path))
    found = folders.open_folder(str(tmp_path), labels_from="folders")
    assert counts(found) == {"00000": 3, "00001": 3}


def test_a_table_without_suffixes_labels_the_images_of_one_folder(tmp_path):
    """As Kaggle has them: labels of train/ alone, by the images' stems."""
    tree(tmp_path, train=4, test=0)
    fill(tmp_path / "test", 2, start=4)
    (tmp_path / "labels.csv").write_text("id,breed\n000,pug\n001,pug\n002,lab\n003,lab\n")
    found = folders.open_folder(str(tmp_path))
    assert (sizes(found), counts(found)) == ({"train": 4}, {"lab": 2, "pug": 2})
    fill(tmp_path / "train", 1, ".jpg")  # beside 000.png: which of them is meant?
    fill(tmp_path / "test", 1, start=1)
    found = folders.open_folder(str(tmp_path))
    assert (counts(found), len(found.names)) == ({"lab": 2}, 2)
    assert "images named in labels.csv that are not there: 2" in found.about


def test_labels_of_a_split_are_of_no_other(tmp_path):
    tree(tmp_path, train=2, test=3)
    (tmp_path / "train" / "labels.csv").write_text("image,label\n000.png,a\n002.png,b\n")
    assert counts(folders.open_folder(str(tmp_path))) == {"a": 1}
    (tmp_path / "train" / "labels.csv").write_text("image,label\ntrain/000.png,a\n001,b\n")
    assert counts(folders.open_folder(str(tmp_path))) == {"a": 1, "b": 1}


@pytest.mark.parametrize(
    ("table", "classes"),
    [
        ("id,kind\n000,x\n001,x\n002,y\n003,y", {"x": 2, "y": 2}),
        ("path,species\n000.png,x\n001.png,x\n002.png,y\n003.png,y", {"x": 2, "y": 2}),
        ("image_id,breed\n000,x\n001,y\n002,z\n003,v", {"v": 1, "x": 1, "y": 1, "z": 1}),
        ("id,name\n000,x\n001,x\n002,y\n003,y", {"x": 2, "y": 2}),
        ("file_name,text\n000.png,a cat\n001.png,a dog\n002.png,two cats\n003.png,a cat", {}),
        ("id,kind,size\n000,x,1\n001,x,1\n002,y,1\n003,y,1", {}),
    ],
)
def test_columns_of_tables(tmp_path, table, classes):
    fill(tmp_path, 4)
    (tmp_path / "labels.csv").write_text(table)
    assert counts(folders.open_folder(str(tmp_path))) == classes


@pytest.mark.parametrize(
    ("name", "text"),
    [("labels.csv", "image,label\nx.png,0"), ("metadata.jsonl", '{"file": "x", "label": 0}')],
)
def test_labels_of_no_image_are_refused(tmp_path, name, text):
    fill(tmp_path, 2)
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match="correct the names in it, or set data"):
        folders.open_folder(str(tmp_path))
    assert len(folders.open_folder(str(tmp_path), labels_from="none").names) == 2


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("dataset.json", "{", "dataset.json cannot be read as labels"),
        ("dataset.json", '{"labels": [["000.png"]]}', "dataset.json cannot be read as labels"),
        ("dataset.json", '{"labels": [["000.png", 0.5]]}', "or a whole number from 0 on, not 0.5"),
        ("dataset.json", '{"labels": [["000.png", -1]]}', "or a whole number from 0 on, not -1"),
        ("metadata.jsonl", "1", "metadata.jsonl cannot be read as labels"),
    ],
)
def test_damaged_label_files_are_refused(tmp_path, name, text, message):
    fill(tmp_path, 2)
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message) as error:
        folders.open_folder(str(tmp_path))
    assert "data.labels_from" in str(error.value)
    assert folders.open_folder(str(tmp_path), labels_from="none").names


def test_numbers_that_are_no_count_are_names(tmp_path):
    fill(tmp_path, 3)
    (tmp_path / "labels.csv").write_text(
        "image,label\n000.png,20231102\n001.png,20231101.0\n002.png,20231102\n"
    )
    found = folders.open_folder(str(tmp_path))
    assert counts(found) == {"20231101": 1, "20231102": 2}
    assert "numbers up to 20231102 are taken for names of 2 classes" in found.about
    number = lambda *values: labels.number(labels.Labels(values, "x", ("x",)))  # noqa: E731
    assert number(0, 999) == labels.Classes((0, 999), 1000)
    assert number(0, 1000).names == ("0", "1000")
    assert number(*range(0, 2000, 10)).count == 1991  # of 200 classes: a tenth has images


def test_names_are_in_their_natural_order():
    order = ["2", "10", "a2", "A10", "b"]
    found = labels.number(labels.Labels([*reversed(order), None], "folders"))
    assert found == labels.Classes((4, 3, 2, 1, 0, None), 5, tuple(order))
    numbers = labels.number(labels.Labels(["1", "0"], "folders"))
    assert numbers == labels.Classes((1, 0), 2, ())
