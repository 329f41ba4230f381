"""The kernel distance against loops and torch-fidelity."""

import numpy as np
import oracles
import pytest

from aigc_jax.evaluation.metrics import kernel


def pair(n, d=16, seed=0):
    """X ~ N(0, I) and Y = X'A + 0.3: with 5,000 in 16 dimensions, the published draw."""
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n, d)), rng.standard_normal((n, d))
    return x, y @ (np.eye(d) + 0.1 * rng.standard_normal((d, d))) + 0.3


def by_loops(x, y):
    def k(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    def within(z):
        pairs = [k(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]
        return sum(pairs) / len(pairs)

    between = [k(a, b) for a in x for b in y]
    return within(x) + within(y) - 2 * sum(between) / len(between)


@pytest.mark.parametrize(("m", "n", "d"), [(2, 2, 1), (3, 5, 4), (7, 4, 3)])
def test_against_loops(m, n, d, monkeypatch):
    rng = np.random.default_rng(m)
    x, y = rng.standard_normal((m, d)), rng.standard_normal((n, d)) + 1
    np.testing.assert_allclose(kernel.mmd2_unbiased(x, y), by_loops(x, y), rtol=1e-12)
    monkeypatch.setattr(kernel, "BLOCK_BYTES", 3 * 8 * n)  # three rows a block
    np.testing.assert_allclose(kernel.mmd2_unbiased(x, y), by_loops(x, y), rtol=1e-12)


def test_published_number():
    np.testing.assert_allclose(kernel.mmd2_unbiased(*pair(5000)), 0.4404795, atol=5e-8)


@pytest.mark.parametrize("d", [16, 200])
def test_one_subset_against_torch_fidelity(d):
    metric = oracles.torch_fidelity("metric_kid")
    x, y = pair(300, d)
    np.testing.assert_allclose(kernel.mmd2_unbiased(x, y), metric.kernel_mmd(x, y), rtol=1e-10)


def test_subsets_agree_with_torch_fidelity_s():
    torch = pytest.importorskip("torch")
    metric = oracles.torch_fidelity("metric_kid")
    x, y = pair(2000)
    theirs = metric.kid_features_to_metric(
        *map(torch.tensor, (x, y)), kid_subsets=50, kid_subset_size=500, verbose=False
    )
    value, error = kernel.kernel_distance(x, y, subsets=50, size=500)
    spread = theirs["kernel_inception_distance_std"]
    assert abs(value - theirs["kernel_inception_distance_mean"]) < 4 * spread * (2 / 50) ** 0.5
    assert error == pytest.approx(spread / 49**0.5, rel=0.4)


def test_the_mean_over_subsets_is_the_whole_within_its_error():
    x, y = pair(1000)
    whole = kernel.mmd2_unbiased(x, y)
    runs = [kernel.kernel_distance(x, y, subsets=20, size=100, seed=s) for s in range(20)]
    z = np.array([(value - whole) / error for value, error in runs])
    assert abs(z.mean()) < 1.0
    assert 0.5 < z.std() < 2.0


def test_one_distribution_gives_zero_on_average():
    rng = np.random.default_rng(0)
    values = [kernel.mmd2_unbiased(*rng.standard_normal((2, 50, 8))) for _ in range(400)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 20
    assert min(values) < 0  # unbiased, so it must be


def test_the_same_seed_draws_the_same_subsets():
    x, y = pair(100)
    options = {"subsets": 5, "size": 20}
    assert kernel.kernel_distance(x, y, **options) == kernel.kernel_distance(x, y, **options)
    assert kernel.kernel_distance(x, y, **options) != kernel.kernel_distance(
        x, y, **options, seed=1
    )


def test_fewer_samples_than_a_subset():
    x, y = pair(50)
    assert kernel.kernel_distance(x, y) == (kernel.mmd2_unbiased(x, y), 0.0)
    value, error = kernel.kernel_distance(x, y[:30], subsets=30)
    assert abs(value - kernel.mmd2_unbiased(x, y[:30])) < 6 * error


def test_constant_features_and_float32():
    x = np.full((10, 3), 2.0, np.float32)
    assert kernel.mmd2_unbiased(x, x) == pytest.approx(0, abs=1e-12)
    assert kernel.mmd2_unbiased(x, 0 * x) == pytest.approx(5**3 + 1 - 2, rel=1e-12)
    a, b = (f.astype(np.float32) for f in pair(100))
    wide = kernel.mmd2_unbiased(a.astype(np.float64), b.astype(np.float64))
    assert kernel.mmd2_unbiased(a, b) == wide


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features1": np.ones(4)}, r"features1 must be \[n, d\]"),
        ({"features2": np.ones((4, 3))}, "one dimension, not 2 and 3"),
        ({"features2": np.ones((1, 2))}, "at least 2 samples, not 1"),
        ({"features1": np.full((4, 2), np.inf)}, "features1 holds NaN or inf"),
        ({"subsets": 1}, "at least 2"),
        ({"size": 1}, "at least 2"),
    ],
)
def test_what_cannot_be_compared(change, message):
    arguments = {"features1": np.ones((4, 2)), "features2": np.ones((5, 2))} | change
    with pytest.raises(ValueError, match=message):
        kernel.kernel_distance(**arguments)
