"""A run that diverges: stopped where it happens, its good checkpoints kept, and gone on from."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from aigc_jax import streams
from aigc_jax.runs.folder import RunMismatch
from aigc_jax.training.checkpoint import complete_steps
from aigc_jax.training.meter import PATIENCE, DivergedError, Meter
from aigc_jax.training.step import Metrics, all_finite, init_state, train_step

BARE = {"log.eval_every": 0, "log.sample_every": 0, "checkpoint.best": ""}


def metered(losses, limit=3, saved=()):
    """A meter that has read these losses; one that is None is of a skipped step."""
    said = []
    writer = types.SimpleNamespace(say=said.append, scalars=lambda *_: None)
    checkpoints = types.SimpleNamespace(wait=lambda: None, steps=lambda: list(saved), folder="RUN")
    meter, in_row = Meter(writer, 1, limit, checkpoints), 0
    meter.lap()
    for step, loss in enumerate(losses, 1):
        in_row = in_row + 1 if loss is None else 0
        row = {"net/loss": np.nan if loss is None else loss, "skipped": 0, "skipped_in_row": in_row}
        meter.add(step, Metrics(np.array([list(row.values())], np.float32), tuple(row)))
    meter.flush(len(losses))
    return meter, said


def test_a_meter_knows_since_when_a_run_is_not_sound():
    assert metered([1, 1, 1])[0].unsound_since is None
    assert metered([1, None])[0].unsound_since == 1
    assert metered([1, None, 1])[0].unsound_since is None
    assert metered([1, 1, 1e6, 1e5])[0].unsound_since == 2
    assert metered([1, 1, 1e6, None, -1e7], limit=4)[0].unsound_since == 2
    assert metered([1e6, 1e6, 1e5])[0].unsound_since is None  # large from the start
    assert metered([0.0, 500.0])[0].unsound_since is None  # losses near 0 have no scale


def test_an_explosion_that_lasts_is_said_once_and_no_checkpoint_takes_the_place_of_a_good_one():
    meter, said = metered([1] * 4 + [1e5] * 6)
    assert len(said) == 1
    assert "net/loss is 1e+05, and was around 1 before since step 5" in said[0]
    assert not meter.may_save(10, last=False)
    with pytest.raises(DivergedError, match="the last 6 steps, up to step 10"):
        meter.finish(10)


def test_one_bad_batch_is_no_divergence():
    meter, _ = metered([1, 1, None])
    assert not meter.may_save(3, last=False)
    assert meter.may_save(3, last=True)
    meter.finish(3)


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        ([1, 2, 3], "last good checkpoint is that of step 2 in RUN: the same command with --from-"),
        ([3, 4], "the first loss after step 3, the oldest that is kept, was not sound in RUN"),
        ([4], "No checkpoint from before that is kept: start anew in another --workdir"),
    ],
)
def test_the_last_good_checkpoint_is_the_one_after_which_a_loss_was_sound(saved, words):
    with pytest.raises(DivergedError, match=words):
        metered([1, 1, 1, None, None, None], saved=saved)


def test_a_run_that_ends_while_it_is_not_sound_is_not_done():
    with pytest.raises(DivergedError, match="the last 2 steps, up to step 4"):
        metered([1, 1, None, None])[0].finish(4)
    metered([1, 1, None, None], limit=0)[0].finish(4)  # as asked for


def test_all_finite_sees_every_floating_leaf_and_values_whose_squares_overflow():
    good = {"a": jnp.ones(3), "b": jnp.arange(2), "key": jax.random.key(0)}
    assert all_finite(good)
    assert all_finite({})
    for bad in (jnp.nan, jnp.inf, 1e30):
        assert not all_finite(good | {"c": jnp.full(2, bad)})


def test_averages_that_are_not_finite_are_noticed():
    recipe = toys.recipe_of(toys.FAMILIES["one"](), toys.config())
    state = init_state(recipe, *streams.init(0))
    batch = {"x": jnp.zeros((1, 16, *toys.SPEC.shape), jnp.uint8)}
    after, _ = train_step(recipe, (0,), state, {}, batch)
    assert int(after.skipped_in_row) == 0
    broken = jax.tree.map(lambda x: x * jnp.nan, state.ema)
    after, _ = train_step(recipe, (0,), state.replace(ema=broken), {}, batch)
    assert int(after.skipped_in_row) == 1


def test_a_learning_rate_that_no_run_survives_leaves_the_parameters_as_they_were(tmp_path):
    changes = {"optimizer.learning_rate": 1e30, "checkpoint.every": 1, "train.steps": 9} | BARE
    with pytest.raises(DivergedError, match="3 steps in a row up to step 3"):
        toys.train(tmp_path, changes=changes)
    assert complete_steps(tmp_path / "checkpoints") == []


def test_a_run_goes_on_from_an_earlier_checkpoint_with_another_config(tmp_path, capsys):
    often = {"checkpoint.keep": 5, "optimizer.clip": 0.0}
    toys.train(tmp_path, changes=often)
    changes = often | {"optimizer.learning_rate": 0.01, "optimizer.clip": 1.0}
    with pytest.raises(RunMismatch, match=r"learning_rate: 0.05 -> 0.01(.|\n)*--from-step=N"):
        toys.train(tmp_path, changes=changes)
    capsys.readouterr()
    state = toys.train(tmp_path, changes=changes | {"train.steps": 5}, from_step=2)
    said = capsys.readouterr().out
    assert int(state.step) == 5
    assert "resuming at step 2 of 5" in said
    assert complete_steps(tmp_path / "checkpoints") == [2, 4, 5]
    for step in (4, 6):
        assert f"superseded checkpoint of step {step} now lies in" in said
    assert len(list((tmp_path / "checkpoints-superseded").iterdir())) == 2
    steps = [row["step"] for row in toys.rows(tmp_path)]
    assert max(steps) == 5
    kept = (tmp_path / "superseded-0" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(kept[-1])["step"] == 6
    moved = sorted(p.name for p in (tmp_path / "superseded-0" / "samples").iterdir())
    assert moved == ["00000003.png", "00000006.png"]
    session = json.loads((tmp_path / "origin.json").read_text())["sessions"][-1]
    assert session["from_step"] == 2
    assert "optimizer.learning_rate: 0.05 -> 0.01" in session["changes"]
    toys.train(tmp_path, changes=changes | {"train.steps": 6})  # the new config is the run's
    capsys.readouterr()
    toys.train(tmp_path, changes=changes | {"train.steps": 7}, from_step=2)  # as a scheduler does
    assert "resuming at step 6 of 7" in capsys.readouterr().out


def test_from_step_needs_a_checkpoint_of_that_step(tmp_path, whole_runs):
    with pytest.raises(RuntimeError, match="no checkpoint of step 3"):
        toys.train(tmp_path, changes={}, from_step=3)
    assert not list(tmp_path.iterdir())


def test_a_finite_explosion_ends_a_run_in_the_end():
    losses = [1.0] * 3 + [1e5] * (PATIENCE * 2 - 1)
    metered(losses, limit=2)
    with pytest.raises(DivergedError, match=r"net/loss is 1e\+05, .* since step 4, for 100 steps"):
        metered([*losses, 1e5], limit=2)
    metered([*losses, 1e5], limit=0)
