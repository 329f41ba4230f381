"""The Frechet distance against closed forms, scipy and torch-fidelity."""

import itertools

import numpy as np
import oracles
import pytest
import scipy.linalg

from aigc_jax.evaluation.metrics import frechet


def affine_pair(n, d, seed=0):
    """X ~ N(0, I) and Y = X'A + 0.3, [n, d] each: the draw of the published numbers."""
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n, d)), rng.standard_normal((n, d))
    return x, y @ (np.eye(d) + 0.1 * rng.standard_normal((d, d))) + 0.3


def statistics(features, batch=None):
    moments = frechet.Moments()
    for start in range(0, len(features), batch or len(features)):
        moments.add(features[start : start + (batch or len(features))])
    return moments.mean, moments.covariance


def distance(x, y):
    return frechet.frechet_distance(*statistics(x), *statistics(y))


def by_samples(x, y):
    """The distance from the samples alone: Tr (S1 S2)^1/2 is a nuclear norm of Xc Yc'."""
    xc, yc = x - x.mean(0), y - y.mean(0)
    n1, n2 = len(x) - 1, len(y) - 1
    overlap = scipy.linalg.svdvals(xc @ yc.T).sum() / (n1 * n2) ** 0.5
    shift = ((x.mean(0) - y.mean(0)) ** 2).sum()
    return shift + (xc**2).sum() / n1 + (yc**2).sum() / n2 - 2 * overlap


def reflected(values):
    """A covariance with these eigenvalues, in axes turned by one reflection."""
    v = np.random.default_rng(1).standard_normal(len(values))
    v /= np.linalg.norm(v)
    turned = np.diag(values) - 2 * np.outer(v, v * values)
    return turned - 2 * np.outer(turned @ v, v)


def test_published_number():
    np.testing.assert_allclose(distance(*affine_pair(5000, 16)), 2.9640009357022237, rtol=1e-10)


def test_published_number_of_few_samples():
    """Two draws of N(0, I), 50 in 64 dimensions; the published value lost its last digits."""
    rng = np.random.default_rng(0)
    for shape in ((5000, 16), (5000, 16), (16, 16)):
        rng.standard_normal(shape)  # the draw that came before it
    x, y = rng.standard_normal((50, 64)), rng.standard_normal((50, 64))
    np.testing.assert_allclose(distance(x, y), 43.76363981, rtol=1e-8)
    np.testing.assert_allclose(distance(x, y), by_samples(x, y), rtol=1e-12)


@pytest.mark.parametrize("shape", [(5000, 16), (50, 64), (300, 128)])
def test_against_torch_fidelity_and_sqrtm(shape):
    x, y = affine_pair(*shape)
    metric = oracles.torch_fidelity("metric_fid")
    stats = [
        {"mu": f.mean(0), "sigma": np.cov(f, rowvar=False)} for f in (x, y)
    ]  # of NumPy: torch-fidelity's own moments are these
    theirs = metric.fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]
    np.testing.assert_allclose(distance(x, y), theirs, rtol=1e-6)
    (m1, s1), (m2, s2) = ((s["mu"], s["sigma"]) for s in stats)
    root = scipy.linalg.sqrtm(s1 @ s2).real
    theirs = ((m1 - m2) ** 2).sum() + np.trace(s1 + s2 - 2 * root)
    np.testing.assert_allclose(distance(x, y), theirs, rtol=1e-6)


@pytest.mark.parametrize(("n", "d"), [(20, 64), (500, 2048)])
def test_fewer_samples_than_dimensions_is_exact(n, d):
    x, y = affine_pair(n, d)
    np.testing.assert_allclose(distance(x, y), by_samples(x, y), rtol=1e-10)
    assert 0 <= distance(x, x) < 1e-10 * d


def test_different_ranks():
    x, y = affine_pair(400, 96)
    for few in (2, 10, 90):
        np.testing.assert_allclose(distance(x, y[:few]), by_samples(x, y[:few]), rtol=1e-10)


def test_full_rank_over_twelve_orders_of_magnitude():
    """Covariances with common axes: sum (sqrt a - sqrt b)^2."""
    d = 2048
    a = np.logspace(0, -12, d)
    b = a * np.linspace(0.5, 2.0, d)
    zero = np.zeros(d)
    expected = ((a**0.5 - b**0.5) ** 2).sum()
    got = frechet.frechet_distance(zero, reflected(a), zero, reflected(b))
    np.testing.assert_allclose(got, expected, rtol=1e-8)


def test_statistics_in_float32_are_good_enough():
    x, y = affine_pair(50, 128)
    single = [s.astype(np.float32) for s in (*statistics(x), *statistics(y))]
    np.testing.assert_allclose(frechet.frechet_distance(*single), distance(x, y), rtol=1e-4)


