"""Averages: half-lives, power-function profiles, and the sums of these that make any other."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from aigc_jax import streams
from aigc_jax.training import ema
from aigc_jax.training.ema import coefficients, ema_decay, exponent, inner_products, power_share
from aigc_jax.training.step import init_state, train_step

TRACKED = (0.05, 0.1)


@pytest.mark.parametrize(
    ("sigma_rel", "gamma"),
    [(0.05, 16.9721986023), (0.10, 6.9372039376), (0.15, 3.5578687749), (0.20, 1.8262137799)],
)
def test_the_exponent_of_a_relative_width(sigma_rel, gamma):
    assert exponent(sigma_rel) == pytest.approx(gamma, abs=1e-9)


def test_the_profile_has_its_relative_width():
    t = (np.arange(200_000) + 0.5) / 200_000
    for sigma_rel in (0.03, 0.12, ema.WIDEST):
        gamma = exponent(sigma_rel)
        density = (gamma + 1) * t**gamma / len(t)
        mean = (density * t).sum()
        assert np.sqrt((density * (t - mean) ** 2).sum()) == pytest.approx(sigma_rel, rel=1e-4)


@pytest.mark.parametrize(("sigma_rel", "beta"), [(0.05, 0.965473837979), (0.10, 0.984602266021)])
def test_a_steps_share_of_a_power_function_average(sigma_rel, beta):
    """After 2^20 images in batches of 2,048, which is the 512th step."""
    assert 1 - float(power_share(jnp.int32(511), sigma_rel=sigma_rel)) == pytest.approx(beta, 1e-6)
    assert float(power_share(jnp.int32(0), sigma_rel=sigma_rel)) == 1.0  # random weights count 0


def test_a_share_is_exact_late_in_a_long_run():
    late, gamma = 10_000_000, exponent(0.1)
    exact = 1 - (1 - 1 / np.float64(late)) ** (gamma + 1)
    assert float(power_share(jnp.int32(late - 1), sigma_rel=0.1)) == pytest.approx(exact, rel=1e-5)


def test_the_half_life_of_edm():
    found = ema_decay(jnp.int32(10_000), batch_size=512, half_life=0.5e6)
    assert float(found) == pytest.approx(0.999290469123, abs=1e-7)


def test_inner_products_are_those_of_the_integral():
    profiles = np.array([(16.97, 1.0), (6.94, 0.5), (2.0, 0.75)])
    n = 400_000
    t = (np.arange(n) + 0.5) / n

    def density(gamma, end):
        return np.where(t < end, (gamma + 1) * t**gamma / end ** (gamma + 1), 0.0)

    found = inner_products(profiles, profiles)
    for i, a in enumerate(profiles):
        for j, b in enumerate(profiles):
            assert found[i, j] == pytest.approx((density(*a) * density(*b)).mean(), rel=1e-4)


def stored(steps):
    return [(width, step) for step in steps for width in TRACKED]


def test_what_was_tracked_comes_back_exactly_and_sums_are_averages():
    steps = range(10, 330, 10)
    for i, width in enumerate(TRACKED):
        weights, left = coefficients(stored(steps), width, 320)
        expected = np.zeros(len(weights))
        expected[len(weights) - 2 + i] = 1
        np.testing.assert_allclose(weights, expected, atol=1e-7)
        assert left < 1e-6
    for sigma_rel in (0.02, 0.03, 0.07, 0.15, 0.2, 0.25):
        weights, left = coefficients(stored(steps), sigma_rel, 320)
        assert weights.sum() == pytest.approx(1, abs=1e-9)
        assert left < 0.05
    lefts = [coefficients(stored(range(n, 321, n)), 0.02, 320)[1] for n in (10, 20, 40, 80)]
    assert lefts == sorted(lefts)  # the fewer snapshots, the worse
    assert coefficients(stored([1000]), 0.1, 1000)[0] == pytest.approx([0, 1], abs=1e-9)


@pytest.mark.parametrize("sigma_rel", [0.03, 0.07, 0.15, 0.2])
def test_a_width_in_between_is_nearly_the_average_that_was_never_tracked(sigma_rel):
    """Of parameters on a random walk, each step's average by its definition."""
    rng, end, every = np.random.default_rng(0), 640, 20
    widths = (*TRACKED, sigma_rel)
    averages, snapshots, x = {w: np.zeros(64) for w in widths}, [], np.zeros(64)
    for step in range(1, end + 1):
        x = x + rng.normal(size=64)
        for width in widths:
            beta = (1 - 1 / step) ** (exponent(width) + 1)
            averages[width] = beta * averages[width] + (1 - beta) * x
        if step % every == 0:
            snapshots += [averages[width].copy() for width in TRACKED]
    weights, _ = coefficients(stored(range(every, end + 1, every)), sigma_rel, end)
    error = np.linalg.norm(weights @ np.array(snapshots) - averages[sigma_rel])
    nearest = min(np.linalg.norm(averages[w] - averages[sigma_rel]) for w in TRACKED)
    assert error < 0.02 * nearest


