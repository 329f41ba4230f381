"""Evaluators on arrays: what they name, count, compare and refuse."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.evaluation import evaluators, results
from aigc_jax.evaluation.evaluators import per_example
from aigc_jax.evaluation.features import Features
from aigc_jax.evaluation.memorisation import memorisation
from aigc_jax.evaluation.results import Row
from aigc_jax.evaluation.subject import Split, Subject


def batches():
    yield {"x": jnp.array([1.0, 2.0]), "mask": jnp.array([1.0, 1.0])}
    yield {"x": jnp.array([6.0, jnp.nan]), "mask": jnp.array([1.0, 0.0])}


def test_means_are_over_examples_and_padding_does_not_count():
    found = per_example(
        lambda batch, key: {"x": batch["x"], "twice": 2 * batch["x"]}, batches(), jax.random.key(0)
    )
    assert found["x"].value == 3.0
    assert found["twice"].value == 6.0
    assert found["x"].count == 3
    np.testing.assert_allclose(found["x"].error, np.std([1, 2, 6], ddof=1) / 3**0.5, rtol=1e-6)


def test_a_real_value_that_is_not_a_number_is_not_hidden():
    rows = [{"x": jnp.array([1.0, jnp.nan]), "mask": jnp.ones(2)}]
    found = per_example(lambda batch, key: {"x": batch["x"]}, rows, jax.random.key(0))
    assert np.isnan(found["x"].value)


def test_each_batch_has_a_key_of_its_own_and_each_evaluation_the_same():
    seen = []

    def evaluate(batch, key):
        seen.append(jax.random.key_data(key).tolist())
        return {"x": batch["x"]}

    for _ in range(2):
        per_example(evaluate, batches(), jax.random.key(3))
    assert seen[:2] == seen[2:]
    assert seen[0] != seen[1]


# Images of 2x2 bytes whose four pixels are their features, of four classes by the brightest pixel.
def extract(images):
    flat = np.concatenate(list(images)).reshape(-1, 4).astype(np.float32)
    return Features(flat, flat / 4)


def cloud(seed, n, brightest=None):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 80, (n, 4))
    chosen = np.arange(n) % 4 if brightest is None else brightest
    images[np.arange(n), chosen] += 120
    return images.reshape(n, 2, 2, 1).astype(np.uint8)


def split(name, images):
    labels = images.reshape(-1, 4).argmax(1)
    return Split(
        name,
        len(images),
        lambda: extract([images]),
        lambda index: {"image": images[index], "label": labels[index]},
    )


TRAIN, TEST = cloud(0, 400), cloud(1, 300)


def subject(samples, **changes):
    given = Subject(
        network="tiny",
        extract=extract,
        sample=lambda: iter(np.array_split(samples, 3)),
        labels=None,
        reference=split("toy train", TRAIN),
        held_out=split("toy test", TEST),
        statistics=None,
        manifold_count=100,
        evaluate=lambda batch, key: {"loss": batch["image"].mean((1, 2, 3))},
        restore=None,
        likelihood=None,
        likelihood_count=2,
        diagnose=None,
        pictures=dict,
        examples=lambda limit: iter([{"image": jnp.ones((2, 2, 2, 1)), "mask": jnp.ones(2)}]),
        key=jax.random.key(0),
    )
    return dataclasses.replace(given, **changes)


def values(samples, names=tuple(evaluators.DISTRIBUTION), **changes):
    return {row.metric: row for row in evaluators.run(subject(samples, **changes), names)}


def test_samples_of_the_datas_own_distribution_get_what_held_out_images_get():
    rows = values(cloud(2, 200))
    for metric in ("sure_tiny", "score_tiny", "precision_tiny", "recall_tiny", "coverage_tiny"):
        assert rows[metric].value == pytest.approx(rows[metric].real, abs=0.12), metric
    assert rows["fd_tiny"].value == pytest.approx(rows["fd_tiny"].real, abs=120)
    assert abs(rows["kd_tiny"].value) < 5e7 * rows["kd_tiny"].error
    assert rows["modes_tiny"].value == 4
    assert rows["class_kl_tiny"].value < 0.01
    assert 0.4 < rows["closer_to_train_tiny"].value < 0.6
    assert rows["copies_tiny"].value < 0.04
    assert rows["fd_tiny"].reference == "toy train (400)"
    assert rows["precision_tiny"].n == 100  # manifold_count
    assert rows["fd_tiny"].n == 200
    assert rows["fd_tiny"].network == "tiny"


def test_every_distance_rises_for_other_images():
    good, dark = values(cloud(2, 200)), values(cloud(2, 200) // 2)
    for metric in ("fd_tiny", "kd_tiny"):
        assert dark[metric].value > 5 * abs(good[metric].value)
        assert dark[metric].real == good[metric].real
    for metric in ("precision_tiny", "density_tiny", "coverage_tiny"):
        assert dark[metric].value < good[metric].value - 0.3


def test_missing_classes_are_counted():
    rows = values(cloud(2, 200, np.arange(200) % 2))
    assert rows["modes_tiny"].value == 2
    assert rows["modes_tiny"].note == "of 4"
    assert rows["class_kl_tiny"].value == pytest.approx(np.log(2), abs=1e-6)


def test_copies_of_training_images_are_found():
    rows = values(TRAIN[:100])
    assert rows["copies_tiny"].value == 1.0
    assert rows["closer_to_train_tiny"].value == 1.0
    seen = subject(TRAIN[40:60])
    assert seen.copying.train.tolist() == list(range(40, 60))
    found = memorisation(*(split("", x).features().features for x in (TEST, TRAIN, TEST)))
    assert found.closer == 0.5  # the same images: ties, and as many above as below
    assert found.test.tolist() == list(range(300))
    assert (found.distances[:, 1] == 0).all()


def test_labels_asked_for_are_compared():
    asked = np.arange(200) % 4
    rows = values(cloud(2, 200), ("modes",), labels=asked)
    assert rows["agreement_tiny"].value == 1.0
    assert rows["agreement_tiny"].real == 1.0
    rows = values(cloud(2, 200), ("modes",), labels=(asked + 1) % 4)
    assert rows["agreement_tiny"].value == 0.0
    assert "agreement_tiny" not in values(cloud(2, 200), ("modes",))


def test_only_inception_gives_the_names_that_papers_use():
    named = values(cloud(2, 200), network="inception")
    assert {"fid", "kid", "inception_score", "precision_inception"} <= set(named)
    assert not {"fid", "kid", "inception_score"} & set(values(cloud(2, 200)))


def test_statistics_from_a_file_replace_the_reference():
    mean, covariance = np.zeros(4), np.zeros((4, 4))
    flat = cloud(2, 200).reshape(-1, 4).astype(np.float64)
    row = values(cloud(2, 200), ("fid",), statistics=(mean, covariance, "x.npz"))["fd_tiny"]
    assert row.reference == "x.npz"
    expected = (flat.mean(0) ** 2).sum() + flat.var(0, ddof=1).sum()
    np.testing.assert_allclose(row.value, expected, rtol=1e-9)
    with pytest.raises(ValueError, match=r"one dimension, not 4 and 5"):
        values(cloud(2, 200), ("fid",), statistics=(np.zeros(5), np.eye(5), "x.npz"))


def test_few_samples_are_said_to_bias_and_too_few_refused():
    assert "biased" in values(cloud(2, 4), ("fid",))["fd_tiny"].note
    assert values(cloud(2, 5), ("fid",))["fd_tiny"].note == ""
    with pytest.raises(ValueError, match="neighbours need more than 3 samples"):
        values(cloud(2, 3), ("precision_recall",))
    with pytest.raises(ValueError, match="needs at least 10 samples"):
        values(cloud(2, 3), ("inception_score",))


def test_constant_images_are_refused_with_what_to_do():
    with pytest.raises(ValueError, match=r"all 50 samples have the same features.*--mode=sample"):
        values(np.full((50, 2, 2, 1), 7, np.uint8))


def test_an_unknown_evaluator_is_told_the_near_one():
    with pytest.raises(ValueError, match=r"not 'kidd'; did you mean 'kid'"):
        evaluators.run(subject(TEST), ["kidd"])


def test_examples_and_restorations_are_of_real_data():
    original = np.random.default_rng(0).uniform(-1, 1, (2, 12, 12, 1)).astype(np.float32)

    def restore(batch, key):
        return {"t=20": (jnp.zeros_like(batch["image"]), batch["image"] + 0.1),
                "t=3": (jnp.zeros_like(batch["image"]), batch["image"])}  # fmt: skip

    batch = {"image": jnp.asarray(original), "mask": jnp.ones(2)}
    rows = evaluators.run(
        subject(TEST, restore=restore, examples=lambda limit: iter([batch])),
        ["restoration", "examples"],
        weights="EMA",
        seed=3,
    )
    found = {row.metric: row for row in rows}
    np.testing.assert_allclose(found["psnr/t=20"].value, 20 * np.log10(2 / 0.1), rtol=1e-5)
    np.testing.assert_allclose(found["l1/t=20"].value, 0.1, rtol=1e-5)
    assert found["ssim/t=3"].value == pytest.approx(1.0)
    assert "ms_ssim/t=3" not in found  # five scales need 176 pixels
    assert [name for name in found if "psnr" in name] == ["psnr/t=3", "psnr/t=20"]
    given = 10 * np.log10(4 / (original**2).mean((1, 2, 3)))
    assert found["psnr/t=20"].note == f"given {given.mean():.4g}"
    assert found["loss"].value == pytest.approx(original.mean(), abs=1e-6)
    assert (found["loss"].seed, found["loss"].weights) == (None, "EMA")
    assert found["loss"].reference == "toy test"
    assert evaluators.run(subject(TEST), ["restoration", "likelihood"]) == []


def test_a_dear_bound_is_taken_of_as_many_examples_as_the_config_says():
    limits = []

    def examples(limit):
        limits.append(limit)
        return iter([{"image": jnp.ones((2, 2, 2, 1)), "mask": jnp.ones(2)}])

    bound = subject(
        TEST,
        likelihood=lambda batch, key: {"bits_per_dim": 3 * batch["image"].mean((1, 2, 3))},
        examples=examples,
    )
    rows = evaluators.run(bound, ["likelihood", "examples"])
    assert [(row.metric, row.value, row.n) for row in rows] == [
        ("bits_per_dim", 3.0, 2),
        ("loss", 1.0, 2),
    ]
    assert limits == [2, 0]


ROWS = [
    Row("fid", 12.345678, 500, 0.25, 3.0, "inception", "cifar10 train (50000)", "ddim", 50,
        "EMA", 0, "biased"),
    Row("loss", float("nan"), 10, reference="cifar10 test"),
]  # fmt: skip


def test_a_table_shows_each_value_beside_what_was_published():
    published = [("fid", 3.17, "Ho et al."), ("fid", 9.17, "Song et al."), ("other", 1.0, "x")]
    text = results.table(ROWS, published)
    header, fid, loss, *sources = text.splitlines()
    for word in ("12.35 ± 0.25", "3.17 / 9.17", "cifar10 train (50000)", "ddim, 50 steps, EMA"):
        assert word in fid
    assert fid.index("inception") == header.index("network")
    assert "nan" in loss
    assert sources == ["published: fid 3.17: Ho et al.", "published: fid 9.17: Song et al."]
    assert "published" not in results.table(ROWS)


def test_results_are_json_that_any_reader_takes(tmp_path):
    path = tmp_path / "evaluations" / "x.json"
    results.write(path, ROWS, step=7, scheduled=True, pictures={"caption": "evaluations/x.png"})
    content = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert content["step"] == 7
    assert content["scheduled"]
    assert content["rows"][1]["value"] is None
    assert Row(**content["rows"][0]) == ROWS[0]
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]
