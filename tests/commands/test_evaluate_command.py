"""Evaluating by command: another protocol, some of the evaluations, weights from elsewhere."""

import json
import types

import samplers

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
    (path,) = (folder / "evaluations").glob(f"{name}-????????.json")
    content = json.loads(path.read_text())
    assert content["step"] == 2
    assert not content["scheduled"]
    row = next(row for row in content["rows"] if row["metric"] == "kd_digits")
    protocol = [row[key] for key in ("n", "sampler", "steps", "weights", "seed")]
    assert protocol == [16, "ddim", 3, "raw", 7]
    assert "ddim, 3 steps, NFE 3, raw, seed 7" in said
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


def test_results_of_other_settings_lie_beside_each_other(run, launch):
    folder, _ = run
    some = ["--mode=evaluate", f"--workdir={folder}", "--evaluations=kid,examples", "--num=16"]
    launch(*some)
    launch(*some)  # the same once more
    (path,) = (folder / "evaluations").glob("*-kid-examples-????????.json")
    assert path.name.startswith("step00000004-seed0-n16-digits-kid-examples-")
    metrics = [row["metric"] for row in json.loads(path.read_text())["rows"]]
    assert sorted(metrics) == ["kd_digits", "loss"]
    launch(*some, f"{DIGITS}:smoke+conditional", "--config.evaluation.reference_split=test")
    assert len([*(folder / "evaluations").glob("*-kid-examples-????????.json")]) == 2


def test_the_name_of_a_result_depends_on_all_that_the_result_does():
    def name(given=None, data=samplers.DATA, network="a" * 64, sampling=None, **changes):
        planned = plan(given or {"kid": {}, "examples": {}}, samplers.SETTINGS | changes)
        made = types.SimpleNamespace(planned=planned, data=data, seed=0, sampling=sampling or {})
        made.extractor = lambda e: types.SimpleNamespace(digest=network)
        return evaluate.digest(made)

    other_data = samplers.DATA.dataset._replace(identity={"name": "digits"})
    names = [
        name(),
        name(network="b" * 64),
        name(sampling={"steps": 3}),
        name(data=samplers.DATA._replace(dataset=other_data)),
        name({"kid": {}}),
        name({"kid": {"sampling": {"steps": 5}}, "examples": {}}),
        name(reference_split="test"),
        name(manifold_count=7),
        name(statistics="x"),
        name(count=9),
    ]
    assert len({*names}) == len(names)
    assert names[0] == name(scheduled_count=9, at_end=True)
