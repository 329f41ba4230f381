"""Metrics that survive a kill."""

import json

import numpy as np
from PIL import Image

from aigc_jax.training.writers import Writer


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


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


def test_lines_that_are_no_rows_are_left_out_and_said(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'no\n[3]\n\xff\n{"step": "x"}\n{"step": 1, "a": 1.0}\n{"step"')
    Writer(tmp_path, 1, 2, 1).close()
    assert path.read_text() == '{"step": 1, "a": 1.0}\n'
    assert "4 lines are no rows" in capsys.readouterr().out


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
