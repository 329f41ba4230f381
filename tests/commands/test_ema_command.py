"""Averages by command: of other half-lives, and of any length made of a run's snapshots."""

import json

import pytest
from PIL import Image

from aigc_jax.training.checkpoint import complete_steps

# Flags of --mode=ema, and what is said of them.
REFUSED = [
    ([], "give --sigma-rel=0.07, or several"),
    (["--sigma-rel=0.07", "--sigma-rels=0.1"], "give --sigma-rel=0.07, or several"),
    (["--sigma-rels=0.1,x"], "--sigma-rels are numbers"),
    (["--sigma-rel=0.3"], "a sigma_rel is above 0 and at most 0.288, not 0.3"),
    (["--sigma-rel=nan"], "a sigma_rel is above 0 and at most 0.288, not nan"),
    (["--sigma-rel=0.005"], "8 snapshots of widths 0.05, 0.1 make no average"),
    (["--sigma-rel=0.1", "--metric=fd_digit"], "fd_digits, not 'fd_digit'; did you mean"),
    (["--sigma-rel=0.1", "--step=5"], "no checkpoint of step 5"),
]


@pytest.fixture
def folder(launch, tmp_path, capsys):
    """A run of seconds that keeps another average and snapshots, and judges one on its schedule."""
    folder = tmp_path / "run"
    launch(
        "--config=configs/vae_digits.py:smoke",
        f"--workdir={folder}",
        "--config.train.steps=8",
        "--config.log.eval_every=8",
        "--config.evaluation.scheduled_count=20",
        "--config.evaluations={'fid': {}, 'short': {'metric': 'fid', 'ema': 40.0}}",
        "--config.ema.half_life=100.0",
        "--config.ema.ramp=0.0",
        "--config.ema.others=(40.0,)",
        "--config.ema.snapshot_every=1",
    )
    capsys.readouterr()
    return folder


def test_averages_are_judged_made_plotted_and_sampled(launch, folder, capsys):
    (path,) = (folder / "evaluations").glob("scheduled-*.json")
    found = {row["evaluation"]: row["weights"] for row in json.loads(path.read_text())["rows"]}
    assert found == {"": "EMA", "short": "EMA 40"}

    launch("--mode=sample", f"--workdir={folder}", "--num=4", "--ema=40")
    launch("--mode=evaluate", f"--workdir={folder}", "--num=20", "--evaluations=fid,short",
           "--ema=40")  # fmt: skip
    assert "step 8, EMA 40 of" in capsys.readouterr().out
    (path,) = (folder / "evaluations").glob("step*-ema_40-*.json")
    values = [row["value"] for row in json.loads(path.read_text())["rows"]]
    assert values[0] == values[1]  # the average asked for, and the one that an evaluation names

    launch("--mode=ema", f"--workdir={folder}", "--sigma-rel=0.07")
    assert "taken by --ema=posthoc/0.07" in capsys.readouterr().out
    assert complete_steps(folder / "posthoc" / "0.07") == [8]
    launch("--mode=sample", f"--workdir={folder}", "--num=4", "--ema=posthoc/0.07")
    names = sorted(path.stem for path in (folder / "generated").glob("*.png"))
    stem = "step00000008-seed0-n4-ema"
    assert names == [f"{stem}_40", f"{stem}_posthoc_0.07"]

    launch("--mode=ema", f"--workdir={folder}", "--sigma-rels=0.2,0.05,0.1", "--num=20",
           "--metric=fd_digits")  # fmt: skip
    (path,) = (folder / "evaluations").glob("ema-step00000008-*.json")
    content = json.loads(path.read_text())
    labels = [row["evaluation"] for row in content["rows"]]
    assert labels == [f"sigma_rel {width}" for width in (0.05, 0.1, 0.2)]
    assert len({row["value"] for row in content["rows"]}) == 3
    (picture,) = content["pictures"].values()
    with Image.open(folder / picture) as plot:
        assert plot.size == (720, 480)
    assert picture.endswith("-lengths.png")

    before = sorted(folder.rglob("*"))
    for flags, words in REFUSED:
        with pytest.raises(SystemExit) as told:
            launch("--mode=ema", f"--workdir={folder}", *flags)
        assert words in str(told.value)
        assert len(str(told.value).splitlines()) == 1
    assert sorted(folder.rglob("*")) == before
