"""Frozen networks: arguments of the compiled step, in no checkpoint, known there by digest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from aigc_jax.family import Phase, View
from aigc_jax.training import sharding
from aigc_jax.training.checkpoint import CheckpointError, Checkpoints

QUIET = {"log.eval_every": 0, "log.sample_every": 0, "checkpoint.best": ""}


def taught(scale: float, opened: list | None = None):
    """The toy of one player that learns from a frozen teacher too, whose weights are `scale`."""
    made = toys.one_player()

    def loss(view: View, batch, key):
        value, aux = made.phases[0].loss(view, batch, key)
        bias = view.params["net"][-1]["bias"]
        return value + jnp.mean((bias - view.constants["teacher"]["w"]) ** 2), aux

    def constants():
        if opened is not None:
            opened.append(scale)
        return {"teacher": {"w": np.full(toys.PIXELS, scale, np.float32)}}

    return made._replace(phases=(Phase("net", loss),), constants=constants)


def test_a_run_learns_from_a_frozen_network_that_its_checkpoints_do_not_hold(tmp_path):
    changes = QUIET | {"train.steps": 40, "checkpoint.every": 0, "log.eval_every": 40}
    state = toys.train(tmp_path, taught(3.0), changes | {"checkpoint.best": "test/error"})
    bias = np.asarray(state.params["net"][-1]["bias"])
    assert bias.mean() > 0.5  # drawn to the teacher's 3
    abouts = []
    for folder in ("checkpoints", "best"):
        checkpoints = Checkpoints(tmp_path / folder)
        abouts.append(checkpoints.about(40))
        checkpoints.close()
    about, best = abouts
    assert list(about["constants"]) == ["teacher"]
    assert not any("teacher" in name for name in about["digest"])
    assert {name: best[name] for name in about} == about  # the best says of itself what others do


def test_a_run_goes_on_with_the_same_network_and_is_refused_with_another(tmp_path):
    steps = {"train.steps": 2, "checkpoint.every": 2} | QUIET
    toys.train(tmp_path, taught(3.0), steps)
    opened = []
    with pytest.raises(CheckpointError, match=r"other weights of its frozen network teacher"):
        toys.train(tmp_path, taught(4.0), steps | {"train.steps": 4})
    with pytest.raises(CheckpointError, match="teacher"):
        toys.train(tmp_path, toys.one_player(), steps | {"train.steps": 4})
    state = toys.train(tmp_path, taught(3.0, opened), steps | {"train.steps": 4})
    assert int(state.step) == 4
    assert opened == [3.0]  # read once


def test_frozen_networks_are_arguments_laid_out_like_the_state(monkeypatch):
    monkeypatch.setattr(sharding, "MIN_SPLIT_SIZE", 8)
    mesh, family = sharding.make_mesh(), taught(2.0)
    placed = sharding.place(family.constants(), mesh, "fsdp")
    assert not placed["teacher"]["w"].sharding.is_fully_replicated
    plan = toys.recipe_of(family, toys.config())
    target = sharding.abstract_state(plan, mesh, "fsdp")
    step = sharding.compile_steps(plan, mesh, target, placed)
    batch = {"x": jax.ShapeDtypeStruct((1, 1, 16, 4, 4, 1), np.uint8)}
    lowered = step.lower((0,), target, placed, {}, batch)
    text = lowered.as_text()
    assert "2.000000e+00> : tensor<16xf32>" not in text  # no constant of the program
    arguments = len(jax.tree.leaves((target, placed, batch)))
    assert text.split("func.func public @main(")[1].split(") ->")[0].count("%arg") == arguments
