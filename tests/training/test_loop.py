"""The loop: what is written when, what starts a run, what stops it, and how it recovers."""

import json
import math
import threading
import time

import jax
import numpy as np
import pytest
import toys
from PIL import Image

from aigc_jax import streams
from aigc_jax.family import Variables
from aigc_jax.runs.observer import Observer
from aigc_jax.training.checkpoint import Checkpoints, complete_steps
from aigc_jax.training.meter import DivergedError

BARE = {"log.eval_every": 0, "log.sample_every": 0, "checkpoint.best": ""}


def names(folder):
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def test_a_run_evaluates_samples_and_saves_on_its_schedule_and_at_its_end(tmp_path):
    changes = {"train.steps": 7, "log.every": 2, "log.eval_every": 3, "log.sample_every": 4}
    toys.train(tmp_path, changes=changes | {"checkpoint.every": 5, "checkpoint.keep": 9})
    rows = toys.rows(tmp_path)
    assert [row["step"] for row in rows if "test/error" in row] == [3, 6, 7]
    # A row each 2 steps; what is evaluated, drawn or saved closes the row before it.
    assert [row["step"] for row in rows if "net/loss" in row] == [2, 3, 4, 5, 6, 7]
    assert names(tmp_path / "samples") == ["00000004.png", "00000007.png"]
    assert names(tmp_path / "checkpoints") == ["00000005", "00000007"]
    for name in names(tmp_path / "samples"):
        with Image.open(tmp_path / "samples" / name) as picture:
            picture.load()
            assert picture.mode == "L"
            assert picture.size == (2 * 66 + 2, 3 * 66 + 2)  # a column a class
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"net/loss" in events.read_bytes()
    spec = json.loads((tmp_path / "spec.json").read_text())
    assert spec == {
        "fields": {"x": {"kind": "image", "shape": [4, 4, 1], "classes": 0}},
        "conditions": {"label": {"kind": "label", "shape": [], "classes": 2}},
        "sizes": {"train": 64, "test": 20},
    }


def test_zero_switches_evaluation_and_samples_off_and_keep_bounds_the_checkpoints(tmp_path):
    never = BARE | {"log.every": 0}
    toys.train(tmp_path, changes=never | {"checkpoint.every": 1, "checkpoint.keep": 3})
    assert names(tmp_path / "checkpoints") == ["00000004", "00000005", "00000006"]
    assert names(tmp_path / "samples") == names(tmp_path / "best") == []
    assert all("test/error" not in row for row in toys.rows(tmp_path))


def test_the_rows_average_the_steps_that_they_cover(tmp_path, whole_runs):
    every_step = [row for row in toys.rows(whole_runs["one"][0]) if "net/loss" in row]
    toys.train(tmp_path, changes=BARE | {"log.every": 3, "checkpoint.every": 0})
    rows = toys.rows(tmp_path)
    assert [row["step"] for row in rows] == [3, 6]
    for row, part in zip(rows, (every_step[:3], every_step[3:]), strict=True):
        assert row["net/loss"] == pytest.approx(sum(r["net/loss"] for r in part) / 3, rel=1e-6)


def test_evaluation_is_the_mean_over_the_examples_with_the_average(whole_runs):
    workdir, state = whole_runs["one"]
    family, batch = toys.one_player(), toys.dataset().sources["test"].fetch(np.arange(20))
    values, x = [], batch["x"].astype(np.float32) / 127.5 - 1
    variables = Variables({**state.params, **state.ema}, state.extra)
    key = streams.evaluation(0)  # of the config's seed; 20 examples are batches of 16 and of 4
    for i, rows in enumerate((x[:16], np.concatenate([x[16:], x[19:].repeat(12, 0)]))):
        value = family.evaluate(variables, {"x": rows}, jax.random.fold_in(key, i))
        values.append(np.asarray(value["error"]))
    expected = np.concatenate(values)[:20].mean()
    found = [row["test/error"] for row in toys.rows(workdir) if "test/error" in row]
    assert found[-1] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("mode", "best"), [("min", 3), ("max", 2)])
def test_best_keeps_the_best_by_its_metric(tmp_path, mode, best, monkeypatch):
    pretended = dict(zip(range(1, 6), [math.nan, 5.0, 1.0, 2.0, 3.0], strict=True))
    evaluate = Observer.evaluate

    def pretend(self, state, step):
        return evaluate(self, state, step) | {"test/error": pretended[step]}

    monkeypatch.setattr(Observer, "evaluate", pretend)
    changes = {"train.steps": 5, "log.eval_every": 1, "log.sample_every": 0}
    toys.train(tmp_path, changes=changes | {"checkpoint.best_mode": mode})
    checkpoints = Checkpoints(tmp_path / "best")
    assert checkpoints.steps() == [best]
    assert checkpoints.about(best)["metrics"] == {"test/error": pretended[best]}
    assert checkpoints.restore(toys.target())[0].step == best
    checkpoints.close()


