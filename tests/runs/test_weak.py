"""Autoguidance by another checkpoint: which one, of which model, and what it changes."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from runs.test_weights import SPEC, random_run, smoke

from aigc_jax.commands import common, sample, validation
from aigc_jax.runs import folder as folders
from aigc_jax.runs import model as models
from aigc_jax.runs import weak
from aigc_jax.runs.evaluations import check_sampling, plan
from aigc_jax.training import sharding
from aigc_jax.training.checkpoint import Checkpoints

FAST = {"sampler": "ddim", "steps": 3}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(a run, the weights of its checkpoint of step 0); that of step 1 has others."""
    folder, state = random_run(tmp_path_factory.mktemp("runs") / "plain", smoke())
    checkpoints = Checkpoints(folder / "checkpoints")
    later = replace(state, ema=jax.tree.map(lambda leaf: 1.1 * leaf, state.ema))
    later = sharding.place(later, sharding.make_mesh())
    checkpoints.save(1, later, {"config": folders.read(folder, "config.json")})
    checkpoints.wait()
    checkpoints.close()
    return folder, state


def test_an_earlier_checkpoint_is_a_constant_beside_the_parameters(run):
    folder, state = run
    settings = FAST | {"autoguidance": 2.0, "weak": f"{folder}@0"}
    config, words = common.with_sampling(folder, None, settings)
    model = models.load(folder, config, dtype="bfloat16")
    half = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), state.ema["net"])
    jax.tree.map(np.testing.assert_array_equal, model.variables.constants["weak"]["net"], half)
    assert model.step == 1
    assert model.family.drawing.calls == 6
    assert words[2:] == ["autoguidance_2.0", f"weak_{weak.word(f'{folder}@0')}"]
    assert "/" not in "".join(words)


def test_samples_are_led_away_from_the_weak_checkpoint(run, tmp_path):
    def drawn(name, **settings):
        path = sample.run(
            run[0], count=2, save="npz", output=tmp_path / name, settings=FAST | settings
        )
        return np.load(path.with_suffix(".npz"))["x"].astype(int)

    plain = drawn("plain")
    same = drawn("same", autoguidance=3.0, weak=str(run[0]))  # itself: there is no way from it
    other = drawn("other", autoguidance=3.0, weak=f"{run[0]}@0")
    assert np.abs(same - plain).max() <= 1
    assert np.abs(other - plain).max() > 5


def test_the_newest_checkpoint_is_named_by_its_step(run):
    assert weak.resolved(str(run[0])) == weak.resolved(f"{run[0]}@1") == f"{run[0]}@1"


def test_a_run_whose_name_holds_an_at_sign_is_taken_whole(run, tmp_path):
    (tmp_path / "a@3").symlink_to(run[0])
    assert weak.resolved(str(tmp_path / "a@3")) == f"{tmp_path}/a@3@1"
    assert weak.resolved(str(tmp_path / "a@3@0")) == f"{tmp_path}/a@3@0"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("RUN@7", r"@7: no such checkpoint \(there are: 0, 1\)"),
        ("RUN/none@3", "no run in .*/none; give a run's folder, or RUN@STEP"),
        ("RUN/best", r"no such checkpoint \(there are: none\)"),
    ],
)
def test_a_weak_model_that_is_not_there(run, source, words):
    source = source.replace("RUN", str(run[0]))
    with pytest.raises(FileNotFoundError, match=words):
        common.with_sampling(run[0], None, {"autoguidance": 2.0, "weak": source})


def test_another_model_is_refused_by_all_that_differs(run, tmp_path):
    config = folders.read(run[0], "config.json")
    config["network"] |= {"width": 16, "dropout": 0.3}
    config["diffusion"] |= {"prediction": "v", "conditional": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "spec.json").write_bytes((run[0] / "spec.json").read_bytes())
    sampling = {"autoguidance": 2.0, "weak": str(tmp_path)}
    config = folders.read(run[0], "config.json")
    config["sampling"] |= sampling
    with pytest.raises(ValueError, match=r"no weaker version of this model") as caught:
        models.outline(run[0], config)
    told = str(caught.value).partition("model: ")[2].split("; ")
    assert sorted(told) == [
        "diffusion.conditional: False here, True there",
        "diffusion.prediction: eps here, v there",
        "network.width: 8 here, 16 there",
    ]


def test_training_has_no_weak_model():
    config = smoke(**{"sampling.autoguidance": 2.0, "sampling.weak": "RUN"})
    with pytest.raises(ValueError, match=r"weak guides .* to --mode=sample or evaluate"):
        validation.validate(config.to_dict(), SPEC)


def test_an_evaluation_has_no_weak_model_of_its_own():
    config = smoke().to_dict()
    own = {"fid": {"sampling": {"autoguidance": 2.0, "weak": "RUN"}}}
    planned = plan(own, config["evaluation"])
    with pytest.raises(ValueError, match=r"one weak model serves all evaluations"):
        check_sampling(planned, config["sampling"], common.rebuilder(config, SPEC))
