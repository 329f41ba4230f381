"""Diversity against closed forms and SciPy."""

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from aigc_jax.evaluation.metrics import diversity


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
