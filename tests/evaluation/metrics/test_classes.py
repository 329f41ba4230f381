"""The inception score against torch-fidelity; modes against hand-made answers."""

import numpy as np
import oracles
import pytest

from aigc_jax.data import mixtures
from aigc_jax.evaluation.metrics import classes


def random_logits(n, k=10, scale=3.0):
    return np.random.default_rng(0).standard_normal((n, k)).astype(np.float32) * scale


@pytest.mark.parametrize(("n", "splits"), [(1000, 10), (997, 10), (40, 1), (7, 7)])
def test_inception_score_against_torch_fidelity(n, splits):
    torch = pytest.importorskip("torch")
    metric = oracles.torch_fidelity("metric_isc")
    logits = random_logits(n)
    theirs = metric.isc_features_to_metric(torch.tensor(logits), splits=splits, shuffle=False)
    ours = classes.inception_score(logits, splits=splits, seed=None)
    np.testing.assert_allclose(
        ours, (theirs["inception_score_mean"], theirs["inception_score_std"]), rtol=1e-9, atol=1e-12
    )


def test_inception_score_of_sure_and_of_unsure_classifiers():
    sure = np.eye(10)[np.arange(1000) % 10] * 1e4  # probabilities that underflow to 0
    assert classes.inception_score(sure, seed=None) == (pytest.approx(10), pytest.approx(0))
    assert classes.inception_score(np.full((50, 10), 1e6))[0] == pytest.approx(1)
    assert classes.inception_score(np.repeat(sure[:1], 50, axis=0))[0] == pytest.approx(1)
    shifted = classes.inception_score(random_logits(100) + 1e3)
    np.testing.assert_allclose(shifted, classes.inception_score(random_logits(100)), rtol=1e-3)


def test_inception_score_is_shuffled_before_the_split():
    by_class = np.repeat(np.eye(10) * 50, 100, axis=0)
    assert classes.inception_score(by_class, seed=None)[0] == pytest.approx(1)
    assert classes.inception_score(by_class)[0] > 9
    assert classes.inception_score(by_class, seed=1) != classes.inception_score(by_class)
    assert classes.inception_score(by_class) == classes.inception_score(by_class, seed=0)


@pytest.mark.parametrize(
    ("logits", "splits", "message"),
    [
        (np.ones(5), 1, r"logits must be \[n, d\]"),
        (np.ones((5, 3)), 10, "at least 10 samples, not 5"),
        (np.full((5, 3), -np.inf), 1, "NaN or inf"),
        (np.ones((5, 3)), 0, "splits must be at least 1"),
    ],
)
def test_inception_score_of_what_has_none(logits, splits, message):
    with pytest.raises(ValueError, match=message):
        classes.inception_score(logits, splits=splits)


def test_mode_coverage_by_hand():
    perfect = classes.mode_coverage(np.array([0, 1, 2, 0]), np.array([2, 1, 1]))
    assert (perfect.covered, perfect.kl) == (3, 0.0)
    one = classes.mode_coverage(np.full(9, 3), np.ones(1000))
    assert (one.covered, one.kl) == (1, pytest.approx(np.log(1000)))
    skewed = classes.mode_coverage(np.array([0, 0, 0, 1]), np.array([0.5, 0.25, 0.25]))
    assert skewed.kl == pytest.approx(0.75 * np.log(1.5))
    assert skewed.covered == 2


def test_nothing_that_was_hit_is_no_mode_and_infinitely_far():
    assert classes.mode_coverage(np.zeros(0, int), np.ones(3)) == (0, np.inf)


def test_mode_coverage_against_scipy():
    from scipy.stats import entropy

    rng = np.random.default_rng(0)
    predicted, real = rng.integers(0, 50, 300), rng.random(60) + 0.1
    coverage = classes.mode_coverage(predicted, real)
    share = np.bincount(predicted, minlength=60) / 300
    assert coverage.kl == pytest.approx(entropy(share, real), rel=1e-12)
    assert coverage.covered == len(set(predicted.tolist()))


