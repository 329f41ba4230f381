"""Training by command: one experiment from end to end, resumed, refused, started from another."""

import json
import pathlib

import jax
import numpy as np
import pytest

from aigc_jax.runs import model as models

DIGITS = "--config=configs/ddpm_digits.py"


def values_of(folder, name="test/loss"):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    values = [row[name] for row in rows if name in row]
    assert values
    return values


def test_smoke_trains_evaluates_and_samples(run):
    folder, said = run
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = {row["step"] for row in rows if "net/loss" in row}
    assert steps == {1, 2, 4}  # log.every, and before the first picture
    assert np.isfinite(values_of(folder)).all()
    pictures = sorted(path.name for path in (folder / "samples").glob("*.png"))
    assert pictures == ["00000001.png", "00000004.png"]  # the first by log.first_sample
    saved = [p.name for p in (folder / "checkpoints").iterdir() if p.name.isdigit()]
    assert sorted(map(int, saved)) == [2, 4]
    assert "starting at step 0 of 4" in said
    assert "done: step 4" in said
    # The evaluation at the end: rows beside what real images get, as a table and as JSON.
    table = [line.split() for line in said.splitlines()]
    assert next(line for line in table if line[0] == "metric")[:3] == ["metric", "value", "real"]
    (path,) = (folder / "evaluations").glob("step00000004-seed0-n40-digits-????????.json")
    rows = {row["metric"]: row for row in json.loads(path.read_text())["rows"]}
    assert {"loss", "bits_per_dim", "fd_digits", "recall_digits", "agreement_digits"} <= set(rows)
    fd = rows["fd_digits"]
    assert fd["n"] == 40
    assert (fd["network"], fd["reference"]) == ("digits", "digits train (1501)")
    assert (fd["sampler"], fd["steps"], fd["weights"], fd["seed"]) == ("ancestral", 4, "EMA", 0)
    assert 0 < fd["real"] < fd["value"]  # four steps of training draw nothing like a digit
    scheduled = json.loads((folder / "evaluations" / "scheduled-00000004.json").read_text())
    assert {row["n"] for row in scheduled["rows"]} == {40}
    assert (folder / "reconstructions" / "00000004.png").is_file()
    assert (folder / "evaluations" / f"{path.stem}-nearest.png").is_file()
    page = (folder / "report.html").read_text()
    assert "fd_digits" in page
    origin = json.loads((folder / "origin.json").read_text())
    assert origin["config"] == "configs/ddpm_digits.py:smoke+conditional"
    assert origin["base"]["train"]["steps"] == 3000
    assert [session["step"] for session in origin["sessions"]] == [0]
    assert origin["sessions"][0]["packages"]["jax"] == jax.__version__


def test_a_finished_run_has_nothing_to_do_and_a_changed_one_is_refused(run, launch, capsys):
    folder, _ = run
    train = [
        f"{DIGITS}:smoke+conditional",
        f"--workdir={folder}",
        "--config.evaluation.at_end=False",
    ]
    launch(*train)
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"another config:\n  optimizer.learning_rate: 0.002 -> 1"):
        launch(*train, "--config.optimizer.learning_rate=1.0")
    with pytest.raises(SystemExit, match=r"another config:\n  family: diffusion -> vae"):
        launch(*train, "--mode=evaluate", "--config.family=vae")


def params_of(folder, raw):
    model = models.load(folder, raw=raw)
    assert model.step == 4
    return model.variables.params["net"]


def test_a_run_starts_from_the_average_of_another(run, command, tmp_path):
    folder, _ = run
    done = command(
        f"{DIGITS}:smoke+conditional", f"--workdir={tmp_path}", f"--config.init_from={folder}",
        "--config.seed=1", "--config.evaluation.at_end=False", "--config.log.sample_every=0",
        "--config.log.eval_every=0", "--config.checkpoint.best=",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    new, average = params_of(tmp_path, raw=True), params_of(folder, raw=False)
    updated = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - b).max()), new, average)
    # Adam moves no weight by more than its rate a step; another seed moves them by more.
    assert 0 < max(jax.tree.leaves(updated)) < 4.1e-3


TRAIN = """
import importlib, json, sys
from aigc_jax.commands import train
for name, variant, workdir, changes in json.loads(sys.argv[1]):
    config = importlib.import_module(f"configs.{name}").get_config(variant)
    config.update_from_flattened_dict(changes)
    state = train.run(config, workdir)
    assert (int(state.step), int(state.skipped)) == (4, 0)
"""


TESTED = {
    "ddpm_cifar": ("test/loss", "samples"),
    "kl_autoencoder_celeba64": ("test/distortion", "reconstructions"),
    "dcgan_celeba64": ("test/logit_real", "samples"),
    "fewshot_celeba64": ("test/logit_real", "samples"),
}


def test_smoke_of_the_other_experiments_trains_on_their_data(
    shared_tfds, celeba_zip, command, tmp_path
):
    data, faces = {"data.data_dir": shared_tfds}, {"data.path": celeba_zip}
    data |= {"data.in_memory": False, "network.multipliers": (1,)}  # compiles in half the time
    few = faces | {"init_from": f"{tmp_path}/c"}
    # The discriminator of patches has its full width: 13 seconds a step of 16 images of 32x32.
    small = faces | {"data.image_size": 32, "train.batch_size": 2}
    jobs = [
        ("ddpm_cifar", "smoke", f"{tmp_path}/a", data),
        ("kl_autoencoder_celeba64", "smoke+folder", f"{tmp_path}/b", small),
        ("dcgan_celeba64", "smoke+folder+relativistic+adaptive", f"{tmp_path}/c", faces),
        ("fewshot_celeba64", "smoke", f"{tmp_path}/f", few),
    ]
    done = command(json.dumps(jobs), program=("-c", TRAIN))
    assert done.returncode == 0, done.stderr
    for name, _, folder, _ in jobs:
        found, pictures = TESTED[name]
        assert np.isfinite(values_of(pathlib.Path(folder), found)).all()
        assert (pathlib.Path(folder) / pictures / "00000004.png").is_file()
