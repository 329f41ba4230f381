"""Points of the plane, from the mixture to the picture: nowhere bytes, nowhere scaled or moved."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_evaluation as evaluation
from PIL import Image

from aigc_jax import experiment, judging
from aigc_jax.data import augment, datasets, loader, mixtures
from aigc_jax.data.images import DataError
from aigc_jax.evaluation import classes, evaluators
from aigc_jax.evaluation.subject import Split
from aigc_jax.training import sharding
from aigc_jax.training.scatter import scatter
from configs import gan_mixture

# The data


@pytest.mark.parametrize(("name", "k"), [("ring", 8), ("grid", 25)])
def test_points_are_the_mixture_itself(name, k):
    centres, std = mixtures.MIXTURES[name]()
    train, test = (mixtures.arrays(name, split) for split in ("train", "test"))
    assert (train.shape, test.shape) == ((100_000, 1, 1, 2), (10_000, 1, 1, 2))
    assert train.dtype == np.float32
    np.testing.assert_array_equal(train, mixtures.arrays(name, "train"))
    assert not np.isin(test[:, 0, 0, 0], train[:, 0, 0, 0]).all()
    points = train.reshape(-1, 2)
    mode, _ = classes.mixture_modes(points, centres, std)
    coverage = classes.mode_coverage(mode, np.ones(k))
    assert coverage.covered == k
    assert coverage.kl == pytest.approx((k - 1) / 2 / len(points), rel=0.9)  # of equal chances
    offset = points - centres[mode]
    np.testing.assert_allclose(offset.mean(0), 0, atol=0.02 * std)
    np.testing.assert_allclose(np.cov(offset.T), std**2 * np.eye(2), atol=0.02 * std**2)


def test_a_data_set_of_points_is_loaded_by_name():
    dataset = datasets.load("grid", splits=("train[:300]", "test"))
    assert dataset.spec == ((1, 1, 2), 0, {"train[:300]": 300, "test": 10_000})
    batch = dataset.sources["train[:300]"].fetch(np.array([0, 299]))
    assert list(batch) == ["image"]
    np.testing.assert_array_equal(batch["image"], mixtures.arrays("grid", "train")[[0, 299]])
    assert batch["image"].dtype == np.float32
    assert np.abs(mixtures.arrays("grid", "test")).max() > 4  # not squeezed into [-1, 1]


@pytest.mark.parametrize("options", [{"image_size": 8}, {"crop": 1}])
def test_points_have_no_size(options):
    with pytest.raises(DataError, match=r"'ring' has points: leave data\.image_size and"):
        datasets.load("ring", **options)


def test_points_reach_the_model_as_they_are():
    source = datasets.load("grid").sources["test"]
    batches = loader.batches(source, batch_size=16, seed=0)
    batch = next(batches)["image"][0]
    batches.close()
    every = {tuple(point) for point in source.images.reshape(-1, 2).tolist()}
    prepared = augment.augment(jax.random.key(0), augment.to_float(jnp.asarray(batch)))
    np.testing.assert_array_equal(prepared, batch)
    assert {tuple(point) for point in np.asarray(prepared).reshape(-1, 2).tolist()} <= every
    last = list(loader.epoch(source, batch_size=4096))[-1]
    np.testing.assert_array_equal(last["image"][: 10_000 - 8192], source.images[8192:])


@pytest.mark.parametrize(
    "chosen", [{"flip": True}, {"shift": 1}, {"rotation": 5.0}, {"scale": 0.1}], ids=str
)
def test_points_are_not_augmented_as_if_they_were_pixels(chosen):
    points = jnp.ones((4, 1, 1, 2))
    with pytest.raises(ValueError, match=r"points of the plane cannot be augmented: set every aug"):
        augment.augment(jax.random.key(0), points, **chosen)


# The evaluator


def subject(samples, name="ring", held_out=None):
    held_out = mixtures.arrays(name, "test") if held_out is None else held_out
    split = Split("x test", len(held_out), None, lambda index: {"image": held_out[index]})
    return evaluation.subject(
        evaluation.TEST,
        extract=None,
        network="",
        sample=lambda: iter(np.array_split(samples.reshape(-1, 1, 1, 2), 3)),
        held_out=split,
        mixture=mixtures.MIXTURES[name](),
    )


def values(samples, name="ring", **protocol):
    rows = evaluators.run(subject(samples, name), ["mixture"], **protocol)
    return {row.metric: row for row in rows}


def test_the_mixture_itself_is_judged_perfect():
    rows = values(mixtures.arrays("grid", "train")[:5000], "grid", seed=3, weights="EMA")
    assert list(rows) == ["mixture_modes", "high_quality", "reverse_kl", "reverse_kl_all"]
    assert (rows["mixture_modes"].value, rows["mixture_modes"].real) == (25, 25)
    assert rows["mixture_modes"].note == "of 25"
    assert rows["high_quality"].value == pytest.approx(1 - np.exp(-4.5), abs=0.006)
    for metric, row in rows.items():
        assert row.real == pytest.approx(row.value, abs=0.01), metric
        assert (row.n, row.seed, row.weights, row.network) == (5000, 3, "EMA", "")
    assert 0 < rows["reverse_kl"].real < 0.01
    assert values(mixtures.arrays("ring", "test"), real=False)["reverse_kl"].real is None


def test_missed_modes_and_stray_points_are_counted_apart():
    centres, std = mixtures.ring()
    near = np.repeat(centres[:3], [20, 10, 10], axis=0)  # three modes, as 2 to 1 to 1
    stray = np.repeat(centres[3:4] * (1 + 3.5 * std), 40, axis=0)  # beyond 3 std of a fourth
    rows = values(np.concatenate([near, stray]))
    assert rows["mixture_modes"].value == 3
    assert rows["high_quality"].value == 0.5
    share = np.array([0.5, 0.25, 0.25])
    assert rows["reverse_kl"].value == pytest.approx((share * np.log(8 * share)).sum())
    share = np.array([0.25, 0.125, 0.125, 0.5])
    assert rows["reverse_kl_all"].value == pytest.approx((share * np.log(8 * share)).sum())
    assert rows["reverse_kl"].note == "of the 40 of high quality"


def test_without_one_good_point_there_are_no_shares_to_compare():
    rows = values(np.full((50, 2), 30.0))
    assert (rows["mixture_modes"].value, rows["high_quality"].value) == (0, 0)
    assert rows["reverse_kl"].value == np.inf
    assert rows["reverse_kl_all"].value == pytest.approx(np.log(8))


def test_held_out_points_are_as_many_as_samples():
    few = subject(np.ones((7, 2)))
    assert few.unseen_points.shape == (7, 2)
    assert evaluators.run(evaluation.subject(evaluation.TEST), ["mixture"]) == []


# A whole run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = gan_mixture.get_config("smoke+grid")
    with config.unlocked():
        config.evaluation.update({"scheduled_count": 50, "count": 60, "at_end": True})
        config.log.samples = 40
    workdir = tmp_path_factory.mktemp("points") / "run"
    experiment.train(config, workdir)
    return workdir, config


def test_a_run_judges_points_on_its_schedule_and_at_its_end(run):
    workdir, _ = run
    content = (workdir / "metrics.jsonl").read_text()
    metrics = {k: v for line in content.splitlines() for k, v in json.loads(line).items()}
    wanted = {"mixture_modes", "high_quality", "reverse_kl", "reverse_kl_all"}
    assert {f"eval/{name}" for name in wanted} <= set(metrics)
    assert 0 < metrics["samples/diversity"] < 10
    (scheduled,) = (workdir / "evaluations").glob("scheduled-*.json")
    (asked,) = (workdir / "evaluations").glob("step*-n60.json")
    for path, n in ((scheduled, 50), (asked, 60)):
        rows = {row["metric"]: row for row in json.loads(path.read_text())["rows"]}
        assert wanted <= set(rows)
        assert {rows[name]["n"] for name in wanted} == {n}
    assert rows["mixture_modes"]["real"] > 20  # of 25, by 60 points
    assert "mixture_modes" in (workdir / "report.html").read_text()


def test_samples_of_points_stay_floats_and_are_drawn_as_a_plot(run, tmp_path):
    workdir, config = run
    (picture,) = (workdir / "samples").iterdir()
    assert Image.open(picture).size == (480, 480)
    path = experiment.sample(workdir, count=30, save="npz", output=tmp_path, batch_size=16)
    assert Image.open(path).size == (480, 480)
    with np.load(path.with_suffix(".npz")) as arrays:
        assert arrays["image"].dtype == np.float32
        assert arrays["image"].shape == (30, 1, 1, 2)
        saved = arrays["image"]
    dataset = datasets.load("grid", splits=("train", "test"))
    model = experiment.load(workdir)
    given = judging.subject(
        config,
        model.family,
        dataset,
        sharding.make_mesh(),
        None,
        model.params,
        model.extra,
        count=30,
        seed=0,
    )
    np.testing.assert_allclose(given.points, saved.reshape(-1, 2), rtol=1e-5, atol=1e-6)
    assert len(np.unique(saved * 127.5 % 1)) > 20  # no bytes were made of them


def test_points_are_no_images_to_save(run, tmp_path):
    with pytest.raises(ValueError, match="points in the plane are drawn as one plot; save=npz"):
        experiment.sample(run[0], count=4, output=tmp_path, save="png")
    assert not list(tmp_path.iterdir())


def test_metrics_of_points_and_of_images_are_not_confused(run):
    _, config = run
    mesh = sharding.make_mesh()
    points, digits = datasets.load("ring"), datasets.load("digits")
    assert judging.open_eye(config, points, mesh) is None
    with config.unlocked():
        images = config.copy_and_resolve_references()
        images.data.name = "digits"
        with pytest.raises(
            ValueError, match="'mixture' judges samples of ring and grid, not of 'd"
        ):
            judging.open_eye(images, digits, mesh)
        features = config.copy_and_resolve_references()
        features.evaluations = ("fid",)
        features.evaluation.network = "digits"
        with pytest.raises(ValueError, match="takes images of 8x8x1, not 1x1x2"):
            judging.open_eye(features, points, mesh)


# The picture


def test_a_scatter_plot_shows_samples_over_real_points():
    real = mixtures.arrays("ring", "test")[:500]
    alone = np.asarray(scatter(np.full((1, 2), 99.0), real)).astype(int)
    together = np.asarray(scatter(np.zeros((5, 1, 1, 2)), real)).astype(int)
    assert alone.shape == together.shape == (480, 480, 3)
    red = (together[..., 0] > together[..., 2] + 80) & (together[..., 0] > 150)
    rows, columns = np.nonzero(red)
    assert 0 < red.sum() < 60  # the dots that lie on each other
    pale = np.nonzero(alone[..., 2] > alone[..., 0] + 15)
    middle = [(axis.min() + axis.max()) / 2 for axis in pale]  # of the ring
    np.testing.assert_allclose([rows.mean(), columns.mean()], middle, atol=3)
    assert not ((alone[..., 0] > alone[..., 2] + 80) & (alone[..., 0] > 150)).any()


def test_a_scatter_plot_is_the_same_each_time_and_takes_what_is_not_finite():
    real = mixtures.arrays("grid", "test")[:50]
    samples = np.array([[0.0, 0.0], [np.nan, 1.0], [np.inf, 0.0], [50.0, 0.0]])
    one, other = (np.asarray(scatter(samples, real)) for _ in range(2))
    np.testing.assert_array_equal(one, other)