def test_samples_of_the_data_lose_few_of_stacked_mnist_s_modes():
    """26,000 fair draws of 1,000 modes: all are hit, and KL is (K - 1) / 2n."""
    predicted = np.random.default_rng(0).integers(0, 1000, 26_000)
    coverage = classes.mode_coverage(predicted, np.ones(1000))
    assert coverage.covered == 1000
    assert coverage.kl == pytest.approx(999 / 52_000, rel=0.2)


@pytest.mark.parametrize(
    ("predicted", "real", "message"),
    [
        ([0, 2], [1, 1, 0], "samples fall in mode 2"),
        ([0, 3], [1, 1, 1], r"0\.\.2, not in 0\.\.3"),
        ([-1, 1], [1, 1, 1], r"0\.\.2, not in -1\.\.1"),
        ([0.0, 1.0], [1, 1], "integers"),
        ([[0, 1]], [1, 1], "integers"),
        ([0], [0, 0], "real_frequencies"),
        ([0], [1, np.nan], "real_frequencies"),
        ([0], [1, -1], "real_frequencies"),
        ([0], [[1, 1]], "real_frequencies"),
    ],
)
def test_modes_that_cannot_be_counted(predicted, real, message):
    with pytest.raises(ValueError, match=message):
        classes.mode_coverage(np.array(predicted), np.array(real))


@pytest.mark.parametrize(("mixture", "k"), [(mixtures.ring, 8), (mixtures.grid, 25)])
def test_a_mixture_recognises_its_own_samples(mixture, k):
    centres, std = mixture()
    assert centres.shape == (k, 2)
    apart = np.linalg.norm(centres[:, None] - centres[None], axis=-1) + 9 * np.eye(k)
    assert apart.min() > 12 * std  # every mode is another
    rng = np.random.default_rng(0)
    label = rng.integers(0, k, 20_000)
    points = centres[label] + std * rng.standard_normal((20_000, 2))
    mode, high_quality = classes.mixture_modes(points, centres, std)
    np.testing.assert_array_equal(mode, label)
    assert high_quality.mean() == pytest.approx(1 - np.exp(-4.5), abs=0.003)
    assert classes.mode_coverage(mode, np.ones(k)).kl < 0.005


def test_the_mixtures_are_the_published_ones():
    centres, std = mixtures.ring()
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 1)
    np.testing.assert_allclose(centres[[0, 2]], [[1, 0], [0, 1]], atol=1e-15)
    assert std == 0.01
    centres, std = mixtures.grid()
    assert {tuple(c) for c in centres} == {(a, b) for a in range(-4, 5, 2) for b in range(-4, 5, 2)}
    assert std == 0.05


def test_high_quality_ends_at_three_std():
    centres = np.array([[0.0, 0.0], [10.0, 0.0]])
    points = np.array([[0.0, 2.9], [0.0, 3.1], [8.0, 2.0], [6.0, 0.0]])
    mode, high_quality = classes.mixture_modes(points, centres, 1.0)
    np.testing.assert_array_equal(mode, [0, 0, 1, 1])
    np.testing.assert_array_equal(high_quality, [True, False, True, False])


@pytest.mark.parametrize(
    ("points", "centres", "std", "message"),
    [
        (np.ones(2), np.ones((3, 2)), 1, "points must be"),
        (np.ones((4, 3)), np.ones((3, 2)), 1, r"must be \[n, 2\]"),
        (np.full((4, 2), np.nan), np.ones((3, 2)), 1, "points holds NaN"),
        (np.ones((4, 2)), np.ones((3, 2)), 0, "std must be above 0"),
    ],
)
def test_points_without_modes(points, centres, std, message):
    with pytest.raises(ValueError, match=message):
        classes.mixture_modes(points, centres, std)
