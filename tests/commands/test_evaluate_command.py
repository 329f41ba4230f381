"""Evaluating by command: another protocol, some of the evaluations, weights from elsewhere."""

import json

from aigc_jax.commands import evaluate
from aigc_jax.runs.evaluations import plan
from configs import ddpm_digits

DIGITS = "--config=configs/ddpm_digits.py"


def test_another_evaluation_of_a_checkpoint(run, launch, capsys, tmp_path):
    folder, _ = run
    evaluate = ["--mode=evaluate", f"--workdir={folder}", "--sampler=ddim", "--steps=3"]
    launch(*evaluate, "--num=16", "--step=2", "--raw", "--seed=7", "--batch=8")
    said = capsys.readouterr().out
    name = "step00000002-seed7-n16-digits-raw-sampler_ddim-steps_3"
    content = json.loads((folder / "evaluations" / f"{name}.json").read_text())
    assert content["step"] == 2
    assert not content["scheduled"]
    row = next(row for row in content["rows"] if row["metric"] == "kd_digits")
    protocol = [row[key] for key in ("n", "sampler", "steps", "weights", "seed")]
    assert protocol == [16, "ddim", 3, "raw", 7]
    assert "ddim, 3 steps, raw, seed 7" in said
    elsewhere = tmp_path / "elsewhere"  # weights of another run, without one here
    launch("--mode=evaluate", f"{DIGITS}:smoke+conditional", f"--config.init_from={folder}",
           f"--workdir={elsewhere}", "--num=16", "--evaluations=fid")  # fmt: skip
    (path,) = elsewhere.rglob("*.json")
    assert json.loads(path.read_text())["rows"][0]["weights"] == "as given"
    launch("--mode=report", f"--workdir={folder}")
    assert str(folder / "report.html") in capsys.readouterr().out


def test_the_number_asked_for_wins_over_an_evaluations_own():
    settings = ddpm_digits.get_config().evaluation  # its count is 500
    planned = plan({"fid": {"count": 50}, "kid": {}, "examples": {}}, settings)
    assert [e.count for e in evaluate.of_count(planned, 16)] == [16, 16, 0]
    assert [e.count for e in evaluate.of_count(planned, None)] == [50, 500, 0]


def test_some_of_the_evaluations_lie_beside_all_of_them(run, launch):
    folder, _ = run
    launch("--mode=evaluate", f"--workdir={folder}", "--evaluations=kid,examples", "--num=16")
    (path,) = (folder / "evaluations").glob("*-kid-examples.json")
    assert path.name == "step00000004-seed0-n16-digits-kid-examples.json"
    metrics = [row["metric"] for row in json.loads(path.read_text())["rows"]]
    assert sorted(metrics) == ["kd_digits", "loss"]
