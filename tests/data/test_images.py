"""What lies in a folder or zip: formats, links, what cannot be read; pixels as they are wanted."""

import io
import os
import pathlib
import unicodedata
import zipfile

import numpy as np
import pytest
from picture_folders import counts, fill, sizes, tree, zipped
from PIL import Image

from aigc_jax.data import datasets, folders, images
from aigc_jax.data.images import DataError


def test_every_format_of_pillow_is_read(tmp_path):
    ends = (".PNG", ".jpg", ".JPEG", ".tif", ".gif", ".bmp", ".webp", ".ppm", ".tga", ".jp2")
    for end in ends:
        fill(tmp_path, suffix=end)
    for name in ("a.pdf", "b.txt", "c.txt", "d", "e.mp4", "f.h5", "g.eps"):
        (tmp_path / name).touch()
    for name in (".hidden.png", "__MACOSX/x.png", "@eaDir/y.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    dataset = datasets.load("folder", path=str(tmp_path), image_size=4, in_memory=True)
    assert dataset.spec.sizes == {"train": len(ends)}
    passed = dataset.about.partition("passed over: ")[2].split(", ")
    assert passed[0] == "2 .txt"
    rest = ["1 .eps", "1 .h5", "1 .mp4", "1 .pdf", "1 without a suffix"]
    assert sorted(passed[1:]) == rest


def test_links_are_followed_without_end_or_doubles(tmp_path):
    tree(tmp_path / "far", x=2)
    root = tree(tmp_path / "data", cat=2, dog=1)
    (root / "above").symlink_to(tmp_path / "data")
    (root / "cat" / "loop").symlink_to(root / "cat")
    (root / "alias").symlink_to(root / "dog")
    (root / "bird").symlink_to(tmp_path / "far" / "x")
    (root / "cat" / "one.png").symlink_to(root / "cat" / "000.png")
    (root / "cat" / "gone.png").symlink_to(root / "nowhere.png")
    found = folders.open_folder(str(root))
    assert counts(found) == {"bird": 2, "cat": 3, "dog": 1}
    for word in (
        "above/ (a link to what is listed",
        "alias/ (a",
        "cat/loop/ (a",
        "cat/gone.png (No ",
    ):
        assert word in found.about


def test_what_cannot_be_listed_and_what_is_empty_is_said(tmp_path, monkeypatch):
    tree(tmp_path, a=1, b=1, c=1)
    (tmp_path / "d").mkdir()
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = folders.open_folder(str(tmp_path))
    assert counts(found) == {"a": 1, "c": 1}
    assert "passed over: empty folders d, b/ (Permission denied)" in found.about


def test_an_empty_folder_of_a_split_is_none(tmp_path):
    tree(tmp_path / "data", train=3)
    (tmp_path / "data" / "test").mkdir()
    for path in (tmp_path / "data", zipped(tmp_path / "data", tmp_path / "z")):
        found = folders.open_folder(str(path))
        assert sizes(found) == {"train": 3}
        assert "empty folders test" in found.about


def test_zips_of_other_systems(tmp_path):
    picture = tmp_path / "000.png"
    fill(tmp_path)
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for name in ("set\\cat\\1.png", "./set/cat/2.png", "set/café/1.png"):
            archive.writestr(name, picture.read_bytes())
        archive.writestr(f"set/{unicodedata.normalize('NFD', 'café')}/2.png", picture.read_bytes())
    found = folders.open_folder(str(tmp_path / "z.zip"))
    assert counts(found) == {"café": 2, "cat": 2}
    assert all(found.files.read(name) for name in found.names)


def damage(path, change):
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


def flag(data, value, places=((b"PK\1\2", 8), (b"PK\3\4", 6))):
    """Sets a field of every member in both of a zip's headers."""
    for mark, offset in places:
        at = data.find(mark)
        while at >= 0:
            data[at + offset] = value
            at = data.find(mark, at + 4)


@pytest.mark.parametrize("kind", ["bytes", "method", "encrypted"])
def test_a_broken_member_of_a_zip_is_a_corrupt_image(tmp_path, kind):
    fill(tmp_path / "data", 2)
    path = pathlib.Path(zipped(tmp_path / "data", tmp_path / "z"))
    if kind == "bytes":
        start = path.read_bytes().find(b"000.png") + 7
        damage(path, lambda data: data.__setitem__(slice(start, start + 20), b"\xff" * 20))
    elif kind == "method":
        damage(path, lambda data: flag(data, 97, ((b"PK\1\2", 10), (b"PK\3\4", 8))))
    else:
        damage(path, lambda data: data.__setitem__(data.find(b"PK\1\2") + 8, 1))
        damage(path, lambda data: data.__setitem__(data.find(b"PK\3\4") + 6, 1))
    with pytest.raises(DataError, match=r"corrupt image 000\.png"):
        datasets.load("folder", path=str(path), image_size=4)
    if kind != "method":  # which is of both
        kept = datasets.load("folder", path=str(path), image_size=4, on_corrupt="skip")
        assert kept.spec.sizes == {"train": 1}


def test_an_encrypted_zip_is_refused_in_one_line(tmp_path):
    fill(tmp_path / "data", 2)
    path = pathlib.Path(zipped(tmp_path / "data", tmp_path / "z"))
    damage(path, lambda data: flag(data, 1))
    with pytest.raises(DataError, match="is encrypted: unpack it"):
        folders.open_folder(str(path))


def test_no_image_says_what_is_there(tmp_path):
    (tmp_path / "a.heic").touch()
    with pytest.raises(DataError, match=r"no images in .*, only 1 \.heic: an image is"):
        folders.open_folder(str(tmp_path))


def test_crop_and_resize_keep_the_middle():
    ramp = np.tile(np.arange(40, dtype=np.uint8)[None, :, None], (20, 1, 3))
    data = io.BytesIO()
    Image.fromarray(ramp).save(data, format="png")
    decode = lambda **k: images.to_array(data.getvalue(), 3, upright=False, **k)[0, :, 0]  # noqa: E731
    np.testing.assert_array_equal(decode(image_size=0, crop=0), np.arange(40))
    np.testing.assert_array_equal(decode(image_size=0, crop=6), np.arange(17, 23))
    np.testing.assert_array_equal(decode(image_size=20, crop=0), np.arange(10, 30))
    halved = decode(image_size=10, crop=20).astype(float)
    np.testing.assert_allclose(halved[1:-1], np.arange(10.5, 30, 2)[1:-1], atol=1)
