"""Times drawn by the second moment of their losses (Nichol & Dhariwal 2021, section 3.3)."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from diffusion.fitting import Network
from helpers import SHAPE, VIEW, T, column, model
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from aigc_jax.diffusion.importance import KEPT, history, probabilities, recorded


def full(losses):
    """A history in which each time has had the same loss `KEPT` times, or these [T, KEPT]."""
    losses = jnp.asarray(losses, jnp.float32)
    losses = losses if losses.ndim == 2 else jnp.repeat(losses[:, None], KEPT, axis=1)
    return {"losses": losses, "count": jnp.full(len(losses), KEPT)}


def test_probabilities_are_those_of_the_paper_once_every_time_has_ten_losses():
    rows = [[1.0] * 10, [-2.0] * 10, [1.0, 7.0] * 5, [2.0] * 10]  # of root mean squares 1 2 5 2
    given = full(rows)
    np.testing.assert_allclose(probabilities(given), [0.10015, 0.20005, 0.49975, 0.20005], 1e-6)
    missing = given | {"count": jnp.array([10, 9, 10, 10])}
    np.testing.assert_array_equal(probabilities(missing), 0.25)
    np.testing.assert_array_equal(probabilities(history(4)), 0.25)


def test_a_history_has_the_last_ten_losses_of_each_time_on_any_devices():
    rng = np.random.default_rng(0)
    split = NamedSharding(Mesh(jax.devices()[:8], "data"), PartitionSpec("data"))
    kept = [collections.deque(maxlen=KEPT) for _ in range(6)]
    found = history(6)
    for _ in range(12):
        # Time 0 comes more than ten times in a batch, time 5 in few.
        t = rng.choice(6, 32, p=[0.5, 0.2, 0.1, 0.1, 0.08, 0.02])
        losses = rng.normal(size=32).astype(np.float32)
        found = jax.jit(recorded)(found, *(jax.device_put(a, split) for a in (t, losses)))
        for i, loss in zip(t, losses, strict=True):
            kept[i].append(loss)
        for i, expected in enumerate(kept):
            ring = np.asarray(found["losses"][i])
            there = ring[: len(expected)]  # what is empty comes last
            np.testing.assert_array_equal(np.sort(there), np.sort(expected))
            assert min(int(found["count"][i]), KEPT) == len(expected)
    assert int(found["count"].max()) < 2 * KEPT


def test_the_loss_has_the_mean_over_all_times_whatever_was_recorded():
    """Of losses that depend on the time alone; drawn in proportion to them it hardly varies."""
    wrong = np.linspace(0.1, 3.0, T) ** 2
    made = model(lambda x, t, *_: 1 + jnp.sqrt(column(jnp.asarray(wrong)[t.astype(int)])))
    made_by_loss = model(made.network.of, importance=True)
    n, expected = 4096, wrong.mean()
    batch = {"x": jnp.ones((n, *SHAPE))}

    def estimates(losses):
        view = VIEW._replace(extra=full(losses))
        loss = jax.jit(lambda key: made_by_loss.loss(view, batch, key)[0])
        return np.array([loss(key) for key in jax.random.split(jax.random.key(0), 4)])

    np.testing.assert_allclose(estimates(wrong), expected, rtol=2e-3)
    other = np.linspace(2.0, 1.0, T)
    p = np.asarray(probabilities(full(other)), np.float64)
    deviation = np.sqrt((p * (wrong / (T * p) - expected) ** 2).sum() / n)
    found = estimates(other)
    np.testing.assert_allclose(found, expected, atol=4 * deviation)
    assert found.std() > deviation / 4  # as times drawn by no loss vary


def affine(params, x, t, label, t2, rngs):
    return params["slope"] * x + params["offset"]


def test_a_stopped_run_resumes_with_its_history(tmp_path):
    network = Network(affine, {"slope": jnp.float32(0.5), "offset": jnp.float32(0.1)})
    settings = {"importance": True, "objective": "bound", "timesteps": 2, "sampling": {"steps": 2}}
    made = model(None, shape=(4, 4, 1), **settings)
    made = dataclasses.replace(made, network=network)
    whole, resumed = toys.resumed(tmp_path, made.family(), stop=4, steps=6)
    assert toys.same(whole, resumed)
    assert whole.extra["count"].min() >= KEPT
    assert np.ptp(probabilities(whole.extra)) > 0.1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"process": {"name": "vp"}}, "importance=True needs diffusion.process.name='discrete'"),
        ({"times": {"name": "log_normal"}}, "needs diffusion.times.name='uniform', not 'log_n"),
        ({"times": {"name": "uniform", "shift": 2.0}}, "needs diffusion.times.shift=1.0, not 2.0"),
        ({"times": {"name": "uniform", "stratified": True}}, "needs diffusion.times.stratified="),
        (
            {"objective": "bound", "weighting": {"name": "snr"}},
            "needs diffusion.weighting.name='simple', not 'snr'",
        ),
    ],
)
def test_settings_that_have_no_part_in_it_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        model(lambda x, *_: x, importance=True, **changes)
