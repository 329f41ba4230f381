"""Models judged: the same values on any devices, in any batch; what evaluations share."""

import functools
import json
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from PIL import Image
from samplers import DATA, NOTHING, Sampler, by_metric, evaluator

from aigc_jax import build
from aigc_jax.data import datasets
from aigc_jax.evaluation import evaluators, results
from aigc_jax.family import Codec, Drawing, Variables, Views
from aigc_jax.runs import evaluate
from aigc_jax.runs.extractors import FeatureExtractor, FeatureExtractors
from aigc_jax.runs.pictures import NEAREST
from aigc_jax.training import sharding
from configs import ddpm_digits

# All but those of points, of families that translate (test_networks.py), and to the tolerance of
# an ODE's solver (tests/diffusion).
OTHERS = ("mixture", "translation", "exact_likelihood")
EVERYTHING = {name: {} for name in evaluators.NAMES if name not in OTHERS}


@pytest.fixture(scope="module")
def extractors():
    """{number of devices: networks on them}."""
    meshes = {n: sharding.make_mesh(jax.devices()[:n]) for n in (1, 8)}
    return {n: FeatureExtractors(mesh) for n, mesh in meshes.items()}


# A diffusion model, whole


@pytest.fixture(scope="module")
def diffusion():
    """(family, its parameters on the host)."""
    config = ddpm_digits.get_config("smoke")
    with config.unlocked():
        config.network.multipliers = (1,)
    family = build.build(config, DATA.spec)
    params = family.init(jax.random.key(0))[0]
    noisy = jax.tree.map(  # layers that start at zero too
        lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), params
    )
    return family, jax.device_get(noisy)


@pytest.fixture(scope="module")
def rows_of(extractors, diffusion):
    """(devices, samples at a time) -> {metric: row} of everything, seed 3."""
    family, params = diffusion

    @functools.cache
    def rows(devices, batch_size):
        made = evaluator(extractors, family, EVERYTHING, devices, batch_size)
        variables = Variables(sharding.place(params, made.mesh), {})
        return by_metric(made.run(variables, seed=3, weights="EMA").rows)

    return rows


def test_everything_is_judged(rows_of):
    found = rows_of(1, 40)
    assert {"loss", "bits_per_dim", "psnr/t=2", "fd_digits", "copies_digits"} <= set(found)
    assert all(np.isfinite(row.value) for row in found.values())
    assert found["bits_per_dim"].n == 80  # likelihood_count


@pytest.mark.parametrize(("devices", "batch_size"), [(8, 40), (1, 16)])
def test_no_value_depends_on_devices_or_batches(rows_of, devices, batch_size):
    expected, found = rows_of(1, 40), rows_of(devices, batch_size)
    assert list(found) == list(expected)
    for metric, row in expected.items():
        np.testing.assert_allclose(
            found[metric].value, row.value, rtol=1e-6, atol=1e-6, err_msg=metric
        )


def test_rows_state_the_protocol_they_were_measured_by(extractors):
    sampling = {"sampler": "ddim", "guidance": 1.5, "steps": 4}
    made = evaluator(extractors, Sampler().family(), {"fid": {}, "examples": {}}, sampling=sampling)
    rows = by_metric(made.run(NOTHING, seed=3, weights="raw").rows)
    fid = rows["fd_digits"]
    protocol = (fid.sampler, fid.steps, fid.seed, fid.n, fid.weights)
    assert protocol == ("ddim guidance 1.5", 4, 3, 40, "raw")
    assert (fid.reference, fid.network) == ("digits train (1501)", "digits")
    loss = rows["loss"]
    assert (loss.reference, loss.weights, loss.seed) == ("digits test", "raw", None)
    assert (loss.n, loss.sampler) == (296, "")
    stated = partial(results.protocol, calls=0, weights="EMA", seed=1)
    assert stated({"prior": "normal", "temperature": 1.0, "eta": 0.0}) == {
        "sampler": "normal",
        "steps": None,
        "calls": None,
        "weights": "EMA",
        "seed": 1,
    }
    assert stated({"truncation": 0.7})["sampler"] == "truncation 0.7"
    cool = {"prior": "normal", "temperature": 0.8, "eta": 0.5}
    assert stated(cool)["sampler"] == "normal temperature 0.8 eta 0.5"


def test_the_other_split_is_held_out_where_the_test_split_is_the_reference(extractors):
    given = {"fid": {}, "swapped": {"metric": "fid", "reference_split": "test"}}
    rows = by_metric(
        Sampler().evaluator(extractors, given).run(NOTHING, seed=3, weights="EMA").rows
    )
    usual, swapped = rows["fd_digits"], rows["swapped/fd_digits"]
    assert swapped.reference == "digits test (296)"
    assert swapped.real != usual.real


