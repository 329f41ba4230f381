"""Killed and resumed = uninterrupted, bit for bit; what may change when a run goes on."""

import math
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import toys

from aigc_jax.runs.folder import RunMismatch, check_same, differences, identity, write_spec

KILLS = ("step:5", "save:4", "saved:4")
SMOKE = (
    "--config=configs/ddpm_digits.py:smoke",
    "--config.network.multipliers=(1,)",  # compiles in half the time
    "--config.optimizer.schedule=constant",
    "--config.log.eval_every=0",
    "--config.log.sample_every=0",
    "--config.checkpoint.every=1000000",
    "--config.evaluation.at_end=False",
)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """{where: workdir} of runs that were killed there, as `kill -9` does."""
    root = tmp_path_factory.mktemp("killed")
    folders = {where: root / where.replace(":", "-") for where in KILLS}
    with ThreadPoolExecutor(2) as pool:
        runs = pool.map(
            lambda item: toys.run("two", str(item[1]), f"die={item[0]}"), folders.items()
        )
        for run in runs:
            assert run.returncode == -signal.SIGKILL, run.stderr
    return folders


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("where", "complete", "start"),
    [("step:5", ["00000002", "00000004"], 4), ("save:4", ["00000002"], 2), ("saved:4", None, 4)],
)
def test_killed_and_resumed_is_the_uninterrupted_run(
    killed, whole_runs, capsys, where, complete, start
):
    workdir = killed[where]
    found = sorted(p.name for p in (workdir / "checkpoints").iterdir())
    half = [name for name in found if "tmp" in name]
    assert bool(half) == where.startswith("save:")  # it died while the temporary folder was there
    if complete:
        assert [name for name in found if name not in half] == complete
    state = toys.train(workdir, "two")
    assert f"resuming at step {start} of 6" in capsys.readouterr().out

    whole, expected = whole_runs["two"]
    assert toys.same(state, expected)
    assert toys.rows(workdir) == toys.rows(whole)
    for step in (4, 6):
        assert toys.same(toys.saved(workdir, step, "two"), toys.saved(whole, step, "two"))
    assert files(workdir / "samples") == files(whole / "samples")
    for folder in ("checkpoints", "best"):
        names = sorted(p.name for p in (workdir / folder).iterdir())
        assert names == sorted(p.name for p in (whole / folder).iterdir())  # no half ones either


def test_a_finished_run_says_so_and_changes_nothing(tmp_path, capsys):
    state = toys.train(tmp_path, changes={"train.steps": 2})
    before = files(tmp_path)
    capsys.readouterr()
    again = toys.train(tmp_path, changes={"train.steps": 2})
    assert "nothing to do, this run has done 2 of 2 steps" in capsys.readouterr().out
    assert toys.same(state, again)
    toys.train(tmp_path, changes={"train.steps": 1})
    assert "nothing to do, this run has done 2 of 1 steps" in capsys.readouterr().out
    assert files(tmp_path) == before


def test_a_longer_run_of_the_same_config_goes_on(tmp_path, whole_runs):
    toys.train(tmp_path, changes={"train.steps": 2, "log.every": 2, "sampling.steps": 5})
    assert toys.same(toys.train(tmp_path), whole_runs["one"][1])


def test_a_config_that_changes_the_result_is_refused_with_its_keys(tmp_path, whole_runs):
    workdir, _ = whole_runs["one"]
    before = files(workdir)
    changes = {"train.batch_size": 32, "optimizer.learning_rate": 1.0, "seed": 1, "log.every": 5}
    with pytest.raises(RunMismatch) as error:
        toys.train(workdir, changes=changes)
    listed = re.findall(r"^  (\S+): (.*)$", str(error.value), re.MULTILINE)
    assert listed == [
        ("optimizer.learning_rate", "0.05 -> 1.0"),
        ("seed", "0 -> 1"),
        ("train.batch_size", "16 -> 32"),
    ]
    assert files(workdir) == before


