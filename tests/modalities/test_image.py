"""Images: to the model's range and back, pictures to the pixel, files whole or not at all."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from aigc_jax import modalities
from aigc_jax.modalities.image import grid, grid_columns, save_image, to_float, to_uint8

IMAGE = modalities.of("image")


def test_pixels_span_minus_one_to_one():
    pixels = jnp.array([0, 51, 255], jnp.uint8)
    np.testing.assert_allclose(to_float(pixels), [-1.0, -0.6, 1.0], atol=1e-6)
    on_host = to_float(np.asarray(pixels))
    assert isinstance(on_host, np.ndarray)
    assert on_host.dtype == np.float32
    np.testing.assert_allclose(on_host, to_float(pixels), atol=1e-7)
    np.testing.assert_array_equal(to_float(on_host), on_host)  # floats are in that range already


def test_to_uint8_is_the_inverse_of_to_float_for_every_value():
    pixels = np.arange(256, dtype=np.uint8)
    floats = pixels.astype(np.float32) / 127.5 - 1
    np.testing.assert_array_equal(to_uint8(floats), pixels)
    np.testing.assert_array_equal(IMAGE.to_stored(IMAGE.to_model(pixels)), pixels)


def test_to_uint8_rounds_to_nearest_and_clips():
    step = 2 / 255  # between neighbouring values
    found = to_uint8(np.array([-9, -1, -1 + 0.4 * step, -1 + 0.6 * step, 1 - 0.4 * step, 1, 9]))
    np.testing.assert_array_equal(found, [0, 0, 0, 1, 255, 255, 255])
    assert found.dtype == np.uint8


def test_samples_are_limited_to_the_range_of_images():
    found = IMAGE.clip(jnp.array([-3.0, -1.0, 0.25, 1.5]))
    np.testing.assert_array_equal(found, np.array([-1.0, -1.0, 0.25, 1.0], np.float32))


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_lays_images_row_by_row_with_a_margin(channels):
    levels = np.linspace(-1, 1, 5, dtype=np.float32)
    images = np.broadcast_to(levels[:, None, None, None], (5, 4, 6, channels))
    picture = np.asarray(grid(images, columns=3, enlarge_to=1))
    assert picture.shape == (2 * 6 + 2, 3 * 8 + 2, 3)[: 2 if channels == 1 else 3]
    for i, level in enumerate(to_uint8(levels)):
        top, left = 2 + (i // 3) * 6, 2 + (i % 3) * 8
        assert (picture[top : top + 4, left : left + 6] == level).all()
        assert (picture[top - 1, left : left + 6] == 128).all()
    assert (picture[8:12, 18:24] == 128).all()  # there is no sixth image


def test_grid_is_about_square_and_enlarges_by_a_whole_factor():
    levels = np.linspace(-1, 1, 9, dtype=np.float32)
    images = np.broadcast_to(levels[:, None, None, None], (9, 8, 8, 1))
    picture = np.asarray(grid(images, enlarge_to=20))
    assert picture.shape == (3 * 18 + 2, 3 * 18 + 2)
    for i, level in enumerate(to_uint8(levels)):
        top, left = 2 + (i // 3) * 18, 2 + (i % 3) * 18
        assert (picture[top : top + 16, left : left + 16] == level).all()


def test_a_picture_of_samples_is_their_grid():
    images = np.random.default_rng(0).uniform(-1, 1, (6, 8, 8, 3)).astype(np.float32)
    shown = IMAGE.picture(images, real=images[:2], columns=3)
    np.testing.assert_array_equal(np.asarray(shown), np.asarray(grid(images, columns=3)))
    np.testing.assert_array_equal(np.asarray(IMAGE.picture(images)), np.asarray(grid(images)))


@pytest.mark.parametrize(
    ("count", "classes", "columns"),
    [(64, 10, 10), (19, 10, 0), (64, 0, 0), (64, 1, 0), (64, 21, 0)],
)
def test_a_column_a_class_where_that_makes_two_rows(count, classes, columns):
    assert grid_columns(count, classes) == columns


def test_a_picture_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "a.png"
    picture = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    save_image(picture, path)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), np.asarray(picture))
    before = path.read_bytes()

    class Broken:
        def save(self, partial, format):
            partial.write_bytes(b"half")
            raise OSError("no space left")

    with pytest.raises(OSError, match=r"could not write .*a\.png: no space left"):
        save_image(Broken(), path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]


@pytest.mark.parametrize("channels", [1, 3])
def test_every_image_gets_a_file_named_by_its_number(tmp_path, channels):
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 6, channels), np.uint8)
    IMAGE.save(images, tmp_path / "single")
    names = sorted(p.name for p in (tmp_path / "single").iterdir())
    assert names == ["000000.png", "000001.png", "000002.png"]
    for name, image in zip(names, images, strict=True):
        found = np.asarray(Image.open(tmp_path / "single" / name))
        np.testing.assert_array_equal(found.reshape(image.shape), image)
