"""Evaluators of samples, on arrays: what they name, count, compare and refuse."""

import dataclasses

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from aigc_jax.evaluation import evaluators
from aigc_jax.evaluation.comparison import ImageComparison, RealSplit
from aigc_jax.evaluation.features import Features
from aigc_jax.evaluation.metrics.memorisation import memorisation


# Images of 2x2 bytes whose four pixels are their features, of four classes by the brightest pixel.
def extract(images):
    flat = images.reshape(-1, 4).astype(np.float32)
    return Features(flat, flat / 4)


def cloud(seed, n, brightest=None):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 80, (n, 4))
    chosen = np.arange(n) % 4 if brightest is None else brightest
    images[np.arange(n), chosen] += 120
    return images.reshape(n, 2, 2, 1).astype(np.uint8)


def split(name, images):
    labels = images.reshape(-1, 4).argmax(1)
    return RealSplit(
        name,
        len(images),
        lambda: extract(images),
        lambda index: {"x": images[index], "label": labels[index]},
    )


TRAIN, TEST = cloud(0, 400), cloud(1, 300)


def comparison(samples, **changes):
    given = ImageComparison(
        network="tiny",
        drawn=lambda: extract(samples),
        labels=None,
        reference=split("toy train", TRAIN),
        held_out=split("toy test", TEST),
        statistics=None,
        manifold_count=100,
    )
    return dataclasses.replace(given, **changes)


def values(samples, names=tuple(evaluators.DISTRIBUTION), real=True, **changes):
    compared = comparison(samples, **changes)
    found = (evaluators.of_samples(name, compared, real=real) for name in names)
    return {row.metric: row for rows in found for row in rows}


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
    copied = comparison(TRAIN[40:60])
    assert copied.nearest.train.tolist() == list(range(40, 60))
    found = memorisation(*(extract(x).features for x in (TEST, TRAIN, TEST)))
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


@pytest.mark.parametrize("network", ["tiny", "inception"])
@pytest.mark.parametrize("name", evaluators.DISTRIBUTION)
def test_every_evaluator_states_the_metrics_that_it_makes(name, network):
    for labels in (None, np.arange(200) % 4):
        made = list(values(cloud(2, 200), (name,), network=network, labels=labels))
        assert made == evaluators.metrics(name, network, labels is not None)


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


@pytest.mark.parametrize("name", evaluators.DISTRIBUTION)
def test_what_an_evaluator_says_that_it_needs_is_enough_for_it(name):
    judged, reference, _ = evaluators.NEEDS[name]
    enough = {"reference": split("toy train", cloud(3, max(reference, 1)))}
    assert evaluators.lacking(name, judged, reference) == ""
    rows = values(cloud(2, judged), (name,), **enough)
    assert rows
    assert all(np.isfinite(row.value) for row in rows.values())
    assert evaluators.lacking(name, judged - 1, reference).startswith(f"needs at least {judged} s")
    if reference:
        told = evaluators.lacking(name, judged, reference - 1)
        assert (
            told == f"needs at least {reference} real images to compare with, not {reference - 1}"
        )
    # Fewer held-out images leave their own column empty, and nothing else.
    few = values(cloud(2, judged), (name,), held_out=split("few", TEST[:1]), **enough)
    assert {row.real for row in few.values()} == {None}
    if name != "memorisation":  # which looks at them
        assert [row.value for row in few.values()] == [row.value for row in rows.values()]


@pytest.mark.parametrize("name", ["fid", "kid", "precision_recall", "inception_score"])
def test_with_one_sample_less_there_is_no_value(name):
    with pytest.raises(ValueError, match=r"at least|same features|neighbours need"):
        values(cloud(2, evaluators.NEEDS[name].judged - 1), (name,), real=False)


def test_constant_images_are_refused_with_what_to_do():
    with pytest.raises(ValueError, match=r"all 50 samples have the same features.*--mode=sample"):
        values(np.full((50, 2, 2, 1), 7, np.uint8))


def test_samples_and_real_images_are_told_apart_by_their_type():
    """Not by which object they are: equal features get each what is said of their kind."""
    compared = comparison(TRAIN[:100])
    images = compared.samples
    assert not images.real
    assert compared.real.real
    ours, theirs = (evaluators.memorisation(compared, images._replace(real=r)) for r in (0, 1))
    assert [row.value for row in ours] == [1.0, 1.0]
    assert [row.value for row in theirs] == [0.5, 0.01]
    dim = comparison(TRAIN[:100] // 10)
    notes = [evaluators.diversity_of(dim, dim.samples._replace(real=r))[0].note for r in (0, 1)]
    assert notes[0].startswith("mode collapse")
    assert notes[1] == ""


def test_diversity_stands_beside_real_images_and_collapse_is_said():
    real = cloud(2, 200)
    row = values(real, ("diversity",))["diversity_tiny"]
    assert row.value == pytest.approx(row.real, rel=0.05)
    assert row.note == ""
    expected = pdist(real.reshape(-1, 4).astype(float)).mean()
    assert row.value == pytest.approx(expected, rel=0.02)
    # A tenth as bright: a tenth as far apart.
    row = values(real // 10, ("diversity",))["diversity_tiny"]
    assert row.value < 0.2 * row.real
    assert row.note.startswith("mode collapse: samples differ 0.1")


def test_no_real_column_is_made_where_none_is_wanted():
    rows = values(TEST, ("diversity",), real=False)
    assert [(row.metric, row.real) for row in rows.values()] == [("diversity_tiny", None)]


def test_labels_of_held_out_images_are_read_only_where_samples_have_any():
    def fetch(index):
        raise AssertionError("decoding real images takes long")

    held_out = dataclasses.replace(split("toy test", TEST), fetch=fetch)
    assert "modes_tiny" in values(cloud(2, 200), ("modes", "diversity"), held_out=held_out)