def test_initial_weights_start_a_run_and_only_start_it(tmp_path, whole_runs):
    given = jax.tree.map(np.array, whole_runs["one"][1].params)
    kept = jax.tree.map(np.copy, given)
    rest = {"optimizer": toys.optimizer("sgd", learning_rate=0.0)} | BARE
    rest["ema.half_life"] = 16.0  # images, a batch: decay 1/2, by which equal numbers stay equal
    initial = (given, {"mean": np.full(toys.PIXELS, 10.0)})  # a running mean of images in [-1, 1]
    state = toys.train(tmp_path, changes=rest | {"train.steps": 2}, initial=lambda: initial)
    assert toys.same(state.params, given)
    np.testing.assert_allclose(state.extra["mean"], 0.9**2 * 10, atol=0.2)
    assert toys.same(state.ema, given)
    assert toys.same(given, kept)  # donation took none of the caller's buffers

    def gone():
        raise FileNotFoundError("what a resumed run does not need")

    state = toys.train(tmp_path, changes=rest | {"train.steps": 4}, initial=gone)
    assert toys.same(state.params, given)


def test_initial_weights_on_devices_may_be_used_again(tmp_path, whole_runs):
    given = whole_runs["one"][1].params
    before = toys.arrays(given)
    state = toys.train(tmp_path, changes=BARE | {"train.steps": 2}, initial=lambda: (given, {}))
    assert toys.same(given, before)
    assert not toys.same(state.params, given)


def test_a_start_that_fails_leaves_nothing_that_looks_like_a_run(tmp_path):
    def gone():
        raise FileNotFoundError("no weights there")

    with pytest.raises(FileNotFoundError, match="no weights there"):
        toys.train(tmp_path / "run", initial=gone)
    assert not (tmp_path / "run").exists()


def poisoned(workdir, bad_rows, **changes):
    """Trains where a batch with one of the bad images in front gives an infinite loss."""
    data = toys.dataset()
    data.sources["train"].x[:] = np.clip(data.sources["train"].x, 0, 200)
    data.sources["train"].x[bad_rows] = 255
    flat = {"augment.flip": False, "train.steps": 12, "checkpoint.every": 1} | BARE | changes
    return toys.train(workdir, toys.one_player(poison=0.9), flat, data)


def test_single_bad_batches_are_skipped_and_training_recovers(tmp_path):
    state = poisoned(tmp_path, slice(0, 16), **{"train.steps": 40, "checkpoint.every": 20})
    skipped = int(state.skipped)
    assert 0 < skipped < 20
    rows = toys.rows(tmp_path)
    assert [r["net/loss"] is None for r in rows].count(True) == skipped
    assert rows[-1]["skipped"] == skipped
    assert all(np.isfinite(x).all() for x in toys.arrays(state))
    finite = [r["net/loss"] for r in rows if r["net/loss"] is not None]
    assert np.mean(finite[-5:]) < np.mean(finite[:5])


def test_too_many_bad_batches_in_a_row_stop_the_run_and_name_the_last_good_checkpoint(tmp_path):
    often = {"checkpoint.every": 2}
    poisoned(tmp_path, slice(0, 0), **often, **{"train.steps": 4})
    with pytest.raises(DivergedError) as error:
        poisoned(tmp_path, slice(None), **often)
    message = str(error.value)
    assert "3 steps in a row up to step 7" in message
    assert f"last good checkpoint is that of step 2 in {tmp_path / 'checkpoints'}" in message
    assert "--from-step=2" in message
    assert complete_steps(tmp_path / "checkpoints") == [2, 4]  # none since it is not sound
    with pytest.raises(DivergedError, match="No checkpoint from before that is kept"):
        poisoned(tmp_path / "new", slice(None), **{"checkpoint.every": 0})


def test_max_skipped_zero_never_stops(tmp_path):
    state = poisoned(tmp_path, slice(None), **{"train.max_skipped": 0, "checkpoint.every": 0})
    assert (int(state.step), int(state.skipped)) == (12, 12)


def test_a_run_leaves_no_thread_behind(tmp_path):
    before = set(threading.enumerate())
    toys.train(tmp_path, changes={"train.steps": 2})

    def left():
        new = set(threading.enumerate()) - before
        return {t.name for t in new if not t.daemon and "asyncio" not in t.name}

    deadline = time.monotonic() + 10  # a pool that was told to end takes a moment
    while left() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left()
