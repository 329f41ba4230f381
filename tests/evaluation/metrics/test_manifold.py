"""Precision, recall, density and coverage against prdc, torch-fidelity and closed forms."""

import numpy as np
import oracles
import pytest

from aigc_jax.evaluation.metrics import manifold


def pair(n, d=16, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n, d)), rng.standard_normal((n, d))
    return x, y @ (np.eye(d) + 0.1 * rng.standard_normal((d, d))) + 0.3


def by_hand(real, fake, k):
    """All four from whole matrices of differences."""

    def distances(a, b):
        return np.linalg.norm(a[:, None] - b[None], axis=-1)

    def radii(a):
        return np.sort(distances(a, a), axis=1)[:, k]

    between = distances(real, fake)
    in_real = between <= radii(real)[:, None]
    in_fake = between <= radii(fake)[None]
    return (
        in_real.any(0).mean(),
        in_fake.any(1).mean(),
        in_real.sum() / (k * len(fake)),
        in_real.any(1).mean(),
    )


def all_four(real, fake, k):
    return (
        *manifold.precision_recall(real, fake, neighbours=k),
        *manifold.density_coverage(real, fake, neighbours=k),
    )


@pytest.fixture
def published():
    """The first 2,000 of the 5,000 of the published draw."""
    x, y = pair(5000)
    return x[:2000], y[:2000]


def test_published_numbers(published):
    assert manifold.precision_recall(*published) == (0.592, 0.638)


def test_against_torch_fidelity(published):
    torch = pytest.importorskip("torch")
    metric = oracles.torch_fidelity("metric_prc")
    real, fake = published
    theirs = metric.prc_features_to_metric(  # the generated set comes first
        torch.tensor(fake), torch.tensor(real), prc_neighborhood=3, verbose=False
    )
    ours = manifold.precision_recall(real, fake)
    np.testing.assert_allclose(ours, (theirs["precision"], theirs["recall"]), atol=1e-7)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_against_prdc(k):
    prdc = pytest.importorskip("prdc")
    real, fake = pair(400, 24)
    fake = fake[:300]
    theirs = prdc.compute_prdc(real, fake, nearest_k=k)
    names = ("precision", "recall", "density", "coverage")
    np.testing.assert_allclose(all_four(real, fake, k), [theirs[n] for n in names], rtol=1e-12)


@pytest.mark.parametrize(("n", "m", "k"), [(2, 2, 1), (7, 5, 2), (40, 61, 4)])
def test_against_differences_whatever_the_blocks(n, m, k, monkeypatch):
    real, fake = pair(n, 3)[0], pair(m, 3, seed=1)[1]
    for rows in (1000, 3, 1):
        monkeypatch.setattr(manifold, "BLOCK_BYTES", rows * 8 * n)
        np.testing.assert_allclose(all_four(real, fake, k), by_hand(real, fake, k), rtol=1e-12)


def test_on_a_line():
    """Unit spacing gives every point a ball of radius 1 for k = 1, edges included."""
    real, fake = np.arange(5.0)[:, None], np.array([0.0, 0.5, 5.0, 5.5, 9.0])[:, None]
    # Fake radii: .5 .5 .5 .5 3.5. Inside real balls: 0, .5, 5.
    assert manifold.precision_recall(real, fake, neighbours=1) == (3 / 5, 2 / 5)
    # 0 is in the balls of 0 and 1, .5 as well, 5 in that of 4.
    assert manifold.density_coverage(real, fake, neighbours=1) == (5 / 5, 3 / 5)


def test_identical_sets_and_sets_far_apart():
    x, _ = pair(100, 8)
    assert manifold.precision_recall(x, x) == (1.0, 1.0)
    assert manifold.density_coverage(x, x)[1] == 1.0
    assert all_four(x, x + 1000, 3) == (0.0, 0.0, 0.0, 0.0)
    collapsed = np.repeat(x[:1], 50, axis=0)  # all samples are one real image
    precision, recall = manifold.precision_recall(x, collapsed)
    assert precision == 1.0
    assert recall == 1 / 100


