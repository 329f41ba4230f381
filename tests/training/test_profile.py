"""Some steps of a run are traced: which, what is left there, and that no bit is another."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from aigc_jax import build
from aigc_jax.commands import train as command
from aigc_jax.errors import SettingError
from aigc_jax.training import kinds, sharding
from aigc_jax.training.profile import Profiler, Span, span
from configs import ddpm_digits


def test_a_span_is_a_start_and_a_count():
    assert span("100:10") == Span(100, 110)
    assert span("0:1") == Span(0, 1)


@pytest.mark.parametrize(
    "text", ["", "5", "5:", ":5", "5:0", "-1:5", "1:2:3", "a:b", "1.5:2", "٣:1", "1" * 5000 + ":1"]
)
def test_what_is_none_is_refused(text):
    with pytest.raises(SettingError, match=f"--profile={re.escape(text)}") as error:
        span(text)
    assert "--profile=100:10" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_span_lies_in_what_is_left_of_the_run():
    span("90:10").check(100)
    span("90:10").check(100, done=90)
    with pytest.raises(SettingError, match="ends at step 101, but the run has 100"):
        span("91:10").check(100)
    with pytest.raises(SettingError, match="goes on from step 91"):
        span("90:10").check(100, done=91)


QUIET = {"log.eval_every": 0, "log.sample_every": 0, "checkpoint.best": ""}


def profiler(folder, text):
    return Profiler(span(text), folder / "profile")


def tables(folder):
    """{folder of a trace: its table as JSON}, of a run."""
    found = (folder / "profile").glob("*/plugins/profile/*/table.json")
    return {path.parents[3].name: json.loads(path.read_text()) for path in found}


def test_a_step_of_a_unet_is_told_apart(tmp_path, capsys):
    """The smallest one with an attention, on two devices."""
    config = ddpm_digits.get_config("smoke")
    with config.unlocked():
        config.network.update({"multipliers": (1,), "attention": (4,), "dropout": 0.1})
    recipe = toys.recipe_of(build.build(config, toys.SPEC), toys.config())
    mesh = sharding.make_mesh(jax.devices()[:2])
    target = sharding.abstract_state(recipe, mesh, "replicated")
    state = sharding.new_state(recipe, target, 0)
    jitted = sharding.compile_steps(recipe, mesh, target, {})
    images = np.zeros((1, 1, 4, *toys.SPEC.shape), np.uint8)
    recording = profiler(tmp_path, "1:2")
    for step in range(3):
        feed = sharding.put(mesh, {"x": images}, axis=2)
        state, _ = recording.run(jitted, lambda _: ((0,), 1), step, state, {}, {}, feed)
    found = tables(tmp_path)
    assert list(found) == ["steps-1-3"]
    table = found["steps-1-3"]
    assert table["steps"] == [1, 3]
    of = table["kinds"]
    assert sum(of.values()) == pytest.approx(table["ms_per_step"])
    assert sum(row["ms"] for row in table["operations"]) <= table["ms_per_step"]
    assert min(of.values()) >= 0
    for kind in (
        kinds.CONVOLUTION, kinds.MATRIX, kinds.NORM, kinds.RANDOM, kinds.OPTIMIZER,
        kinds.COLLECTIVES,
    ):  # fmt: skip
        assert of[kind] > 0, kind
    assert of[kinds.UNKNOWN] == of[kinds.OTHER] == 0
    scopes = dict.fromkeys(kinds.KINDS, "")
    for row in table["operations"]:
        scopes[row["kind"]] += row["scope"]
    assert "/optimizer/" in scopes[kinds.OPTIMIZER]
    assert "/ema/" in scopes[kinds.OPTIMIZER]
    assert "norm1" in scopes[kinds.NORM]
    (place,) = (tmp_path / "profile" / "steps-1-3").glob("plugins/profile/*")
    assert (place / "perfetto_trace.json.gz").is_file()
    said = capsys.readouterr().out
    assert (place / "table.txt").read_text() in said
    assert f"trace and table are in {place}" in said


def test_profiled_steps_change_no_bit(whole_runs, tmp_path):
    """Of two programs, since a penalty runs every fourth step."""
    state = toys.train(tmp_path, "two", profiler=profiler(tmp_path, "3:2"))
    workdir, expected = whole_runs["two"]
    assert toys.same(state, expected)
    assert toys.rows(tmp_path) == toys.rows(workdir)
    assert list(tables(tmp_path)) == ["steps-3-5"]


def test_dispatches_are_traced_whole(tmp_path):
    changes = QUIET | {"log.every": 3, "checkpoint.every": 3, "train.steps_per_dispatch": 3}
    state = toys.train(tmp_path / "a", "one", changes, profiler=profiler(tmp_path / "a", "4:1"))
    assert toys.same(state, toys.train(tmp_path / "b", "one", changes))
    (table,) = tables(tmp_path / "a").values()
    assert table["steps"] == [3, 6]


def test_a_resumed_run_that_is_beyond_the_span_is_refused(tmp_path):
    changes = QUIET | {"train.steps": 2}
    toys.train(tmp_path, "one", changes)
    with pytest.raises(SettingError, match="goes on from step 2: take a START of 2 or more"):
        toys.train(tmp_path, "one", QUIET, profiler=profiler(tmp_path, "1:2"))
    toys.train(tmp_path, "one", QUIET, profiler=profiler(tmp_path, "2:1"))  # its first dispatch
    assert list(tables(tmp_path)) == ["steps-2-3"]


@pytest.mark.parametrize("text", ["5", "4:0", "3:2", "9:1"])
def test_a_wrong_span_is_refused_before_anything_is_written(tmp_path, text):
    config = ddpm_digits.get_config("smoke")  # of 4 steps
    with pytest.raises(SettingError, match=f"--profile={text}"):
        command.run(config, tmp_path / "run", profile=text)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def counted():
    """A dispatch of (number of steps done, ..., feed), and its plan: two steps each."""

    def move(active, x, feed):
        x = x + active[0] * feed.sum()
        return x, x * 2

    jitted = jax.jit(move, static_argnums=0, donate_argnums=1)
    return jitted, lambda step: ((1,), 2), jnp.zeros(()), jnp.ones((2, 3))


def test_a_run_that_stops_within_the_span_has_a_table(counted, tmp_path, capsys):
    jitted, plan, x, feed = counted
    recording = profiler(tmp_path, "3:9")
    for step in (0, 2, 4):
        x, _ = recording.run(jitted, plan, step, x, feed)
    assert not (tmp_path / "profile" / "steps-2-12").exists()
    recording.close()
    assert float(x) == 18
    assert tables(tmp_path)["steps-2-12"]["steps"] == [2, 6]
    assert "steps 2 to 6" in capsys.readouterr().out
    recording.close()  # which has nothing to do any more
    assert not capsys.readouterr().out


def test_a_run_that_never_comes_to_the_span_leaves_nothing(counted, tmp_path):
    jitted, plan, x, feed = counted
    recording = profiler(tmp_path, "3:9")
    recording.run(jitted, plan, 0, x, feed)  # after which the trace begins
    recording.close()
    assert not tables(tmp_path)


def test_a_compilation_on_disk_under_other_names_is_not_taken(counted, tmp_path):
    """Its key leaves names out, unless told otherwise; other programs are looked for as before."""
    name = "jax_compilation_cache_include_metadata_in_key"
    told = []

    class Jitted:
        def lower(self, *arguments):
            return self

        def compile(self):
            told.append(getattr(jax.config, name))
            return lambda x, feed: (x, ())

    profiler(tmp_path, "3:9").run(Jitted(), *counted[1:2], 0, *counted[2:])
    assert told == [True]
    assert getattr(jax.config, name) is False