def test_snapshots_stay_spread_over_the_run_and_within_their_number():
    """As a run makes them, and as one makes them that is killed and does some steps again."""
    held, resumed = [], []
    for step in range(10, 1010, 10):
        held = ema.kept(sorted({*held, step}), 10, 8)
        assert len(held) <= 8
        assert max(np.diff([0, *held, step])) <= step / 4 + 10
        resumed = ema.kept(sorted({*resumed, max(step - 30, 10), step}), 10, 8)
        assert resumed == held
    assert held == [160, 320, 480, 640, 800, 960]


def test_further_averages_are_those_of_runs_of_their_own_and_move_nothing_else():
    def run(settings):
        made = toys.one_player()
        recipe = toys.recipe_of(made, toys.config("one", {"ema": settings}))
        state = init_state(recipe, *streams.init(1))
        step = jax.jit(partial(train_step, recipe, (0,)))
        x = np.random.default_rng(0).integers(0, 256, (3, 1, 16, 4, 4, 1), np.uint8)
        passed = []
        for batch in x:
            state, _ = step(state, {}, {"x": batch})
            passed.append(toys.arrays(state.params))
        return state, passed

    plain, _ = run({"half_life": 64.0, "ramp": 0.5})
    other, _ = run({"half_life": 8.0, "ramp": 0.5})
    both, passed = run(
        {"half_life": 64.0, "ramp": 0.5, "others": (8.0, 500.0), "snapshot_every": 2}
    )
    assert set(both.averages) == {
        "half_life_8", "half_life_500", "sigma_rel_0.05", "sigma_rel_0.1"
    }  # fmt: skip
    assert toys.same(both.replace(averages={}), plain)
    assert plain.averages == {}
    for ours, theirs in zip(
        toys.arrays(both.averages["half_life_8"]), toys.arrays(other.ema), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)
    power = exponent(0.1) + 1
    weights = np.diff((np.arange(4) / 3) ** power)  # what the profile has in each of three steps
    found = toys.arrays(both.averages["sigma_rel_0.1"])
    for average, *path in zip(found, *passed, strict=True):
        expected = sum(w * p for w, p in zip(weights, path, strict=True))
        np.testing.assert_allclose(average, expected, rtol=1e-5, atol=1e-6)


def test_an_average_that_is_lost_is_counted_as_one_of_the_runs_own_is():
    recipe = toys.recipe_of(
        toys.one_player(), toys.config("one", {"ema": {"half_life": 64.0, "others": (8.0,)}})
    )
    state = init_state(recipe, *streams.init(1))
    lost = jax.tree.map(lambda x: x * jnp.nan, state.averages)
    batch = {"x": np.zeros((1, 16, 4, 4, 1), np.uint8)}
    step = jax.jit(partial(train_step, recipe, (0,)))
    assert int(step(state, {}, batch)[0].skipped_in_row) == 0
    assert int(step(state.replace(averages=lost), {}, batch)[0].skipped_in_row) == 1


def test_a_family_without_averages_has_no_others():
    made = toys.one_player()._replace(averaged=())
    for given in ({"others": (8.0,)}, {"snapshot_every": 1}):
        with pytest.raises(ValueError, match=r"keeps no averages: set ema.others=\(\)"):
            toys.recipe_of(made, toys.config("one", {"ema": {"half_life": 0.0, **given}}))
