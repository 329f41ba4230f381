"""Experiment trackers get what metrics.jsonl has; one that fails ends no run."""

import json
import math
import re
import time

import numpy as np
import pytest
from PIL import Image

import aigc_jax
from aigc_jax.errors import MissingError, SettingError
from aigc_jax.training import trackers
from aigc_jax.training.writers import Watch, Writer

PICTURE = Image.fromarray(np.zeros((8, 8), np.uint8))
SMALL = {"log.every": 1, "log.eval_every": 0, "log.sample_every": 4, "checkpoint.every": 4}


def rows_of(folder):
    """{name: [(step, value), ...]} of metrics.jsonl."""
    found = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        step = row.pop("step")
        for name, value in row.items():
            found.setdefault(name, []).append((step, value))
    return found


def test_mlflow_has_the_rows_the_config_and_the_pictures_and_goes_on(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for steps in (4, 6):
        more = {"train.steps": steps, "optimizer.schedule": "constant"}
        config = aigc_jax.config("gan_mixture:smoke", SMALL | more)
        aigc_jax.train(config, tmp_path / "run", writers=["mlflow"])
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/run/mlflow.db")
    experiment = client.get_experiment_by_name("aigc_jax")
    (run,) = client.search_runs([experiment.experiment_id])  # one, though it was resumed
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params["gan.penalty.name"] == "r1_r2"
    rows = rows_of(tmp_path / "run")
    for name in ("generator/loss", "samples/diversity"):
        history = client.get_metric_history(run.info.run_id, name)
        assert [(m.step, m.value) for m in history] == rows[name]
    pictures = client.list_artifacts(run.info.run_id, "images")
    assert {re.search(r"step\W(\d+)\W", p.path)[1] for p in pictures} == {"4", "6"}


def test_wandb_writes_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    one, two = (trackers.Wandb(tmp_path / n, n * 8, {"seed": 3}) for n in ("a", "b"))
    for tracker in (one, two):  # two runs at once, as replicas are
        tracker.scalars(1, {"net/loss": 0.5})
        tracker.image(1, "samples", PICTURE)
        tracker.scalars(0, {"net/loss": 0.7})  # as of a run that went back
        tracker.close()
    for name in ("a", "b"):
        (file,) = (tmp_path / name / "wandb").glob(f"offline-run-*/run-{name * 8}.wandb")
        words, began = (b"net/loss", b"samples", b"seed"), time.monotonic()
        # Its own process writes the file, some time after it was asked to finish.
        while not all(word in file.read_bytes() for word in words):
            assert time.monotonic() < began + 20
            time.sleep(0.05)


class Broken:
    def __init__(self):
        self.calls = []

    def scalars(self, step, values):
        self.calls.append((step, values))
        if step == 2:
            raise ConnectionError("no route to host")

    def image(self, step, name, picture):
        self.calls.append((step, name))

    def close(self):
        self.calls.append("closed")


def test_one_that_fails_is_told_and_left_out(tmp_path, capsys):
    broken, sound = Broken(), Broken()
    sound.scalars = lambda step, values: sound.calls.append((step, values))
    writer = Writer(tmp_path, 0, 3, 1, Watch(), [broken, sound])
    for step in (1, 2, 3):
        writer.scalars(step, {"loss": float(step), "lost": math.nan})
    writer.image(3, "samples", PICTURE)
    writer.close()
    assert broken.calls == [(1, {"loss": 1.0}), (2, {"loss": 2.0})]
    assert sound.calls == [*((s, {"loss": float(s)}) for s in (1, 2, 3)), (3, "samples"), "closed"]
    out = capsys.readouterr().out
    assert out.count("--writers=broken failed and is left out from here on") == 1
    assert "no route to host" in out
    assert [step for step, _ in rows_of(tmp_path)["loss"]] == [1, 2, 3]


def test_what_is_absent_or_unknown_is_told_before_training(tmp_path, monkeypatch):
    config = aigc_jax.config("gan_mixture:smoke")
    with pytest.raises(SettingError, match="did you mean 'wandb'"):
        aigc_jax.train(config, tmp_path / "run", writers=["wandbb"])

    def absent(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(trackers.importlib, "import_module", absent)
    with pytest.raises(MissingError, match=r"pip install -r requirements-trackers\.txt"):
        aigc_jax.train(config, tmp_path / "run", writers=["mlflow"])
    assert not (tmp_path / "run").exists()


def test_a_server_that_is_none_is_told(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://here")
    with pytest.raises(SettingError, match=r"--writers=mlflow: .*nowhere://here"):
        trackers.opened(["mlflow"], tmp_path, "0" * 32, {})
