"""Two processes or four train as one: same numbers, also where one is killed or asked to stop."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import processes
import pytest
import toys
from PIL import Image

from aigc_jax.runs import lock


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder of the runs, what became of their processes)."""
    root = tmp_path_factory.mktemp("processes")
    script = str(pathlib.Path(processes.__file__))
    done = subprocess.run([sys.executable, script, str(root)], capture_output=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return root, json.loads((root / "outcomes.json").read_text())


@pytest.fixture
def ends(made):
    """{run: [(exit code, what was said) of each process]}."""
    return {
        name: [(end["code"], end["said"]) for end in run] for name, run in made[1]["runs"].items()
    }


def codes(ended):
    return [code for code, _ in ended]


def test_two_processes_train_save_and_draw_as_one(made, ends, whole_runs):
    workdir, (whole, state) = made[0] / "two", whole_runs["one"]
    assert codes(ends["two"]) == [0, 0], ends["two"]
    (_, first), (_, second) = ends["two"]
    assert "on 4 cpu device(s)" in first
    assert "step 6/6" in first
    assert "step 6/6" not in second  # the first process speaks for all
    close(toys.saved(workdir, 6), state)
    rows_are_close(toys.rows(workdir), toys.rows(whole))
    pictures = [w / "samples" / "00000006.png" for w in (workdir, whole)]
    ours, theirs = (np.asarray(Image.open(picture), int) for picture in pictures)
    assert np.abs(ours - theirs).max() <= 1
    for folder in ("checkpoints", "best"):
        names = sorted(p.name for p in (workdir / folder).iterdir())
        assert names == sorted(p.name for p in (whole / folder).iterdir())


def test_processes_find_out_what_they_do_not_share(ends):
    for _, said in ends["two"]:
        assert "on all: True False" in said  # what only one of them found is not there for all
        assert "from the first: 0007" in said
        assert "same is the same" in said
        assert "other the 2 processes of this run differ in this: start the same" in said


def test_where_one_is_killed_the_others_say_so_and_all_go_on_to_the_same_bits(made, ends):
    root, found = made
    (code, said), (killed, _) = ends["killed"]
    assert killed == -9
    assert code in (1, -6), said  # as an error of Gloo's, or XLA has aborted it
    assert "another process of this run has ended" in said.splitlines()[-1]
    assert found["left"] == [2, 4]
    assert codes(ends["resumed"]) == [0, 0], ends["resumed"]
    assert "resuming at step 4 of 6" in ends["resumed"][0][1]
    for step in (4, 6):
        assert toys.same(toys.saved(root / "killed", step), toys.saved(root / "two", step))
    both = [
        [row for row in toys.rows(root / run) if "net/loss" in row] for run in ("killed", "two")
    ]
    assert len(both[0]) == 6
    assert both[0] == both[1]


def test_a_signal_to_one_of_four_makes_all_save_at_one_step_and_two_go_on(made, ends, tmp_path):
    workdir, found = made[0] / "stopped", made[1]
    assert codes(ends["stopped"]) == [75] * 4, ends["stopped"]
    (step,) = found["saved"]
    assert 3 < step < 2000
    assert f"stopped at step {step}; the same command goes on from" in ends["stopped"][0][1]
    assert codes(ends["continued"]) == [0, 0], ends["continued"]
    changes = {**processes.LONG, "train.steps": found["steps"]}
    close(toys.saved(workdir, found["steps"]), toys.train(tmp_path, changes=changes))
    rows_are_close(toys.rows(workdir), toys.rows(tmp_path))


def close(a, b):
    """Whether two trees agree but for the order of sums."""
    for x, y in zip(toys.arrays(a), toys.arrays(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def rows_are_close(ours, theirs):
    assert [row.keys() for row in ours] == [row.keys() for row in theirs]
    for our, their in zip(ours, theirs, strict=True):
        assert our == pytest.approx(their, rel=1e-5, abs=1e-6)


def test_a_process_that_does_not_see_the_folder_of_the_first_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0.1)
    with lock.owned(tmp_path / "run"):
        lock.check_shared(tmp_path / "run")
        with pytest.raises(ValueError, match=r"does not see .*elsewhere, which the first process"):
            lock.check_shared(tmp_path / "elsewhere")