def test_a_reference_that_holds_held_out_examples_is_said_to_in_its_rows(extractors):
    splits = ("train[:50]", "train[50:80]", "train")
    data = DATA._replace(dataset=datasets.load("digits", splits=splits))
    data = data._replace(train_split=splits[0], test_split=splits[1])
    given = {"kid": {}, "modes": {}, "whole": {"metric": "kid", "reference_split": "train"}}
    made = evaluator(
        extractors, Sampler().family(), given, data=data, reference_split=splits[0], count=20
    )
    rows = by_metric(made.run(NOTHING, seed=3, weights="EMA").rows)
    notes = {
        key: row.note for key, row in rows.items() if "held" in row.note or "holds" in row.note
    }
    assert notes == {
        "whole/kd_digits": "the reference holds 30 examples of train[50:80]: set "
        "evaluation.reference_split"
    }


def test_evaluations_share_samples_and_networks(extractors, monkeypatch):
    sampler, extracted = Sampler(), []
    given = {
        "fid": {},
        "kid": {},
        "diversity": {},
        "fid_few": {"metric": "fid", "count": 16},
        "fid_bright": {"metric": "fid", "sampling": {"level": 0.5}},
        "kid_bright": {"metric": "kid", "sampling": {"level": 0.5}},
        "as_usual": {"metric": "diversity", "sampling": {"level": 0.0}},
        "examples": {},
    }
    extract = FeatureExtractor.__call__

    def counted(self, images):
        extracted.append(len(images))
        return extract(self, images)

    monkeypatch.setattr(FeatureExtractor, "__call__", counted)
    made = sampler.evaluator(extractors, given, count=48, batch_size=48)
    sampler.rebuilt.clear()  # each was tried, so that no mistake is found late
    rows = by_metric(made.run(NOTHING, seed=3, weights="EMA").rows)
    jax.effects_barrier()
    assert sampler.drawn == 96  # 48 of each kind; the fewer are the first of these
    assert extracted.count(48) == 2
    assert sampler.rebuilt == [{"level": 0.5}]
    assert {name: row.n for name, row in rows.items() if "fd" in name} == {
        "fd_digits": 48,
        "fid_few/fd_digits": 16,
        "fid_bright/fd_digits": 48,
    }
    assert rows["as_usual/diversity_digits"].value == rows["diversity_digits"].value
    assert rows["fid_bright/fd_digits"].value != rows["fd_digits"].value
    assert (made.draws, made.networks) == (True, ("digits",))
    assert next(iter(rows)) == "loss"  # examples come first


def test_what_needs_more_samples_is_a_row_with_a_note_beside_the_others(extractors):
    given = {"few": {"metric": "inception_score"}, "fid": {}, "examples": {}}
    made = Sampler().evaluator(extractors, given, count=9)
    rows = made.run(NOTHING, seed=3, weights="EMA").rows
    assert [row.key for row in rows] == ["loss", "fd_digits", "few/inception_score"]
    assert np.isfinite([row.value for row in rows[:2]]).all()
    assert (rows[2].n, rows[2].note) == (0, "needs at least 10 samples, not 9")
    assert np.isnan(rows[2].value)
    # On a schedule they would be curves without a point.
    found = made.of_samples(NOTHING, seed=3, weights="EMA", real=False)
    assert [row.key for row in found] == ["fd_digits"]


def test_the_first_of_many_samples_are_the_few(extractors):
    few = by_metric(
        Sampler()
        .evaluator(extractors, {"fid": {}}, count=16)
        .run(NOTHING, seed=3, weights="EMA")
        .rows
    )
    given = {"fid": {}, "few": {"metric": "fid", "count": 16}}
    many = by_metric(Sampler().evaluator(extractors, given).run(NOTHING, seed=3, weights="").rows)
    assert many["few/fd_digits"].value == pytest.approx(few["fd_digits"].value, rel=1e-6)
    assert many["few/fd_digits"].real == pytest.approx(few["fd_digits"].real, rel=1e-6)


def test_labels_are_asked_for_in_turn(extractors):
    made = Sampler(classes=10).evaluator(extractors, {"modes": {}})
    rows = by_metric(made.run(NOTHING, seed=0, weights="EMA").rows)
    assert 0 <= rows["agreement_digits"].value <= 0.5
    assert rows["agreement_digits"].real > 0.9
    made = Sampler().evaluator(extractors, {"modes": {}})
    assert "agreement_digits" not in by_metric(made.run(NOTHING, seed=0, weights="EMA").rows)


