"""Statistics of an ablation against closed forms, and what its files say."""

import json
import math

import numpy as np
import pytest

from aigc_jax.report import ablation

A = {0: 1.0, 1: 2.0, 2: 6.0}
B = {0: 2.0, 1: 2.5, 2: 7.5}


def test_mean_and_deviation_of_a_sample():
    row = ablation.summary(A, None)
    assert (row.n, row.mean, row.std) == (3, 3.0, pytest.approx(math.sqrt(7)))
    assert math.isnan(row.difference)
    alone = ablation.summary({4: 2.0}, None)
    assert (alone.n, alone.mean) == (1, 2.0)
    assert math.isnan(alone.std)


def test_differences_are_of_the_same_seeds():
    row = ablation.summary(B, A)
    assert row.difference == pytest.approx(1.0)
    assert (row.pairs, row.low, row.high) == (3, 0.5, 1.5)  # means of 3 drawn from 1, 0.5, 1.5
    few = ablation.summary({0: 2.0, 9: 1e9}, A)
    assert (few.difference, few.pairs) == (1.0, 1)
    assert math.isnan(few.low)
    lost = ablation.summary(B | {1: math.nan}, A)
    assert (lost.n, lost.pairs, lost.difference) == (2, 2, pytest.approx(1.25))
    assert math.isnan(ablation.summary({9: 1.0}, A).difference)


def test_a_run_has_its_part_of_the_time_of_those_that_shared_a_program(tmp_path):
    rows = [
        {"step": 10, "time/images_per_second": 40.0, "time/replicas": 4, "net/loss": 1.0},
        {"step": 20, "time/images_per_second": 160.0, "net/loss": 0.5},  # alone from here on
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = ablation.read_run(tmp_path, 20, 16)
    assert run.seconds == {0: 0.0, 10: 1.0, 20: 2.0}
    assert run.values["net/loss"] == 0.5
    assert ablation.read_run(tmp_path, 21, 16) is None


def test_the_interval_is_that_of_a_mean():
    """Of many seeds it is the mean's standard error times 1.96; of five it covers 83 %."""
    random = np.random.default_rng(1)
    many = random.normal(3.0, 2.0, 400)
    low, high = ablation.interval(many)
    assert (high - low) / 2 == pytest.approx(1.96 * many.std() / 20, rel=0.05)
    assert (high + low) / 2 == pytest.approx(many.mean(), abs=0.02)
    found = [ablation.interval(random.normal(size=5)) for _ in range(300)]
    covered = np.mean([low <= 0 <= high for low, high in found])
    assert 0.78 < covered < 0.89
