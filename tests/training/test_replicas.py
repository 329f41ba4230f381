"""Several runs in one program: each is the run that it would be alone."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.commands import together, train
from aigc_jax.commands.variants import Cell, cells
from aigc_jax.errors import SettingError
from aigc_jax.training import replicas
from aigc_jax.training.checkpoint import Checkpoints
from configs import gan_mixture, vae_digits
from configs.bases.ablation import ablation

STEPS = 20


def two_of_each(workdir, base, steps=STEPS, **variants):
    """Cells of an ablation with seeds 0 and 1, by SGD."""
    with base.unlocked():
        base.train.steps = steps
        base.optimizer.update({"name": "sgd", "learning_rate": 0.005, "schedule": "constant"})
        base.log.update({"every": 10, "eval_every": 0, "sample_every": 0})
        base.checkpoint.update({"every": STEPS // 2, "best": ""})
    return cells(ablation(base, variants, seeds=2, metrics=("test/loss",)), workdir)


CASES = {
    "gan": (gan_mixture, {"gan.penalty.weight": 0.7, "optimizer.learning_rate": 0.002}),
    "vae": (vae_digits, {"vae.kl.beta": 3.0, "ema.half_life": 500.0}),
}


@pytest.mark.parametrize("name", CASES)
def test_each_replica_is_its_run_alone(name, tmp_path):
    module, changed = CASES[name]
    for steps in (STEPS // 2, STEPS):  # the second time they go on from their checkpoints
        base = module.get_config("smoke")
        found = two_of_each(tmp_path / "together", base, steps, other=changed)
        (group,) = together.groups(found)
        assert group == found
        assert together.fit(group, {}) == (steps, {})
    leaves = set()
    for cell in found[1:3]:  # of each variant, and of each seed
        state = train.run(cell.config, tmp_path / "alone" / cell.name)
        checkpoints = Checkpoints(cell.folder / "checkpoints", keep=2)
        ours, step = checkpoints.restore(state)
        checkpoints.close()
        assert step == STEPS
        assert jnp.array_equal(jax.random.key_data(ours.key), jax.random.key_data(state.key))
        for a, b in zip(*map(plain, (ours, state)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
        rows = [json.loads(line) for line in (cell.folder / "metrics.jsonl").open()]
        assert [row["step"] for row in rows] == [10, 20]
        assert rows[-1]["time/replicas"] == 4
        leaves.add(plain(ours)[0].tobytes())
    assert len(leaves) == 2


def plain(state):
    return jax.tree.leaves(jax.device_get((state.params, state.ema, state.opt)))


def test_what_decides_the_program_parts_a_group(tmp_path):
    """A penalty of weight 0 is not computed at all, a clip of 0 neither."""
    base = gan_mixture.get_config("smoke")
    changed = {"optimizer.clip": 0.5, "optimizer.learning_rate": 0.1}
    wider = {"network.generator.hidden": (8,)}
    found = two_of_each(tmp_path, base, clip=changed, wide=wider, fast={"ema.half_life": 9.0})
    names = [[cell.name for cell in group] for group in together.groups(found)]
    assert names == [
        ["base/seed_0", "base/seed_1", "fast/seed_0", "fast/seed_1"],
        ["clip/seed_0", "clip/seed_1"],
        ["wide/seed_0", "wide/seed_1"],
    ]


def test_runs_at_other_steps_are_trained_apart_and_nothing_is_done_twice(tmp_path, monkeypatch):
    found = two_of_each(tmp_path, gan_mixture.get_config("smoke"))
    monkeypatch.setattr(Cell, "done", lambda cell: 10 * cell.seed)
    assert [[cell.seed for cell in group] for group in together.groups(found)] == [[0], [1]]


def test_other_shapes_are_refused_by_name():
    a = {"net": {"kernel": jnp.zeros((3, 4))}}
    b = {"net": {"kernel": jnp.zeros((3, 5))}}
    with pytest.raises(SettingError, match=r"one and two differ in the shape of .*kernel") as told:
        replicas.check_shapes({"one": a, "two": b})
    assert "[3, 4] and float32[3, 5]" in str(told.value)
    assert "use separate runs" in str(told.value)
    replicas.check_shapes({"one": a, "two": a})


@pytest.mark.parametrize(("count", "most", "used"), [(8, 8, 8), (8, 3, 2), (5, 4, 1), (1, 8, 1)])
def test_replicas_lie_evenly_on_devices(count, most, used):
    assert replicas.devices(count, most) == used