@pytest.mark.parametrize(
    ("level", "spread", "match"),
    [
        (np.nan, 1.0, r"samples are not finite: the model has diverged; take an earlier --step"),
        (0.3, 0.0, r"all 40 samples have the same features.*--mode=sample"),
    ],
)
def test_samples_that_are_no_images_are_rows_with_a_note_beside_the_others(
    extractors, level, spread, match
):
    sampler = Sampler(level, spread)
    given = {"fid": {}, "kid": {}, "memorisation": {}}
    given |= {"good": {"metric": "fid", "sampling": {"level": 0.1}}, "examples": {}}
    result = sampler.evaluator(extractors, given).run(NOTHING, seed=0, weights="EMA")
    rows = by_metric(result.rows)
    assert next(iter(rows)) == "loss"
    assert np.isfinite(rows["loss"].value)
    for name in ("fid", "kid", "memorisation"):
        assert (rows[name].n, rows[name].seed) == (0, 0)
        assert re.search(match, rows[name].note)
    assert not result.pictures
    assert ("good/fd_digits" in rows) == bool(np.isnan(level))  # drawn in another way
    jax.effects_barrier()
    assert sampler.drawn <= 80  # once in each way, whatever became of it
    made = sampler.evaluator(extractors, {"fid": {}, "kid": {}})
    with pytest.raises(ValueError, match=rf"^nothing can be evaluated: {match}"):
        made.run(NOTHING, seed=0, weights="EMA")


def test_samples_are_held_as_bytes(extractors, monkeypatch):
    made, judged = Sampler().evaluator(extractors, {"inception_score": {}}, count=50), []
    extract = FeatureExtractor.__call__

    def recorded(self, images):
        judged.append(images)
        return extract(self, images)

    monkeypatch.setattr(FeatureExtractor, "__call__", recorded)
    made.of_samples(NOTHING, seed=0, weights="EMA", real=False)
    assert {images.dtype for images in judged} == {np.dtype(np.uint8)}
    assert judged[0].nbytes == 50 * 64


def test_without_a_metric_of_distributions_no_feature_network_is_needed(extractors, monkeypatch):
    monkeypatch.delenv("AIGC_WEIGHTS", raising=False)
    views = Views(reconstruct=lambda variables, batch, key: {"t=2": (batch["x"], batch["x"])})
    family = Sampler().family()._replace(views=views)
    made = evaluator(extractors, family, {"reconstruction": {}}, network="inception")
    rows = by_metric(made.run(NOTHING, seed=0, weights="EMA").rows)
    assert {"psnr/t=2", "l1/t=2"} <= set(rows)
    assert (made.draws, made.networks) == (False, ())
    with pytest.raises(FileNotFoundError, match="no weights of feature network 'inception'"):
        evaluator(extractors, family, {"reconstruction": {}, "fid": {}}, network="inception")


def encoding(family):
    """The family with codes: the mean of each image."""
    codec = Codec(
        encode=lambda variables, batch: {"mean": batch["x"].mean((1, 2, 3))[:, None]},
        decode=None,
        diagnose=lambda codes: ({"active_units": float(len(codes["mean"]))}, ""),
    )
    return family._replace(codec=codec)


def test_what_samples_need_is_prepared_once_for_all_that_need_the_same(extractors):
    sampler = Sampler(prepares=True)
    given = {"fid": {}, "other": {"metric": "fid", "sampling": {"level": 0.5}}, "diagnosis": {}}

    def rebuild(sampling):
        return encoding(sampler.family(sampling["level"]))

    def made(rebuild=rebuild):
        family, data = encoding(sampler.family()), DATA._replace(train_split="test")
        options = {"sampling": {"level": 0.0}, "rebuild": rebuild, "data": data}
        return evaluator(extractors, family, given, **options)

    rows = by_metric(made().run(NOTHING, seed=0, weights="EMA").rows)
    assert sampler.prepared == 1
    assert rows["active_units"].value == 296  # all held-out examples, and no padding
    stored = NOTHING._replace(prepared={"level": jnp.float32(0.1)})
    again = by_metric(made().run(stored, seed=0, weights="EMA").rows)
    assert sampler.prepared == 1  # a checkpoint had it
    assert again["fd_digits"].value == rows["fd_digits"].value
    # Another way to sample may need another thing.
    made(lambda s: encoding(sampler.family(s["level"], prepared_as="more"))).run(
        stored, seed=0, weights="EMA"
    )
    assert sampler.prepared == 2


