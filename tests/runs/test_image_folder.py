"""Every image of a folder gets an output of its own and of its size, and nothing else changes."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from aigc_jax.data import images
from aigc_jax.family import DataSpec, Family, Field, Variables
from aigc_jax.runs import apply, image_folder
from aigc_jax.runs.image_folder import Frame, each_image, framed, of_any_size, of_one_size, unframed
from aigc_jax.runs.model import Model


def toy(shape=(4, 4, 3), translate=None, stride=0):
    family = Family(None, (), None, (), translate=translate, stride=stride)
    spec = DataSpec({"x": Field("image", shape)}, {}, {})
    return Model({}, spec, family, Variables({}, {}), 0)


def save(path, size=(4, 4), value=9, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value,) * 3).save(path, **options)


def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


def inverted(model, folder, output, **options):
    return each_image(model, folder, output, lambda n: lambda x: 255 - x, "inverting", **options)


@pytest.mark.parametrize(
    "names",
    [
        ["a.png", "b.jpg", "deep/a.webp"],
        ["a.jpg", "a.png", "a.webp"],
        ["compared.jpg", "compared.png"],
        ["a.jpg", "a.webp", "a.jpg.png", "a.jpg.bmp"],
        ["a.JPG", "a.PNG", "a.jpg"],
        ["a.jpg", "a.png/b.jpg"],
        ["a.b.jpg", "a.c.jpg"],
    ],
    ids=str,
)
def test_no_two_images_become_one(names):
    found = image_folder.output_names(names)
    assert found.keys() == set(names)
    targets = set(found.values())
    assert len(targets) == len(names)
    assert not targets & {"a.png"} or "a.png/b.jpg" not in names  # which is a folder then
    for name, target in found.items():
        assert target.startswith(name.rpartition(".")[0])
        assert target.endswith(".png")
        assert not name.endswith(".png") or target == name
    assert found == image_folder.output_names(names[::-1])


def test_every_input_has_an_output_and_keeps_its_size(tmp_path):
    for name in ("000.png", "000.jpg", "compared.png", "deep/compared.jpg", "-compared.png"):
        save(tmp_path / "in" / name)
    save(tmp_path / "in" / "wide.png", (96, 48))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    save(tmp_path / "in" / "turned.jpg", (6, 2), exif=exif)
    before = content(tmp_path / "in")
    path = inverted(toy(), tmp_path / "in", tmp_path / "out")
    assert content(tmp_path / "in") == before
    assert path == tmp_path / "out-compared.png"
    sizes = {p.relative_to(tmp_path / "out").as_posix(): Image.open(p).size
             for p in (tmp_path / "out").rglob("*.*")}  # fmt: skip
    assert sizes == {
        **dict.fromkeys(("000.png", "000.jpg.png", "compared.png", "deep/compared.png"), (4, 4)),
        "-compared.png": (4, 4), "wide.png": (96, 48), "turned.png": (2, 6),
    }  # fmt: skip
    with Image.open(path) as compared:
        assert compared.size == (7 * 66 + 2, 2 * 66 + 2)


@pytest.mark.parametrize(
    ("framing", "own", "frame"),
    [
        (of_one_size((8, 8)), (8, 8), Frame((8, 8), (8, 8))),
        (of_one_size((8, 8)), (48, 96), Frame((4, 8), (8, 8))),
        (of_one_size((8, 8)), (1, 1000), Frame((1, 8), (8, 8))),
        (of_one_size((28, 20)), (10, 10), Frame((20, 20), (28, 20))),
        (of_any_size(4), (48, 96), Frame((48, 96), (48, 96))),
        (of_any_size(4), (49, 99), Frame((49, 99), (52, 100))),
        (of_any_size(4), (1, 9), Frame((1, 9), (8, 12))),
        (of_any_size(4), (4096, 1000), Frame((2048, 500), (2048, 500))),
        (of_any_size(4, 32), (64, 128), Frame((32, 64), (32, 64))),
        (of_any_size(4, 32), (16, 33), Frame((32, 66), (32, 68))),
        (of_any_size(4, 32), (1, 1000), Frame((2, 2048), (8, 2048))),
    ],
)
def test_images_keep_their_proportions_in_a_frame(framing, own, frame):
    assert framing(own) == frame
    if max(own) < 200:
        pixels = np.random.default_rng(0).integers(0, 256, (*own, 3), np.uint8)
        inside = framed(pixels, frame)
        assert inside.shape == (*frame.outer, 3)
        back = unframed(inside, frame, own)
        assert back.shape == pixels.shape
        if frame.inner == own:
            np.testing.assert_array_equal(back, pixels)


def test_a_frame_is_filled_by_reflection():
    pixels = np.arange(3, dtype=np.uint8).reshape(1, 3, 1)
    found = framed(pixels, Frame((1, 3), (2, 5)))[..., 0]
    np.testing.assert_array_equal(found, [[0, 1, 2, 1, 0]] * 2)


def test_a_model_of_any_size_sees_images_as_they_are(tmp_path):
    """A compilation for each size of frames; larger images come fewer at a time."""
    traces = []

    def translate(variables, x, direction):
        traces.append(x.shape)
        return -x

    rng, given = np.random.default_rng(0), {}
    (tmp_path / "in").mkdir()
    for i, size in enumerate([(8, 8)] * 9 + [(10, 15), (11, 16), (32, 32), (32, 32)]):
        given[f"{i}.png"] = rng.integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(given[f"{i}.png"]).save(tmp_path / "in" / f"{i}.png")
    model = toy((8, 8, 3), translate, stride=4)
    apply.translate_folder(model, tmp_path / "in", tmp_path / "out", "a2b", batch_size=16)
    for name, pixels in given.items():
        found = np.asarray(Image.open(tmp_path / "out" / name))
        np.testing.assert_array_equal(found, 255 - pixels)
    assert sorted(traces) == [(8, 12, 16, 3), (8, 32, 32, 3), (16, 8, 8, 3)]  # on 8 devices
    traces.clear()
    apply.translate_folder(model, tmp_path / "in", tmp_path / "o2", "a2b", resize=True)
    assert {shape[1:] for shape in traces} == {(8, 8, 3), (8, 12, 3)}
    assert Image.open(tmp_path / "o2" / "9.png").size == (15, 10)


def test_large_images_come_fewer_at_a_time(tmp_path):
    for i in range(5):
        save(tmp_path / "in" / f"{i}.png", (16, 8))
    sizes = []

    def make(n):
        sizes.append(n)
        return lambda x: sizes.append(len(x)) or x

    options = {"batch_size": 16, "framing": of_any_size(4)}
    each_image(toy(), tmp_path / "in", tmp_path / "out", make, "", **options)
    assert sizes == [2, 2, 2, 1]


def test_sizes_are_read_of_headers_alone(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg", exif=exif)
    source, read = images.open_folder(str(tmp_path)), []

    class Counted(io.BytesIO):
        def read(self, size=-1):
            read.append(len(found := super().read(size)))
            return found

    counted = source._replace(open=lambda name: Counted(source.read(name)))
    batches = image_folder._Batches(counted, of_any_size(4), 3)
    assert batches.sizes == {"a.jpg": (400, 300)}
    assert sum(read) < 10_000 < source.sizes["a.jpg"]


def test_broken_images_are_left_out_and_named(tmp_path, capsys):
    save(tmp_path / "in" / "good.png")
    for name, cut in [("half.jpg", 20), ("half.png", 60)]:  # the header of the first is whole
        save(tmp_path / "in" / name, (64, 64))
        (tmp_path / "in" / name).write_bytes((tmp_path / "in" / name).read_bytes()[:-cut])
    (tmp_path / "in" / "no.jpg").write_bytes(b"no picture")
    inverted(toy(), tmp_path / "in", tmp_path / "out")
    assert set(content(tmp_path / "out")) == {"good.png"}
    said = capsys.readouterr().out
    assert "3 of 4 images cannot be read and are left out: " in said
    assert "no.jpg (no image)" in said
    assert "half.png (" in said
    assert "half.jpg (" in said
    assert "on_corrupt" not in said
    (tmp_path / "in" / "good.png").unlink()
    with pytest.raises(ValueError, match=r"no image in .*in can be read: .*half\.png \("):
        inverted(toy(), tmp_path / "in", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_damaged_zip_is_read_as_far_as_it_goes(tmp_path, capsys):
    save(tmp_path / "0.png", (32, 32), 1)
    path = tmp_path / "in.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("0.png", "1.png"):
            archive.write(tmp_path / "0.png", name)
        start = archive.getinfo("1.png").header_offset + 35
    damaged = bytearray(path.read_bytes())
    damaged[start + 4 : start + 20] = bytes(16)
    path.write_bytes(damaged)
    inverted(toy(), path, tmp_path / "out")
    assert set(content(tmp_path / "out")) == {"0.png"}
    assert "1 of 2 images cannot be read and are left out: 1.png (" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["../x.png", "a/../../x.png", "/x.png"])
def test_names_that_lead_out_of_the_folder_are_refused(name):
    with pytest.raises(ValueError, match="leads out of its folder: pack it anew"):
        image_folder.output_names(["fine.png", name])


@pytest.mark.parametrize("name", ["../outside.png", "a/../../outside.png", "/outside.png"])
def test_a_zip_writes_nothing_outside_its_folder(tmp_path, name):
    save(tmp_path / "x.png")
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        info = zipfile.ZipInfo("x")
        info.filename = name
        archive.writestr(info, (tmp_path / "x.png").read_bytes())
    before = content(tmp_path)
    if name.startswith("/"):  # is taken for a path within
        inverted(toy(), tmp_path / "in.zip", tmp_path / "deep" / "out")
        assert set(content(tmp_path / "deep" / "out")) == {"outside.png"}
        return
    with pytest.raises(ValueError, match="leads out of its folder: pack it anew"):
        inverted(toy(), tmp_path / "in.zip", tmp_path / "deep" / "out")
    assert content(tmp_path) == before


@pytest.mark.parametrize("output", ["in", "in/out", "in/../in", "link", "full", "in/0.png"])
def test_what_someone_has_is_never_written_over(tmp_path, output):
    save(tmp_path / "in" / "0.png")
    save(tmp_path / "full" / "0.png", value=1)
    (tmp_path / "link").symlink_to("in")
    before = content(tmp_path)

    def make(n):
        raise AssertionError("it is refused before the work")

    with pytest.raises(ValueError, match=r"would lie in the input|full is not empty"):
        each_image(toy(), tmp_path / "in", tmp_path / output, make, "")
    assert content(tmp_path) == before


def test_an_earlier_comparison_is_not_written_over(tmp_path):
    save(tmp_path / "in" / "0.png")
    save(tmp_path / "out-compared.png")
    with pytest.raises(ValueError, match=r"out-compared\.png is there already"):
        inverted(toy(), tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_what_stops_midway_leaves_no_folder(monkeypatch, tmp_path, error):
    for i in range(3):
        save(tmp_path / "in" / f"{i}.png")
    before, saved = content(tmp_path), Image.Image.save

    def stopped(self, path, **options):
        if path.name.startswith(".1.png"):
            raise error
        saved(self, path, **options)

    monkeypatch.setattr(Image.Image, "save", stopped)
    with pytest.raises((KeyboardInterrupt, OSError), match=r"1\.png: disk full|^$"):
        inverted(toy(), tmp_path / "in", tmp_path / "out")
    assert content(tmp_path) == before
    assert {path.name for path in tmp_path.iterdir()} == {"in"}
