"""What data a run was trained on: what of a change is noticed, and how it is said."""

import json
import shutil

from picture_folders import fill, tree, zipped
from PIL import Image

from aigc_jax.data import datasets, folders, identity


def load(path, **options):
    return datasets.load("folder", path=str(path), image_size=4, in_memory=False, **options)


def test_the_identity_of_a_folder_says_what_changed(tmp_path):
    root = tree(tmp_path / "data", a=12, b=12)
    old = json.loads(json.dumps(load(root).identity))  # as a run keeps it
    changes = lambda **k: identity.differences(old, load(root, **k).identity)  # noqa: E731
    assert changes() == []
    assert identity.differences(old, load(zipped(root, tmp_path / "z")).identity) == []
    assert changes(splits=["train"]) == []
    assert changes(labels_from="none")[0] == "0 classes here, 2 in the run; gone: a, b"
    fill(root / "c", 1)
    assert changes() == [
        "3 classes here, 2 in the run; new: c",
        f"train: {old['splits']['train']['size'] + 1} examples here, "
        f"{old['splits']['train']['size']} in the run",
    ]
    shutil.rmtree(root / "c")
    (root / "b").rename(root / "z")
    said = changes()
    assert said[0] == "2 classes here and in the run, but not the same; new: z; gone: b"
    (root / "z").rename(root / "b")
    held = folders.open_folder(str(root))
    trained = held.names[held.splits["train"][0]]
    with (root / trained).open("ab") as file:
        file.write(b"more")
    other = ["train: as many as in the run, but other names, sizes or labels"]
    assert changes() == other
    old = load(root, splits=["train"]).identity
    text = "".join(f'{{"file_name": "{n}", "label": "{"ab"[n > "b"]}"}}\n' for n in held.names)
    (root / "metadata.jsonl").write_text(text)
    assert changes() == []  # the same classes from a file
    (root / "metadata.jsonl").write_text(text.replace('"a"}', '"b"}', 1))
    assert changes() == other


def test_checksums_tell_images_of_one_size_apart(tmp_path):
    known = []
    for color in (1, 2):
        fill(tmp_path / "data")
        Image.new("L", (4, 4), color).save(tmp_path / "data" / "x.bmp")
        known.append(load(zipped(tmp_path / "data", tmp_path / f"{color}")).identity)
    assert identity.differences(known[0], known[0]) == []
    assert identity.differences(*known) == [
        "train: the names and sizes of the run, but other contents"
    ]


def test_the_identity_of_other_data(tmp_path, monkeypatch):
    ring = datasets.load("ring").identity
    assert identity.differences(ring, datasets.load("ring").identity) == []
    assert identity.differences(ring, datasets.load("grid").identity) == [
        "data set grid here, ring in the run"
    ]
    own = {"data_dir": str(tmp_path), "splits": ["train[:50%]"]}
    digits = datasets.load("digits", **own)
    (tmp_path / "file").touch()
    embedded = datasets.load("digits", data_dir=str(tmp_path / "file" / "x"), splits=own["splits"])
    assert digits.identity == embedded.identity
    assert list(digits.identity["splits"]) == ["train[:50%]"]
