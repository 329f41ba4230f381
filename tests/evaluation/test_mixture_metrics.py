"""What the evaluator of mixtures says of points whose modes are known beforehand."""

import numpy as np
import pytest

from aigc_jax.data import mixtures
from aigc_jax.evaluation import evaluators
from aigc_jax.evaluation.comparison import PointComparison, RealSplit


def comparison(samples, name="ring"):
    held_out = mixtures.arrays(name, "test")
    split = RealSplit("x test", len(held_out), None, lambda index: {"x": held_out[index]})
    return PointComparison(lambda: samples, split, *mixtures.MIXTURES[name]())


def values(samples, name="ring", real=True, **protocol):
    rows = evaluators.of_samples("mixture", comparison(samples, name), real=real, **protocol)
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
    assert list(rows) == evaluators.metrics("mixture", "", labelled=False)


def test_without_one_good_point_there_are_no_shares_to_compare():
    rows = values(np.full((50, 2), 30.0))
    assert (rows["mixture_modes"].value, rows["high_quality"].value) == (0, 0)
    assert rows["reverse_kl"].value == np.inf
    assert rows["reverse_kl_all"].value == pytest.approx(np.log(8))


def test_held_out_points_are_as_many_as_samples():
    few = comparison(np.ones((7, 2)))
    assert few.real.values.shape == (7, 2)
    assert few.real.real
    assert not few.samples.real
