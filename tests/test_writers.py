"""Pictures to the pixel, and metrics that survive a kill."""

import json

import numpy as np
import pytest
from PIL import Image

from aigc_jax.training.writers import Writer, grid, save_image, to_uint8


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_to_uint8_is_the_inverse_of_the_loader_for_every_value():
    pixels = np.arange(256, dtype=np.uint8)
    floats = pixels.astype(np.float32) / 127.5 - 1
    np.testing.assert_array_equal(to_uint8(floats), pixels)


def test_to_uint8_rounds_to_nearest_and_clips():
    step = 2 / 255  # between neighbouring values
    found = to_uint8(np.array([-9, -1, -1 + 0.4 * step, -1 + 0.6 * step, 1 - 0.4 * step, 1, 9]))
    np.testing.assert_array_equal(found, [0, 0, 0, 1, 255, 255, 255])
    assert found.dtype == np.uint8


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


def test_rows_are_json_and_what_is_not_finite_is_null(tmp_path):
    writer = Writer(tmp_path, 0, 10, 4)
    writer.scalars(3, {"loss": np.float32(0.5), "bad": float("nan"), "worse": float("inf")})
    writer.close()
    assert rows(tmp_path) == [{"step": 3, "loss": 0.5, "bad": None, "worse": None}]


def test_a_resumed_run_drops_later_rows_and_a_line_cut_short(tmp_path):
    writer = Writer(tmp_path, 0, 10, 4)
    for step in range(1, 6):
        writer.scalars(step, {"loss": step})
    writer.close()
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 2, "lo')  # as a kill leaves it
    writer = Writer(tmp_path, 3, 10, 4)
    writer.scalars(4, {"loss": 40})
    writer.close()
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 40),
    ]


def test_tensorboard_gets_scalars_and_pictures(tmp_path):
    writer = Writer(tmp_path, 0, 10, 4)
    writer.scalars(3, {"a/loss": 0.5})
    writer.image(3, "samples", Image.fromarray(np.zeros((8, 8), np.uint8)))
    writer.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    written = events.read_bytes()
    assert b"a/loss" in written
    assert b"samples" in written
    assert b"\x89PNG" in written


def test_a_log_file_gets_a_line_a_row_with_the_time_left(tmp_path, capsys):
    writer = Writer(tmp_path, 0, 10, 4)
    writer.scalars(5, {"loss": 0.25, "time/data_wait": 0.1})
    writer.say("a word")
    writer.close()
    row, word = capsys.readouterr().out.splitlines()
    assert row.startswith("step 5/10  loss 0.25  left 0:0")
    assert "data_wait" not in row
    assert word == "a word"
