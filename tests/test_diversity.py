"""Diversity against closed forms, and the words that are said where it is too little."""

import numpy as np
import pytest
import test_evaluation as evaluation
import toys
from scipy.spatial.distance import pdist

from aigc_jax.evaluation import diversity, evaluators


def test_copies_of_one_image_have_none():
    assert diversity.mean_distance(np.full((50, 12), 3.0)) == 0
    assert diversity.mean_distance(np.full((500, 12), 3.0), pairs=100) == 0


def test_two_values_differ_in_as_many_pairs_as_there_are_of_both():
    d, n = 2.0 * 3**0.5, 20
    two = np.repeat([[0.0, 0.0, 0.0], [2.0, 2.0, 2.0]], n // 2, axis=0)
    expected = (n // 2) ** 2 / (n * (n - 1) / 2) * d
    assert diversity.mean_distance(two) == pytest.approx(expected, rel=1e-12)
    assert diversity.mean_distance(two[[0, -1]]) == pytest.approx(d, rel=1e-12)
    many = np.repeat(two, 100, axis=0)
    assert diversity.mean_distance(many, pairs=40_000) == pytest.approx(d / 2, rel=0.02)


def test_all_pairs_are_scipys_and_some_are_a_sample_of_them():
    x = np.random.default_rng(0).standard_normal((100, 7)).astype(np.float32)
    assert diversity.mean_distance(x) == pytest.approx(pdist(x).mean(), rel=1e-5)
    some = diversity.mean_distance(x, pairs=2000)
    assert some == pytest.approx(pdist(x).mean(), rel=0.03)
    assert some == diversity.mean_distance(x, pairs=2000)
    assert some != diversity.mean_distance(x, pairs=2000, seed=1)


def test_no_image_is_paired_with_itself():
    x = np.arange(3.0)[:, None] * 10
    found = [diversity.mean_distance(x, pairs=2, seed=seed) for seed in range(20)]
    assert min(found) == 10  # a pair of equals would be 0 apart


def test_wide_images_are_taken_a_few_at_a_time(monkeypatch):
    x = np.random.default_rng(0).standard_normal((30, 50))
    whole = diversity.mean_distance(x)
    for values in (1, 7 * 50, 434 * 50):
        monkeypatch.setattr(diversity, "_AT_A_TIME", values)
        assert diversity.mean_distance(x) == pytest.approx(whole, rel=1e-12)


def test_relative_diversity_is_a_share_and_undefined_beside_copies():
    x = np.random.default_rng(0).standard_normal((40, 5))
    assert diversity.relative(0.25 * x + 3, x) == pytest.approx(0.25)
    assert np.isnan(diversity.relative(x, np.ones((4, 5))))


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.ones((1, 4)), "at least 2"),
        (np.ones(4), r"\[n, d\]"),
        (np.full((3, 4), np.nan), "NaN or inf"),
    ],
)
def test_what_has_no_pairs_is_refused(vectors, message):
    with pytest.raises(ValueError, match=message):
        diversity.mean_distance(vectors)


def test_samples_stand_beside_real_images_and_collapse_is_said():
    real = evaluation.cloud(2, 200)
    row = evaluation.values(real, ("diversity",))["diversity_tiny"]
    assert row.value == pytest.approx(row.real, rel=0.05)
    assert row.note == ""
    expected = pdist(real.reshape(-1, 4).astype(float)).mean()
    assert row.value == pytest.approx(expected, rel=0.02)
    # A tenth as bright: a tenth as far apart.
    row = evaluation.values(real // 10, ("diversity",))["diversity_tiny"]
    assert row.value < 0.2 * row.real
    assert row.note.startswith("mode collapse: samples differ 0.1")


def test_no_real_column_is_made_where_none_is_wanted():
    rows = evaluators.run(evaluation.subject(evaluation.TEST), ["diversity"], real=False)
    assert [(row.metric, row.real) for row in rows] == [("diversity_tiny", None)]


def shrunk(family, factor):
    """The toy with samples that differ `factor` times as much."""
    sample = family.sample

    def smaller(*given):
        return factor * sample(*given)

    return family._replace(sample=smaller)


def run(workdir, family, **changes):
    setting = toys.config("one", {"train.steps": 3, "log.eval_every": 0} | changes)
    toys.loop.train(setting, workdir, family, toys.dataset())
    return [row["samples/diversity"] for row in toys.rows(workdir) if "samples/diversity" in row]


def test_a_run_measures_what_it_draws_and_warns_in_words(tmp_path, capsys):
    still = {"optimizer": toys.optimizer("sgd", learning_rate=0.0), "checkpoint.best": ""}
    (whole,) = run(tmp_path / "a", shrunk(toys.one_player(), 1.0), **still)
    capsys.readouterr()
    (tenth,) = run(tmp_path / "b", shrunk(toys.one_player(), 0.1), **still)
    assert tenth == pytest.approx(0.1 * whole, rel=1e-5)
    assert 0.3 < whole < 3
    warning = f"step 3: samples differ {tenth:.2g} times as much as test images do"
    assert warning in capsys.readouterr().out
    run(tmp_path / "c", shrunk(toys.one_player(), 1.0), **still)
    assert "samples differ" not in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
@pytest.mark.parametrize(("factor", "samples"), [(1.0, 1), (np.nan, 6)])
def test_what_has_no_diversity_stops_no_run(tmp_path, factor, samples):
    changes = {"log.samples": samples, "checkpoint.best": ""}
    assert run(tmp_path, shrunk(toys.one_player(), factor), **changes) == []
