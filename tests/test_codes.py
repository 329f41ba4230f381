"""Images to codes and back: arrays, files, whole splits."""

import zipfile

import jax
import numpy as np
import pytest
from PIL import Image

from aigc_jax import build, codes
from aigc_jax.data import datasets
from aigc_jax.models import Model
from configs import ddpm_digits, vae_digits

DATASET = datasets.load("digits")


def made(variant="smoke"):
    config = vae_digits.get_config(variant)
    family = build.build(config, DATASET.spec)
    params, extra = family.init(jax.random.key(0))
    return Model(config, DATASET.spec, family, params, extra, 0)


@pytest.fixture(scope="module")
def model():
    return made()


def pixels(n):
    return DATASET.sources["test"].fetch(np.arange(n))["image"]


def test_codes_of_an_image_do_not_depend_on_the_batch_it_is_in(model):
    found = codes.encode(model, pixels(21), batch_size=8)
    assert found["mean"].shape == found["logvar"].shape == (21, 4)
    alone = codes.encode(model, pixels(21)[20:])
    np.testing.assert_allclose(found["mean"][20], alone["mean"][0], rtol=1e-5, atol=1e-6)
    assert len(np.unique(found["mean"][:, 0])) > 10


def test_codes_are_decoded_to_bytes(model):
    z = codes.encode(model, pixels(21))["mean"]
    images = codes.decode(model, z, batch_size=8)
    assert images.shape == (21, 8, 8, 1)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images[16:], codes.decode(model, z[16:]))


def test_a_splits_codes_come_with_the_scale_that_makes_them_standard(model):
    found = codes.encode_split(model, model.config, DATASET, "test")
    assert found["mean"].shape == (296, 4)
    np.testing.assert_array_equal(
        found["label"], DATASET.sources["test"].fetch(np.arange(296))["label"]
    )
    noise = np.random.default_rng(0).normal(size=(200, *found["mean"].shape))
    z = found["mean"] + np.exp(0.5 * found["logvar"]) * noise
    scaled = (z - found["shift"]) * found["scale"]
    assert abs(scaled.mean()) < 0.01
    assert scaled.std() == pytest.approx(1, abs=0.03)  # of all dimensions, less their own means


def test_every_image_of_a_folder_is_denoised_under_its_own_name(model, tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for i, image in enumerate(pixels(3)):
        Image.fromarray(image[..., 0]).resize((16, 16)).save(tmp_path / "in" / f"{i}.png")
    Image.fromarray(pixels(4)[3][..., 0]).convert("RGB").save(tmp_path / "in" / "deep" / "x.jpg")
    path = codes.denoise(model, tmp_path / "in", tmp_path / "out", batch_size=2)
    assert path == tmp_path / "out" / "compared.png"
    assert path.is_file()
    names = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.png")}
    assert names == {"0.png", "1.png", "2.png", "deep/x.png", "compared.png"}
    assert Image.open(tmp_path / "out" / "0.png").size == (8, 8)
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.write(tmp_path / "in" / "0.png", "0.png")
    codes.denoise(model, tmp_path / "in.zip", tmp_path / "zipped")
    first, second = (np.asarray(Image.open(tmp_path / f / "0.png")) for f in ("out", "zipped"))
    np.testing.assert_array_equal(first, second)


def test_what_cannot_be_denoised_is_told(model, tmp_path):
    with pytest.raises(ValueError, match=r"no folder or .zip of images at .*: set --input"):
        codes.denoise(model, tmp_path / "gone", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images in"):
        codes.denoise(model, tmp_path / "empty", tmp_path / "out")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"x\.png"):
        codes.denoise(model, tmp_path / "bad", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_encoded_is_told(model):
    with pytest.raises(ValueError, match="takes images of 8x8x1, not 28x28x1"):
        codes.encode(model, np.zeros((2, 28, 28, 1), np.uint8))
    conditional = made("smoke+conditional")
    with pytest.raises(ValueError, match="needs the labels"):
        codes.encode(conditional, pixels(2))
    assert codes.encode(conditional, pixels(2), np.array([1, 2]))["mean"].shape == (2, 4)
    config = ddpm_digits.get_config("smoke")
    family = build.build(config, DATASET.spec)
    with pytest.raises(ValueError, match="family 'diffusion' has no encoder"):
        codes.encode(Model(config, DATASET.spec, family, {}, {}, 0), pixels(2))