def test_rows_and_pictures_are_saved_together(extractors, tmp_path):
    figures = Views(
        figures=lambda variables, keys, cond: {
            "Paths: from one to another": jnp.zeros((2, 3, 8, 8, 1)) + len(keys) * 0
        }
    )
    family = Sampler().family()._replace(views=figures)
    given = {"memorisation": {}, "few": {"metric": "memorisation", "count": 20}}
    result = evaluator(extractors, family, given).run(NOTHING, seed=0, weights="EMA")
    assert [picture.word for picture in result.pictures] == ["nearest", "nearest-few", "paths"]
    path = evaluate.write(tmp_path, "step7", result, step=7, scheduled=False)
    assert path == tmp_path / "evaluations" / "step7.json"
    content = json.loads(path.read_text())
    assert content["pictures"] == {
        NEAREST: "evaluations/step7-nearest.png",
        f"few. {NEAREST}": "evaluations/step7-nearest-few.png",
        "Paths: from one to another": "evaluations/step7-paths.png",
    }
    for name in content["pictures"].values():
        Image.open(tmp_path / name).load()
    sheet = Image.open(tmp_path / "evaluations" / "step7-nearest.png")
    assert sheet.size == (12 * 66 + 2, 3 * 66 + 2)  # 8x8 pixels, enlarged eightfold
    named = [row["evaluation"] for row in content["rows"]]
    assert named == ["", "", "few", "few"]


def test_a_nearest_picture_has_the_copy_above_its_original(extractors):
    """Samples that are training images: top and middle rows are the same."""
    train = DATA.dataset.sources["train"].fetch(np.arange(20))["x"]
    known = jnp.asarray(train, jnp.float32) / 127.5 - 1

    def start(variables, keys, cond):
        return jnp.concatenate([known, known])[: len(keys)]

    family = toys.one_player()._replace(drawing=Drawing(start, lambda variables, x: x))
    result = evaluator(extractors, family, {"memorisation": {}}).run(NOTHING, seed=0, weights="EMA")
    rows = by_metric(result.rows)
    assert rows["copies_digits"].value == rows["closer_to_train_digits"].value == 1
    sheet = np.asarray(result.pictures[0].image)
    top, middle, bottom = (sheet[2 + i * 66 : 66 + i * 66] for i in range(3))
    np.testing.assert_array_equal(top, middle)
    assert (bottom != top).any()


def test_an_evaluation_of_another_average_is_of_that_one_and_shares_nothing_with_others(extractors):
    """What it is of stands in its rows; what is drawn of one average is no samples of another."""
    made, asked = toys.one_player(), []

    def start(variables, keys, cond):
        return jax.vmap(lambda key: jax.random.normal(key, (8, 8, 1)))(keys)

    def finish(variables, x):
        return jnp.clip(0.1 * x + variables.params["level"], -1, 1)

    def evaluate_example(variables, batch, key):
        return {"level": jnp.zeros(len(batch["x"])) + variables.params["level"]}

    family = made._replace(evaluate=evaluate_example, drawing=Drawing(start, finish), codec=None)

    def average(half_life):
        asked.append(half_life)
        return Variables({"level": jnp.float32(1.0)}, {})

    given = {
        "fid": {},
        "fid_short": {"metric": "fid", "ema": 5.0},
        "examples": {},
        "examples_short": {"metric": "examples", "ema": 5.0},
    }
    judge = evaluator(extractors, family, given)
    own = Variables({"level": jnp.float32(0.0)}, {})
    rows = by_metric(judge.run(own, seed=0, weights="EMA", averages=average).rows)
    assert rows["fid_short/fd_digits"].value > 1.1 * rows["fd_digits"].value
    assert (rows["level"].value, rows["examples_short/level"].value) == (0.0, 1.0)
    assert rows["fd_digits"].weights == rows["level"].weights == "EMA"
    assert rows["fid_short/fd_digits"].weights == rows["examples_short/level"].weights == "EMA 5"
    assert set(asked) == {5.0}
    alone = by_metric(evaluator(extractors, family, {"fid": {}}).run(own, seed=0, weights="").rows)
    assert alone["fd_digits"].value == rows["fd_digits"].value


def test_an_exact_likelihood_is_computed_as_its_evaluation_says(extractors):
    seen = []

    def density(variables, batch, key, *, probes, tolerance):
        seen.append((probes, tolerance))
        return {"bits_per_dim_ode": batch["x"].mean((1, 2, 3))}

    family = Sampler().family()._replace(density=density)
    given = {
        "exact_likelihood": {"likelihood_count": 40},
        "finer": {"metric": "exact_likelihood", "probes": 0, "tolerance": 1e-7},
    }
    made = evaluator(extractors, family, given, probes=3)
    rows = made.run(NOTHING, seed=0, weights="EMA").rows
    assert [(row.key, row.n) for row in rows] == [
        ("bits_per_dim_ode", 40),
        ("finer/bits_per_dim_ode", 80),
    ]
    assert list(dict.fromkeys(seen)) == [(3, 1e-5), (0, 1e-7)]
