"""Images of files through edits: what is taken, what is refused, what is written."""

import json
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from diffusion.helpers import VARIABLES, column, model
from PIL import Image

from aigc_jax.diffusion import editing
from aigc_jax.family import DataSpec, Family, Field
from aigc_jax.modalities.image import to_uint8
from aigc_jax.runs import edits
from aigc_jax.runs.model import Model
from aigc_jax.sampling.driver import Driver

SHAPE = (4, 4, 1)
READ = {"size": (4, 4), "channels": 1, "instead": "scale them"}


def bent(x, t, label, train):
    return jnp.tanh(0.7 * x + 0.01 * column(t))


def work(of=bent, **changes):
    """A model of 4x4 images whose network is a formula, and its edits."""
    made = model(of, shape=SHAPE, **changes)
    family = Family(None, (), None, (), edits=editing.edits(made))
    spec = DataSpec({"x": Field("image", SHAPE)}, {}, {})
    return edits.Work(Model({}, spec, family, VARIABLES, 0)), family.edits


def half(x, t, label, train):
    return 0.5 * x


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.bmp", "deep/c.png"):
        save(tmp_path / "in" / name, rng.integers(0, 256, (4, 4)))
    return tmp_path / "in"


def read(path):
    return np.asarray(Image.open(path))


def test_a_file_a_folder_and_a_zip_are_read(folder, tmp_path):
    whole = edits.read(folder, **READ)
    assert whole.names == ("a.png", "b.bmp", "deep/c.png")
    assert whole.x.shape == (3, *SHAPE)
    one = edits.read(folder / "a.png", **READ)
    assert one.names == ("a.png",)
    np.testing.assert_array_equal(one.x, whole.x[:1])
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.write(folder / "a.png", "a.png")
    np.testing.assert_array_equal(edits.read(tmp_path / "in.zip", **READ).x, whole.x[:1])


def test_images_of_another_size_are_refused_or_scaled(folder):
    save(folder / "wide.png", np.arange(8 * 16).reshape(8, 16))
    with pytest.raises(
        ValueError, match=r"1 of 4 images are not of 4x4 pixels, such as wide\.png with 8x16: scale"
    ):
        edits.read(folder, **READ)
    found = edits.read(folder, **READ, resize=True)
    assert found.x.shape == (4, *SHAPE)
    assert found.sizes[3] == (8, 16)
    np.testing.assert_array_equal(found.own(3)[..., 0], np.arange(8 * 16).reshape(8, 16))


def test_what_cannot_be_read_is_named(folder):
    (folder / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"broken\.png in .*in cannot be read \(it is no image\)"):
        edits.read(folder, **READ)
    with pytest.raises(ValueError, match=r"no folder or \.zip of images at .*: set --input"):
        edits.read(folder / "gone", **READ)


def test_masks_are_one_for_all_or_each_by_name(folder, tmp_path):
    given = edits.read(folder, **READ)
    one, other = np.eye(4) * 255, (1 - np.eye(4)) * 255
    save(tmp_path / "mask.png", one)
    found = edits.read_masks(tmp_path / "mask.png", given)
    np.testing.assert_array_equal(found.x, np.stack([one[..., None]] * 3))
    for name, mask in (("a.png", one), ("b.png", other), ("deep/c.bmp", one)):
        save(tmp_path / "masks" / name, mask)
    found = edits.read_masks(tmp_path / "masks", given)
    np.testing.assert_array_equal(found.x[..., 0], [one, other, one])
    cond = edits.given_to(given, found)(np.array([1, 1]))
    np.testing.assert_array_equal(cond["mask"][..., 0], np.stack([other] * 2) / 255)
    np.testing.assert_array_equal(cond["image"], given.x[[1, 1]] / np.float32(127.5) - 1)
    (tmp_path / "masks" / "b.png").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"1 of 3 images have no mask in .*, such as b.bmp: a"
    ):
        edits.read_masks(tmp_path / "masks", given)
    save(tmp_path / "masks" / "b.png", np.zeros((4, 4)))
    with pytest.raises(ValueError, match=r"b\.png has nothing white"):
        edits.read_masks(tmp_path / "masks", given)
    save(tmp_path / "masks" / "b.png", np.zeros((8, 8)))
    with pytest.raises(
        ValueError, match=r"mask b\.png has 8x8 pixels and its image b\.bmp 4x4: bring"
    ):
        edits.read_masks(tmp_path / "masks", given)


