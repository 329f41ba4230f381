"""Many steps a dispatch, data on the devices or not: the same run, bit for bit."""

import pathlib
import re
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import toys
from places import QUICK_XLA

from aigc_jax.data import feed
from aigc_jax.data.pairs import Pairs
from aigc_jax.data.sources import ArraySource, StreamedSource
from aigc_jax.errors import SettingError
from aigc_jax.training.loop import Schedule, dispatched
from aigc_jax.training.step import train_steps

PLAN = {"batch_size": 8, "seed": 3, "batches_per_step": 2}
RUN = {
    "train.steps": 14,
    "log.every": 5,
    "log.eval_every": 10,
    "log.sample_every": 0,
    "checkpoint.every": 5,
    "checkpoint.keep": 9,
}


SCRIPT = """
import toys, pathlib, sys
from aigc_jax.data import feed
run, root = eval(sys.argv[1]), pathlib.Path(sys.argv[2])
several = run | {"train.steps_per_dispatch": 3}
toys.train(root / "one", "two", run)
toys.train(root / "three", "two", several)
toys.train(root / "stopped", "two", several | {"train.steps": 7})
toys.train(root / "stopped", "two", several)
feed.ON_DEVICE = 0
toys.train(root / "host", "two", several)
"""


def test_a_run_is_the_same_however_it_is_dispatched_stopped_and_fed(tmp_path):
    """With a penalty every fourth step, which goes alone, the three after it together.

    Compiled as for a user: without XLA's optimisations the last bits within a loop are others.
    """
    environment = toys.environment(2)
    environment["XLA_FLAGS"] = environment["XLA_FLAGS"].replace(QUICK_XLA, "")
    environment["PYTHONPATH"] = str(toys.ROOT)
    made = subprocess.run(
        [sys.executable, "-c", SCRIPT, repr(RUN), str(tmp_path)],
        env=environment, capture_output=True, text=True, cwd=pathlib.Path(toys.__file__).parent,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    one = tmp_path / "one"
    for other in (tmp_path / "three", tmp_path / "stopped", tmp_path / "host"):
        for step in (5, 10, 14):
            saved = (toys.saved(folder, step, "two") for folder in (one, other))
            assert toys.same(*saved), (other.name, step)
    assert toys.rows(one) == toys.rows(tmp_path / "three") == toys.rows(tmp_path / "host")


def source(size, labels=True):
    x = np.random.default_rng(size).integers(0, 256, (size, 2, 2, 1), np.uint8)
    return ArraySource(x, np.arange(size, dtype=np.int32) if labels else None)


@pytest.mark.parametrize(
    "data", [source(20), source(20, labels=False), Pairs(source(20), source(13))]
)
@pytest.mark.parametrize("processes", [1, 2])
def test_rows_on_the_devices_are_the_examples_of_the_loader(data, processes):
    columns = feed.columns(data)
    for process in range(processes):
        plan = PLAN | {"process_index": process, "process_count": processes}
        rows, examples = feed.Rows(data, **plan), feed.Examples(data, 0, **plan)
        for step, count in ((0, 3), (3, 1), (4, 2)):
            found, expected = rows.take(step, count), examples.take(step, count)
            assert columns.keys() == expected.keys()
            for name, x in expected.items():
                assert x.shape[:3] == (count, 2, 8 // processes)
                np.testing.assert_array_equal(columns[name][found.get(name, found["x"])], x)
        examples.close()


def test_only_small_data_in_memory_are_held_on_devices(monkeypatch):
    data = source(20)
    streamed = StreamedSource(lambda _: [], lambda _: data.x[0], np.arange(20))
    assert feed.columns(streamed) == {}
    assert feed.columns(SimpleNamespace()) == {}
    bytes_of_all = 20 * 4 + 20 * 4
    monkeypatch.setattr(feed, "ON_DEVICE", bytes_of_all)
    assert feed.columns(data).keys() == {"x", "label"}
    monkeypatch.setattr(feed, "ON_DEVICE", bytes_of_all - 1)
    assert feed.columns(data) == {}


def test_a_dispatch_ends_where_something_is_due():
    schedule = Schedule(100, log=10, evaluate=0, sample=25, save=50, first_sample=7, dispatch=4)
    assert [schedule.until_due(step) for step in (0, 4, 7, 14, 16, 96, 97)] == [4, 1, 1, 4, 4, 4, 1]
    rounds = schedule._replace(first_sample=0, phases=(5,))
    assert [rounds.until_due(step) for step in (0, 1, 2, 5, 6)] == [1, 4, 1, 1, 4]


@pytest.mark.parametrize(
    ("log", "every", "backend", "expected"),
    [
        (100, 1, "cpu", 1),
        (100, 1, "tpu", 25),
        (96, 1, "gpu", 32),
        (37, 1, "gpu", 18),  # two of 18 and one alone
        (100, 5, "gpu", 4),  # between two steps with the other phase
        (100, 16, "gpu", 15),
        (100, 2, "gpu", 1),
    ],
)
def test_backends_choose_the_steps_of_a_dispatch(log, every, backend, expected):
    schedule = Schedule(5000, log=log, evaluate=0, sample=0, save=0, dispatch=0)
    family = SimpleNamespace(phases=(SimpleNamespace(every=1), SimpleNamespace(every=every)))
    assert dispatched(schedule, family, backend).dispatch == expected


def test_more_steps_than_lie_between_two_events_are_refused(tmp_path):
    """Also between two steps with a phase that the others lack: the penalty, every fourth."""
    with pytest.raises(SettingError, match=re.escape("=4 is more than the 3 steps")):
        toys.train(tmp_path / "run", "two", RUN | {"train.steps_per_dispatch": 4})
    with pytest.raises(SettingError, match=re.escape("=6 is more than the 5 steps")):
        toys.train(tmp_path / "run", changes=RUN | {"train.steps_per_dispatch": 6})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("count", [1, 2])
def test_one_step_is_no_loop(count):
    """In a loop, even of one step, a CPU takes many times as long for convolutions' gradients."""
    plan = toys.recipe_of(toys.one_player(), toys.config())
    feed = {"x": jax.ShapeDtypeStruct((count, 1, 16, 4, 4, 1), np.uint8)}
    made = jax.make_jaxpr(partial(train_steps, plan, (0,)))(toys.target(), {}, {}, feed)
    assert ("scan" in {equation.primitive.name for equation in made.eqns}) == (count > 1)