def test_density_is_one_in_expectation():
    rng = np.random.default_rng(0)
    values = [manifold.density_coverage(*rng.standard_normal((2, 300, 4)))[0] for _ in range(30)]
    assert abs(np.mean(values) - 1) < 4 * np.std(values) / 30**0.5


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_features_that_coincide(dtype):
    """Points repeated more often than there are neighbours have balls of radius 0."""
    constant = np.full((10, 64), 0.1, dtype)
    assert all_four(constant, constant, 3) == (1.0, 1.0, 10 / 3, 1.0)
    assert all_four(constant, constant + dtype(1), 3) == (0.0, 0.0, 0.0, 0.0)
    repeated = np.repeat(np.random.default_rng(0).standard_normal((5, 2048)), 10, axis=0)
    repeated = repeated.astype(dtype)
    assert manifold.precision_recall(repeated, repeated) == (1.0, 1.0)
    assert manifold.precision_recall(repeated, repeated[:20]) == (1.0, 0.4)
    # Each fake lies in the 10 balls of its point, whose k is 5, and in no other.
    assert manifold.density_coverage(repeated, repeated[:20]) == (10 / 5, 0.4)
    assert manifold.density_coverage(repeated, repeated[[0, 13, 27]]) == (10 / 5, 0.6)
    assert manifold.density_coverage(repeated, repeated[::3]) == (10 / 5, 1.0)


def test_a_common_offset_changes_nothing():
    """Integers, exact at the offset too, whose squares are not."""
    real, fake = np.random.default_rng(0).integers(0, 4096, (2, 200, 4)).astype(np.float64)
    offset = 2.0**30
    assert all_four(real + offset, fake + offset, 3) == all_four(real, fake, 3)
    moved, index = manifold.nearest(real + offset, fake + offset)
    np.testing.assert_array_equal(index, manifold.nearest(real, fake)[1])
    np.testing.assert_allclose(moved, manifold.nearest(real, fake)[0], rtol=1e-12)


def test_nearest_against_differences(monkeypatch):
    queries, base = pair(60, 5)[0], pair(90, 5, seed=1)[1]
    whole = np.linalg.norm(queries[:, None] - base[None], axis=-1)
    for rows in (1000, 7):
        monkeypatch.setattr(manifold, "BLOCK_BYTES", rows * 8 * len(base))
        distance, index = manifold.nearest(queries, base)
        np.testing.assert_array_equal(index, whole.argmin(1))
        np.testing.assert_allclose(distance, whole.min(1), rtol=1e-12)


def test_nearest_finds_copies():
    base = pair(50, 2048)[0].astype(np.float32)
    distance, index = manifold.nearest(base[[7, 3, 3]], base)
    np.testing.assert_array_equal(index, [7, 3, 3])
    np.testing.assert_array_equal(distance, 0)
    shifted, _ = manifold.nearest(base[:1] + np.float32(1e-6), base)
    assert shifted[0] == pytest.approx(1e-6 * 2048**0.5, rel=0.1)


@pytest.mark.parametrize("metric", [manifold.precision_recall, manifold.density_coverage])
@pytest.mark.parametrize(
    ("real", "fake", "options", "message"),
    [
        (np.ones(4), np.ones((9, 2)), {}, r"real must be \[n, d\]"),
        (np.ones((9, 2)), np.ones((9, 3)), {}, "one dimension, not 2 and 3"),
        (np.ones((9, 2)), np.ones((0, 2)), {}, r"fake must be \[n, d\] and not empty"),
        (np.ones((9, 2)), np.full((9, 2), np.nan), {}, "fake holds NaN or inf"),
        (np.ones((4, 2)), np.ones((9, 2)), {"neighbours": 4}, "more than 4 samples; real has 4"),
        (np.ones((9, 2)), np.ones((9, 2)), {"neighbours": 0}, "neighbours must be at least 1"),
    ],
)
def test_what_has_no_manifold(metric, real, fake, options, message):
    with pytest.raises(ValueError, match=message):
        metric(real, fake, **options)


def test_recall_needs_more_fakes_than_neighbours_and_coverage_one():
    real, fake = pair(9, 2)
    with pytest.raises(ValueError, match="more than 3 samples; fake has 3"):
        manifold.precision_recall(real, fake[:3])
    assert manifold.density_coverage(real, fake[:1])[1] <= 1


def test_nearest_of_sets_that_do_not_fit():
    with pytest.raises(ValueError, match="one dimension, not 2 and 3"):
        manifold.nearest(np.ones((3, 2)), np.ones((4, 3)))
    with pytest.raises(ValueError, match=r"base must be \[n, d\] and not empty"):
        manifold.nearest(np.ones((1, 2)), np.ones((0, 2)))