@pytest.mark.parametrize("size", [(4, 4), (6, 10)])
def test_what_is_known_comes_back_byte_by_byte(tmp_path, size):
    pixels = np.random.default_rng(0).integers(0, 256, size)
    mask = np.zeros(size)
    mask[size[0] // 2 :] = 255
    save(tmp_path / "in" / "a.png", pixels)
    save(tmp_path / "mask.png", mask)
    given = edits.read(tmp_path / "in", **READ, resize=True)
    masks = edits.read_masks(tmp_path / "mask.png", given)
    by, ways = work()
    output = tmp_path / "out"
    edits.edit(by, ways["inpaint"](resample=2), given, masks, output, "painting")
    found = read(output / "a.png")
    assert found.shape == size
    np.testing.assert_array_equal(found[mask == 0], pixels[mask == 0])
    assert (found[mask == 255] != pixels[mask == 255]).mean() > 0.5
    with Image.open(edits.compared(output)) as shown:  # given, what is known, result
        assert shown.height == 3 * 66 + 2


def test_a_folder_of_edits_has_a_picture_beside_it(folder, tmp_path, monkeypatch):
    walk, walks = Driver.walk, []
    monkeypatch.setattr(Driver, "walk", lambda *given: walks.append(1) or walk(*given))
    given, (by, ways) = edits.read(folder, **READ), work()
    drawing = ways["vary"](strength=0.6)
    watch = edits.Watch(3, most=2)
    edits.edit(by, drawing, given, None, tmp_path / "out", "varying", watch)
    names = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")}
    assert names == {"a.png", "b.png", "deep/c.png"}
    assert (tmp_path / "out-compared.png").is_file()
    assert len(walks) == 1  # results and their frames are of one draw
    assert watch.frames().shape == (3, 2, *SHAPE)
    for name, last in zip(("a", "b"), watch.frames()[-1], strict=True):
        np.testing.assert_array_equal(read(tmp_path / f"out/{name}.png"), to_uint8(last)[..., 0])
    alone = edits.read(folder / "a.png", **READ)
    edits.edit(by, drawing, alone, None, tmp_path / "alone", "varying")
    np.testing.assert_array_equal(read(tmp_path / "alone/a.png"), read(tmp_path / "out/a.png"))


def test_what_is_upscaled_has_the_small_image_s_means(tmp_path):
    small = np.random.default_rng(0).integers(0, 256, (2, 2))
    save(tmp_path / "in" / "a.png", small)
    given = edits.read(tmp_path / "in", **READ | {"size": (2, 2)})
    by, ways = work()
    edits.edit(by, ways["upscale"](factor=2), given, None, tmp_path / "out", "upscaling")
    found = read(tmp_path / "out" / "a.png").astype(float)
    assert found.shape == (4, 4)
    np.testing.assert_allclose(found.reshape(2, 2, 2, 2).mean((1, 3)), small, atol=0.5)


def test_what_is_inverted_comes_back_with_its_errors_and_noise(folder, tmp_path):
    given, (by, ways) = edits.read(folder, **READ), work(half, sampling={"steps": 20})
    latent = edits.inverted(by, ways["invert"](), given)
    output = tmp_path / "out"
    means = edits.reconstruct(by, ways["reconstruct"](), given, latent, output)
    said = json.loads((tmp_path / "out-errors.json").read_text())
    assert {key: said[key] for key in means} == means
    assert list(said["images"]) == ["a.png", "b.bmp", "deep/c.png"]
    each = [values["l1"] for values in said["images"].values()]
    assert means["l1"] == pytest.approx(np.mean(each), abs=1e-5)
    for i, name in enumerate(("a", "b", "deep/c")):
        error = np.abs(read(output / f"{name}.png") - given.x[i, ..., 0].astype(float)).mean()
        assert error / 127.5 == pytest.approx(each[i], abs=0.005)
    arrays = np.load(tmp_path / "out-latents.npz")
    np.testing.assert_array_equal(arrays["latent"], latent)
    assert arrays["name"].tolist() == list(given.names)


def test_interpolations_begin_and_end_with_reconstructions(folder, tmp_path):
    given, (by, ways) = edits.read(folder, **READ), work(half)
    latent = edits.inverted(by, ways["invert"](), given)
    back = by.draw(ways["reconstruct"](), lambda i: {"latent": jnp.asarray(latent[i])}, 3)
    output = tmp_path / "out"
    moving = edits.interpolate(by, ways["interpolate"](), given, latent, 4, output)
    assert moving.shape == (4, 2, *SHAPE)
    np.testing.assert_allclose(moving[0], back[:2], atol=1e-5)
    np.testing.assert_allclose(moving[-1], back[1:], atol=1e-5)
    names = sorted(p.relative_to(output).as_posix() for p in output.rglob("*.png"))
    assert names == [f"{p}/00{i}.png" for p in ("000-a-b", "001-b-deep_c") for i in range(4)]