def test_a_run_killed_before_its_first_checkpoint_keeps_its_best_from_another(whole_runs, tmp_path):
    workdir = shutil.copytree(whole_runs["one"][0], tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints")
    with pytest.raises(RunMismatch, match=r"\n  seed: 0 -> 1\n"):
        toys.train(workdir, changes={"seed": 1})


def test_a_section_that_is_empty_differs_from_one_that_is_not_there():
    assert differences({"a": {}}, {}) == ["a: {} -> (absent)"]
    assert differences({"a": {}}, {"a": {"b": 1}}) == ["a: {} -> (absent)", "a.b: (absent) -> 1"]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_more_steps_are_refused_only_where_the_schedule_follows_them(
    whole_runs, tmp_path, schedule
):
    from configs import ddpm_digits

    config = ddpm_digits.get_config("smoke").unlock()
    config.optimizer.schedule = schedule
    (tmp_path / "config.json").write_text(config.to_json())
    write_spec(tmp_path, toys.SPEC)
    config.train.steps = 8
    if schedule == "constant":
        check_same(tmp_path, config)
    else:
        with pytest.raises(RunMismatch, match=r"\n  optimizer.decay_steps: 4 -> 8\n"):
            check_same(tmp_path, config)


def launch(workdir, *settings):
    command = [sys.executable, "launch.py", *SMOKE, f"--workdir={workdir}", *settings]
    return subprocess.Popen(
        command,
        cwd=toys.ROOT,
        env=toys.environment(1),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves_in_peace_and_the_same_command_resumes(tmp_path, number):
    run = launch(tmp_path, "--config.train.steps=1000000")
    for line in run.stdout:
        if line.startswith("step 4/"):
            run.send_signal(number)
            break
    said, _ = run.communicate(timeout=60)
    assert run.returncode == 75, said
    stopped = int(re.search(r"stopped at step (\d+); the same command", said)[1])
    assert "Traceback" not in said
    run = launch(tmp_path, f"--config.train.steps={stopped + 2}")
    said, _ = run.communicate(timeout=60)
    assert run.returncode == 0, said
    assert f"resuming at step {stopped} of {stopped + 2}" in said
    assert f"done: step {stopped + 2}" in said
    steps = [row["step"] for row in toys.rows(tmp_path)]
    assert steps == sorted(set(steps))
    assert steps[-1] == stopped + 2


def test_a_run_goes_on_with_the_data_that_it_began_with(tmp_path):
    def data(size):
        identity = {"size": size, "digest": f"of {size}"}
        return toys.dataset()._replace(
            identity={"name": "toy", "classes": 0, "names": (), "splits": {"train": identity}}
        )

    short = {"train.steps": 2, "log.eval_every": 0, "log.sample_every": 0, "checkpoint.best": ""}
    toys.train(tmp_path, changes=short, data=data(64))
    toys.train(tmp_path, changes=short | {"train.steps": 3}, data=data(64))
    more = short | {"train.steps": 4}
    with pytest.raises(RunMismatch, match=r"\n  train: 65 examples here, 64 in the run\n"):
        toys.train(tmp_path, changes=more, data=data(65))
    toys.train(tmp_path, changes=more, data=data(65), from_step=3)
    toys.train(tmp_path, changes=short | {"train.steps": 5}, data=data(65))


def test_a_run_whose_identity_is_lost_keeps_that_of_its_checkpoints(tmp_path):
    short = {"train.steps": 2, "log.eval_every": 0, "log.sample_every": 0, "checkpoint.best": ""}
    toys.train(tmp_path, changes=short)
    before = identity(tmp_path)["run"]
    (tmp_path / "identity.json").unlink()
    toys.train(tmp_path, changes=short | {"train.steps": 3})
    assert identity(tmp_path)["run"] == before


def test_samples_by_another_config_are_set_aside_where_their_names_would_be_the_same(tmp_path):
    short = {"train.steps": 2, "log.eval_every": 0, "log.sample_every": 0, "checkpoint.best": ""}
    toys.train(tmp_path, changes=short)
    (tmp_path / "generated").mkdir()
    (tmp_path / "generated" / "step00000002-seed0-n1.png").touch()
    toys.train(tmp_path, changes=short | {"train.steps": 3})
    assert (tmp_path / "generated").is_dir()
    toys.train(tmp_path, changes=short | {"train.steps": 4, "sampling.steps": 5})
    assert not (tmp_path / "generated").exists()
    assert (tmp_path / "superseded-0" / "generated" / "step00000002-seed0-n1.png").is_file()


def test_a_value_that_is_no_number_equals_itself():
    assert differences({"a": math.nan}, {"a": math.nan}) == []
    assert differences({"a": math.nan}, {"a": 1.0}) == ["a: nan -> 1.0"]
