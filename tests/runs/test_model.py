"""A model without its trainer: what is read, in which precision, and what was prepared for it."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import toys

from aigc_jax.family import Codec
from aigc_jax.runs import folder as folders
from aigc_jax.runs import model as models
from aigc_jax.training import checkpoint, sharding

QUIET = {"log.eval_every": 0, "log.sample_every": 0, "checkpoint.best": "", "train.steps": 2}


def test_only_what_samples_need_is_read(whole_runs, monkeypatch):
    asked, read = [], checkpoint._read_partially

    def watched(folder, target):
        asked.append(target)
        return read(folder, target)

    monkeypatch.setattr(checkpoint, "_read_partially", watched)
    workdir, state = whole_runs["two"]
    variables, _, step = models.restore(workdir, toys.two_players())
    assert step == 6
    (target,) = asked
    assert {name: set(part) for name, part in target.items()} == {
        "params": {"discriminator"},
        "ema": {"generator"},
        "extra": {"mean"},  # the critic's running mean belongs to training
    }
    expected = {"discriminator": state.params["discriminator"], "generator": state.ema["generator"]}
    assert toys.same(variables.params, expected)
    assert toys.same(variables.extra["mean"], state.extra["mean"])
    raw, _, step = models.restore(workdir, toys.two_players(), 4, raw=True)
    assert step == 4
    assert toys.same(raw.params, toys.saved(workdir, 4, "two").params)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(whole_runs, tmp_path, capsys):
    import shutil

    copy = shutil.copytree(whole_runs["one"][0], tmp_path / "run")
    for path in (copy / "checkpoints" / "00000006" / "state" / "d").iterdir():
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
    variables, _, step = models.restore(copy, toys.one_player())
    assert step == 4
    assert toys.same(variables.params["net"], toys.saved(copy, 4).ema["net"])
    assert "passed over" in capsys.readouterr().out


def test_a_cast_changes_floating_leaves_alone():
    tree = {"w": jnp.ones(3), "n": jnp.arange(3)}
    cast = models.cast(tree, jnp.bfloat16)
    assert (cast["w"].dtype, cast["n"].dtype) == (jnp.bfloat16, jnp.int32)


def preparing(calls):
    """The toy of one player whose samples need the mean of its codes."""
    made = toys.one_player()

    def prepare(variables, codes):
        calls.append(variables)
        return {"mean code": codes()["mean"].mean(0), "bias": variables.params["net"][-1]["bias"]}

    codec = Codec(lambda variables, batch: {"mean": toys.flat(batch)}, None, lambda codes: ({}, ""))
    drawing = made.drawing._replace(prepare=prepare, prepared_as="mean code", fitted=True)
    return made._replace(drawing=drawing, codec=codec)


def test_what_is_prepared_is_stored_with_the_checkpoint_and_needs_no_data(tmp_path):
    calls = []
    state = toys.train(tmp_path, preparing(calls), QUIET)
    assert len(calls) == 1  # one checkpoint
    train = toys.dataset().sources["train"].x.astype(np.float32) / 127.5 - 1
    family = preparing(calls)
    variables, stored, _ = models.restore(tmp_path, family)
    assert stored[0] == "mean code"
    variables = models.with_prepared(family, variables, stored, None)
    assert len(calls) == 1  # read, not computed
    mean = variables.prepared["mean code"]
    np.testing.assert_allclose(mean, train.reshape(len(train), -1).mean(0), atol=1e-5)
    assert toys.same(variables.prepared["bias"], state.ema["net"][-1]["bias"])


def test_what_was_prepared_on_many_devices_is_read_on_one(tmp_path, monkeypatch):
    """Also of a checkpoint of before, whose arrays know the devices that they were on."""
    program = """if True:
        import pathlib, sys
        sys.path.insert(0, "tests")
        import toys
        from aigc_jax.runs import model
        for workdir in sys.argv[1:]:
            _, stored, step = model.restore(pathlib.Path(workdir), toys.one_player())
            print(step, stored[0], stored[1]["bias"].shape)
    """
    runs = [tmp_path / "new", tmp_path / "old"]
    for workdir in runs:
        if workdir.name == "old":
            monkeypatch.setattr(sharding, "fetch", lambda tree: tree)
        toys.train(workdir, preparing([]), QUIET)
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, runs)],
        env=toys.environment(1), cwd=toys.ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.splitlines() == [f"2 mean code ({toys.PIXELS},)"] * 2, done.stderr
    assert "_CHECKPOINT_METADATA" not in done.stderr


def test_what_was_prepared_otherwise_or_for_averages_is_computed_anew(tmp_path):
    calls = []
    toys.train(tmp_path, preparing(calls), QUIET)
    family = preparing(calls)
    renamed = family._replace(drawing=family.drawing._replace(prepared_as="of other settings"))
    given = {"mean": np.ones((4, toys.PIXELS), np.float32)}
    for made, raw in ((renamed, False), (family, True)):
        variables, stored, _ = models.restore(tmp_path, made, raw=raw)
        calls.clear()
        assert models.with_prepared(made, variables, stored, None).prepared == {}  # no data
        found = models.with_prepared(made, variables, stored, lambda *_: given)
        np.testing.assert_array_equal(found.prepared["mean code"], np.ones(toys.PIXELS))
        assert toys.same(found.prepared["bias"], variables.params["net"][-1]["bias"])
        assert len(calls) == 1


def test_a_run_of_an_earlier_version_says_so_in_one_line(tmp_path):
    old = {"image_shape": [8, 8, 1], "num_classes": 10, "splits": {"train": 9}}
    (tmp_path / "spec.json").write_text(str(old).replace("'", '"'))
    (tmp_path / "config.json").write_text('{"family": "vae"}')
    with pytest.raises(
        ValueError, match=r"earlier version.*train it again.*commit 075cb69"
    ) as told:
        folders.read_spec(tmp_path)
    assert len(str(told.value).splitlines()) == 1
    with pytest.raises(ValueError, match="earlier version"):
        folders.check_same(tmp_path, {"family": "vae"})


@pytest.mark.parametrize("name", ["config.json", "spec.json", "identity.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\0", '{"fields": 3}', '{"fields": {}}'])
def test_a_damaged_file_of_a_run_is_told_in_one_line(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    read = {"spec.json": folders.read_spec, "identity.json": folders.identity}
    read = read.get(name, lambda place: folders.read(place, name))
    if name == "identity.json" and len(text) > 4:
        return  # any keys are its own
    with pytest.raises(ValueError, match=f"{name} is damaged .*: restore it") as caught:
        read(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_of_a_run_that_is_gone_is_told(tmp_path):
    folders.write_spec(tmp_path, toys.dataset().spec)
    with pytest.raises(FileNotFoundError, match=r"config.json is not there, or no file"):
        folders.read(tmp_path, "config.json")


def test_weights_of_another_family_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "_learned", lambda _: ({}, {}, {"family": "gan"}, 0))
    with pytest.raises(ValueError, match="of family 'gan', this config of 'vae'"):
        models.initial(tmp_path, {"family": "vae"}, toys.one_player(), toys.dataset().spec)


def test_a_spec_is_read_as_it_was_written(tmp_path):
    plain = toys.dataset().spec
    named = plain._replace(conditions={"label": toys.LABEL._replace(names=("cat", "dog"))})
    for spec in (plain, named):
        folders.write_spec(tmp_path, spec)
        assert folders.read_spec(tmp_path) == spec
        assert ("names" in (tmp_path / "spec.json").read_text()) == (spec is named)


def test_weights_from_elsewhere_have_no_steps_to_choose_from(tmp_path):
    config = {"init_from": "elsewhere", "family": "gan"}
    for given in ({"step": 3}, {"raw": True}, {"best": True}, {"ema": 5000}):
        with pytest.raises(ValueError, match=r"leave --step, --best, --raw and --ema out"):
            models.load(tmp_path, config, **given)


def test_the_best_checkpoint_is_taken_by_name_or_by_its_step(tmp_path):
    """Its step may be gone from the newest ones."""
    changes = {"train.steps": 3, "checkpoint.every": 3, "log.eval_every": 1, "log.sample_every": 0}
    toys.train(tmp_path, changes=changes | {"checkpoint.best_mode": "max"})
    (name,) = (path.name for path in (tmp_path / "best").iterdir())
    best = int(name)
    assert best < 3  # else this test shows nothing
    family = toys.one_player()
    newest = models.load(tmp_path, family=family)
    found = models.load(tmp_path, best=True, family=family)
    by_step = models.load(tmp_path, step=best, family=family)
    assert (newest.named, found.named) == ("step 3", f"step {best} (the best)")
    assert by_step.step == best
    assert toys.same(found.variables.params, by_step.variables.params)
    assert not toys.same(found.variables.params, newest.variables.params)
    with pytest.raises(ValueError, match=r"--best and --step=3 name two checkpoints"):
        models.load(tmp_path, best=True, step=3, family=family)
    with pytest.raises(
        ValueError, match=r"best holds the best checkpoint of a run: say --workdir="
    ):
        models.load(tmp_path / "best", family=family)
    assert folders.run_of(tmp_path / "best") == (tmp_path, True)
    assert folders.run_of(tmp_path) == (tmp_path, False)
    assert folders.run_of(tmp_path / "checkpoints") is None
    (tmp_path / "best").rename(tmp_path / "away")
    with pytest.raises(
        FileNotFoundError, match=r"no best checkpoint in .*: .*checkpoint\.best names"
    ):
        models.load(tmp_path, best=True, family=family)


def test_a_run_does_not_go_on_with_a_class_more(whole_runs):
    workdir, data = whole_runs["one"][0], toys.dataset()
    label = data.spec.conditions["label"]._replace(classes=3)
    more = data._replace(spec=data.spec._replace(conditions={"label": label}))
    with pytest.raises(folders.RunMismatch, match=r"3 classes here, 2 in the run"):
        toys.train(workdir, changes={"train.steps": 9}, data=more)


def test_data_of_other_classes_or_shapes_are_told_in_words(tmp_path):
    spec = toys.dataset().spec
    folders.write_spec(tmp_path, spec)
    folders.check_same_spec(tmp_path, spec._replace(sizes={"train": 7}))
    label = spec.conditions["label"]
    more = spec._replace(conditions={"label": label._replace(classes=3)})
    with pytest.raises(
        folders.RunMismatch, match=r"other data: 3 classes here, 2 in the run\. Give"
    ):
        folders.check_same_spec(tmp_path, more)
    larger = spec._replace(fields={"x": spec.fields["x"]._replace(shape=(8, 8, 1))}, conditions={})
    words = r"x is image of 8x8x1 here, image of 4x4x1 in the run; 0 classes here, 2 in the run"
    with pytest.raises(folders.RunMismatch, match=words):
        folders.check_same_spec(tmp_path, larger)


def test_a_place_without_checkpoints_is_an_error_that_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoints in .*: train first"):
        models.restore(tmp_path, toys.one_player())
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
        models.restore(tmp_path, toys.one_player())
