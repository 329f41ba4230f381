"""A whole run on points of the plane: its schedule, its end, its samples and what they refuse."""

import json

import numpy as np
import pytest
from PIL import Image

from aigc_jax.commands import common, sample, train
from aigc_jax.data import datasets
from aigc_jax.evaluation import evaluators
from aigc_jax.runs import evaluate, evaluations
from aigc_jax.runs import model as models
from aigc_jax.runs.extractors import FeatureExtractors
from aigc_jax.training import sharding
from configs import gan_mixture


@pytest.fixture(scope="module")
def points_run(tmp_path_factory):
    """(its folder, its config) of a small GAN of the grid."""
    config = gan_mixture.get_config("smoke+grid")
    with config.unlocked():
        config.evaluation.update({"scheduled_count": 50, "count": 60, "at_end": True})
        config.log.samples = 40
    workdir = tmp_path_factory.mktemp("points") / "run"
    train.run(config, workdir)
    return workdir, config


def test_a_run_judges_points_on_its_schedule_and_at_its_end(points_run):
    workdir, _ = points_run
    content = (workdir / "metrics.jsonl").read_text()
    metrics = {k: v for line in content.splitlines() for k, v in json.loads(line).items()}
    wanted = {"mixture_modes", "high_quality", "reverse_kl", "reverse_kl_all"}
    assert {f"eval/{name}" for name in wanted} <= set(metrics)
    assert 0 < metrics["samples/diversity"] < 10
    (scheduled,) = (workdir / "evaluations").glob("scheduled-*.json")
    (asked,) = (workdir / "evaluations").glob("step*-n60-????????.json")
    for path, n in ((scheduled, 50), (asked, 60)):
        rows = {row["metric"]: row for row in json.loads(path.read_text())["rows"]}
        assert wanted <= set(rows)
        assert {rows[name]["n"] for name in wanted} == {n}
    assert rows["mixture_modes"]["real"] > 20  # of 25, by 60 points
    assert "mixture_modes" in (workdir / "report.html").read_text()


def evaluator_of(config, data, planned, family):
    rebuild = common.rebuilder(config, data.spec)
    mesh = sharding.make_mesh()
    options = {"sampling": config.sampling, "rebuild": rebuild}
    extractors = FeatureExtractors(mesh)
    return evaluate.Evaluator(
        planned, family, data, mesh, seed=config.seed, extractors=extractors, **options
    )


def test_samples_of_points_stay_floats_and_are_drawn_as_a_plot(points_run, tmp_path, monkeypatch):
    workdir, config = points_run
    pictures = list((workdir / "samples").iterdir())
    assert pictures
    assert {Image.open(picture).size for picture in pictures} == {(480, 480)}
    path = sample.run(workdir, count=30, save="npz", output=tmp_path, batch_size=16)
    assert Image.open(path).size == (480, 480)
    with np.load(path.with_suffix(".npz")) as arrays:
        saved = arrays["x"]
    assert (saved.dtype, saved.shape) == (np.float32, (30, 2))
    assert len(np.unique(saved * 127.5 % 1)) > 20  # no bytes were made of them

    judged = []  # and an evaluation of 30 samples is of the same ones
    mixture = evaluators.OF_SAMPLES["mixture"]

    def recorded(comparison, points):
        judged.append(points)
        return mixture(comparison, points)

    monkeypatch.setitem(evaluators.OF_SAMPLES, "mixture", recorded)
    planned = evaluations.plan({"mixture": {}}, {**config.evaluation, "count": 30})
    model, data = models.load(workdir), common.open_data(config)
    evaluator_of(config, data, planned, model.family).run(model.variables, seed=0, weights="EMA")
    (given,) = [points.values for points in judged if not points.real]
    np.testing.assert_allclose(given, saved, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"save": "png"}, "points are drawn as one plot; save=npz has their numbers"),
        ({"frames": 4}, "points are drawn as one plot"),
        ({"pictures": True}, "points are drawn as one plot"),
    ],
    ids=str,
)
def test_points_are_no_images_to_save(points_run, tmp_path, asked, message):
    with pytest.raises(ValueError, match=message):
        sample.run(points_run[0], count=4, output=tmp_path, **asked)
    assert not list(tmp_path.iterdir())


def test_metrics_of_points_and_of_images_are_not_confused(points_run):
    workdir, config = points_run
    family, points = models.load(workdir).family, common.open_data(config)
    planned = evaluations.plan(config.evaluations, config.evaluation)
    assert evaluator_of(config, points, planned, family).networks == ()
    digits = points._replace(name="digits", dataset=datasets.load("digits"))
    with pytest.raises(ValueError, match="'mixture' judges samples of ring and grid, not of 'd"):
        evaluator_of(config, digits, planned, family)
    features = evaluations.plan({"fid": {"network": "digits"}}, config.evaluation)
    with pytest.raises(ValueError, match="judges images in the space of a feature network, and '"):
        evaluator_of(config, points, features, family)


def test_points_that_shall_be_augmented_are_refused_before_anything_is_written(tmp_path):
    config = gan_mixture.get_config("smoke+grid")
    config.augment.flip = True
    with pytest.raises(ValueError, match="points of the plane cannot be augmented"):
        train.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