def test_it_is_symmetric_and_invariant_and_zero_for_identical_sets():
    x, y = affine_pair(200, 32)
    np.testing.assert_allclose(distance(x, y), distance(y, x), rtol=1e-12)
    np.testing.assert_allclose(distance(x + 7, y + 7), distance(x, y), rtol=1e-9)
    np.testing.assert_allclose(distance(3 * x, 3 * y), 9 * distance(x, y), rtol=1e-9)
    np.testing.assert_allclose(distance(x, x + 0.5), 32 * 0.25, rtol=1e-9)
    assert 0 <= distance(x, x) < 1e-12
    one = [np.zeros(1), np.array([[4.0]]), np.ones(1), np.array([[9.0]])]
    assert frechet.frechet_distance(*one) == pytest.approx(1 + (3 - 2) ** 2, rel=1e-12)


def test_constant_features():
    constant, varied = np.full((10, 8), 0.1, np.float32), affine_pair(100, 8)[0]
    mean, cov = statistics(varied)
    expected = ((mean - np.float64(np.float32(0.1))) ** 2).sum() + np.trace(cov)
    np.testing.assert_allclose(distance(constant, varied), expected, rtol=1e-9)
    assert distance(constant, constant) == 0
    np.testing.assert_allclose(distance(constant, constant + 1), 8, rtol=1e-6)


def test_moments_are_those_of_numpy_in_any_batches_and_order():
    x = (affine_pair(1000, 24)[1] + np.arange(24)).astype(np.float32)
    wide = x.astype(np.float64)
    shuffled = x[np.random.default_rng(2).permutation(len(x))]
    for features, batch in itertools.product((x, shuffled, x[::-1]), (1, 64, 999, 1000)):
        mean, cov = statistics(features, batch)
        np.testing.assert_allclose(mean, wide.mean(0), rtol=1e-12)
        np.testing.assert_allclose(cov, np.cov(wide, rowvar=False), rtol=1e-12, atol=1e-12)


def test_a_common_offset_costs_no_digits():
    """Integers up to 255 stay exact at an offset of 1e6 in float32: so must their covariance."""
    x = np.random.default_rng(0).integers(0, 256, (2000, 5)).astype(np.float32)
    near, far = statistics(x, 100), statistics(x + np.float32(1e6), 100)
    np.testing.assert_allclose(far[1], near[1], rtol=1e-12, atol=1e-8)
    np.testing.assert_allclose(far[0] - 1e6, near[0], rtol=1e-11)


def test_moments_hand_out_copies_and_survive_bad_batches():
    x, _ = affine_pair(30, 4)
    moments = frechet.Moments()
    moments.add(x)
    moments.mean[:] = 9
    moments.covariance[:] = 9
    for bad in (x[0], x[:, :3], np.full((2, 4), np.nan), np.zeros((0, 4)), x[None]):
        with pytest.raises(ValueError, match=r"features|NaN"):
            moments.add(bad)
    assert moments.count == 30
    np.testing.assert_allclose(moments.mean, x.mean(0), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(moments.covariance, np.cov(x, rowvar=False), rtol=1e-12)


def test_too_few_samples():
    moments = frechet.Moments()
    with pytest.raises(ValueError, match="at least 1 sample"):
        _ = moments.mean
    moments.add(np.ones((1, 3)))
    np.testing.assert_array_equal(moments.mean, np.ones(3))
    with pytest.raises(ValueError, match="at least 2 samples, not 1"):
        _ = moments.covariance


@pytest.mark.parametrize(
    ("mean", "cov", "message"),
    [
        (np.zeros(3), np.eye(3), "one dimension, not 2 and 3"),
        (np.zeros(2), np.eye(3), r"mean \[d\]"),
        (np.zeros((1, 2)), np.eye(2), r"mean \[d\]"),
        (np.array([0, np.nan]), np.eye(2), "second statistics hold NaN"),
        (np.zeros(2), np.diag([1, np.inf]), "second statistics hold NaN"),
        (np.zeros(2), np.array([[1, 0.5], [0, 1]]), "not symmetric"),
        (np.zeros(2), np.diag([1, -0.5]), "second covariance has negative eigenvalues"),
        (np.zeros(2), -np.eye(2), "second covariance has negative eigenvalues"),
        (np.zeros(2), np.array([[1.0, 2], [2, 1]]), "second covariance has negative eigenvalues"),
    ],
)
def test_statistics_that_are_none(mean, cov, message):
    with pytest.raises(ValueError, match=message):
        frechet.frechet_distance(np.zeros(2), np.eye(2), mean, cov)
