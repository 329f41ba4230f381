"""Samples of the diffusion family: its steps alone, and drawn by the driver."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusion.helpers import (
    LEVELS,
    PROCESS,
    SHAPE,
    VARIABLES,
    T,
    believing,
    column,
    keys_of,
    model,
    sample,
    with_memory,
)

from aigc_jax import streams
from aigc_jax.diffusion import process as gaussian
from aigc_jax.diffusion import solvers
from aigc_jax.diffusion.model import START
from aigc_jax.diffusion.precondition import PREDICTIONS
from aigc_jax.diffusion.solvers.base import Estimate, noise_like
from aigc_jax.sampling.driver import Driver, draw
from aigc_jax.training.sharding import make_mesh


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("guidance", [0.0, 1.0, 3.0])
def test_guidance_is_its_formula_for_every_prediction(prediction, guidance):
    of = believing(prediction, lambda label: column(LEVELS[label]))
    made = model(of, 2, prediction=prediction, sampling={"clip": False, "guidance": guidance})
    found = sample(made, 4, {"label": jnp.array([0, 1, 0, 1])})
    expected = 0.05 + guidance * (np.array([0.1, 0.2, 0.1, 0.2]) - 0.05)
    np.testing.assert_allclose(found, column(expected) + np.zeros_like(found), atol=2e-4)


def test_estimates_are_clipped_where_asked():
    for clip, expected in ((True, 1.0), (False, 7.0)):
        np.testing.assert_allclose(
            sample(model(lambda x, *_: 7.0, sampling={"clip": clip})), expected, rtol=1e-5
        )


def test_samples_of_a_gaussian_have_its_mean_and_the_solvers_std():
    process = gaussian.variance_preserving(gaussian.betas("linear", 1000))

    def optimal(x, t, label, train):
        alpha, sigma = (column(c) for c in process.coefficients(t))
        return 0.2 + alpha * 0.25 / (alpha**2 * 0.25 + sigma**2) * (x - alpha * 0.2)

    made = model(optimal, timesteps=1000, sampling={"clip": False, "steps": 50})
    found = sample(made, 16_384)
    np.testing.assert_allclose(found.std(), 0.472439, atol=0.005)
    np.testing.assert_allclose(found.mean(), 0.2, atol=0.01)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("guidance", [0.0, 1.0, 3.0])
def test_an_estimate_of_x0_is_guided_before_it_is_clipped(prediction, guidance):
    levels = jnp.array([0.9, -0.5, 0.5])
    of = believing(prediction, lambda label: column(levels[label]))
    x = jax.random.normal(jax.random.key(2), (2, *SHAPE))
    label = {"label": jnp.array([0, 1])}
    expected = 0.5 + guidance * (np.array([0.9, -0.5]) - 0.5)
    level = jax.tree.map(jnp.asarray, PROCESS.level(3.0))
    for clip in (True, False):
        made = model(of, 2, prediction=prediction, sampling={"clip": clip, "guidance": guidance})
        found = jax.jit(made.denoise)(VARIABLES, label, x, level).x0
        there = column(np.clip(expected, -1, 1) if clip else expected)
        np.testing.assert_allclose(found, there + np.zeros_like(found), atol=1e-4)


@pytest.mark.parametrize("sampler", solvers.SOLVERS)
def test_noise_starts_from_a_salt_that_no_step_has(sampler):
    made = model(with_memory, 3, sampling={"sampler": sampler, "steps": T})
    keys = streams.sample(streams.samples(0), np.arange(4, dtype=np.uint32))
    carry = made.start(VARIABLES, keys, {})
    noise = made.solver.finish(carry["x"])
    np.testing.assert_array_equal(noise, noise_like(keys, SHAPE, START))
    np.testing.assert_array_equal(*map(jax.random.key_data, (carry["keys"], keys)))
    for i in range(T):
        assert np.abs(noise - noise_like(keys, SHAPE, i)).max() > 0.1


@pytest.mark.parametrize("sampler", solvers.SOLVERS)
def test_steps_are_the_table_in_float32(sampler):
    def of(x, t, label, train):
        return 0.5 * x

    made = model(of, sampling={"sampler": sampler, "steps": 7, "clip": False})
    keys = keys_of(4)
    carry = made.start(VARIABLES, keys, {})
    x = made.solver.start(np.asarray(noise_like(keys, SHAPE, START), np.float64))
    for i in range(7):
        carry, preview = made.step(VARIABLES, carry, {}, jnp.int32(i))
        noise = np.asarray(noise_like(keys, SHAPE, i)) if made.solver.stochastic else None
        row = jax.tree.map(lambda column, i=i: column[i], made.solver.table)
        x, x0 = made.solver.step(lambda x, level: Estimate(0.5 * x), x, row, noise)
        np.testing.assert_allclose(preview, x0, rtol=1e-4, atol=1e-6)
    found = made.finish(VARIABLES, carry)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, made.solver.finish(x), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sampler", solvers.SOLVERS)
def test_a_scan_and_a_host_loop_agree(sampler):
    made = model(with_memory, 3, sampling={"sampler": sampler, "steps": 7})
    drawing, cond = made.family().drawing, {"label": jnp.arange(4) % 3}
    looped, scanned = (
        Driver(drawing, platform)(VARIABLES, keys_of(4), cond) for platform in ("cpu", "tpu")
    )
    np.testing.assert_allclose(looped, scanned, rtol=1e-5, atol=1e-6)


def test_samples_that_no_label_is_asked_for_are_those_of_none_unguided():
    seen = []

    def of(x, t, label, train):
        seen.append((len(x), label))
        return 0.3

    made = model(of, 2, sampling={"guidance": 3.0})
    np.testing.assert_allclose(sample(made, 4), 0.3, atol=1e-6)
    assert seen == [(4, None)]


def drawn(driver, **changes):
    settings = {"seed": 0, "count": 11, "labels": [0, 1, 2], "batch_size": 16} | changes
    mesh = make_mesh(jax.devices()[: settings.pop("devices", 8)])
    return np.concatenate(list(draw(driver, VARIABLES, mesh, **settings)))


@pytest.mark.parametrize("sampler", ["ancestral", "ddim"])
def test_sample_i_depends_on_the_seed_and_i_only(sampler):
    made = model(with_memory, 3, sampling={"sampler": sampler})
    driver = Driver(made.family().drawing, "cpu")
    whole = drawn(driver)
    assert whole.shape == (11, *SHAPE)
    for changes in ({"batch_size": 8}, {"devices": 1, "batch_size": 4}, {"devices": 2}):
        np.testing.assert_allclose(drawn(driver, **changes), whole, atol=1e-6)
    np.testing.assert_allclose(drawn(driver, count=3), whole[:3], atol=1e-6)
    assert np.abs(drawn(driver, seed=1) - whole).max() > 0.01
    assert len(np.unique(whole.round(5), axis=0)) == 11


def test_frames_are_estimates_of_x0_that_end_with_the_sample():
    made = model(with_memory, 3, sampling={"sampler": "ancestral"})
    cond = {"label": jnp.arange(4) % 3}
    frames = Driver(made.family().drawing, "cpu").frames(VARIABLES, keys_of(4), cond, 3)
    assert frames.shape == (3, 4, *SHAPE)
    np.testing.assert_allclose(frames[-1], sample(made, 4, cond), atol=1e-6)
    assert not np.allclose(frames[0], frames[-1])


def test_network_calls_are_counted_as_they_are_made():
    rows = []

    def of(x, t, label, train):
        jax.debug.callback(lambda _: rows.append(len(x)), x[:1])
        return 0.3

    every = {"sampler": "ddim", "steps": T}
    for settings, expected in (
        ({}, T),
        ({"guidance": 2.0}, 2 * T),
        ({"guidance": 2.0, "guidance_low": 0.1, "guidance_high": 0.4}, None),
    ):
        made = model(of, 2, sampling=every | settings)
        rows.clear()
        sample(made, 4, {"label": jnp.zeros(4, jnp.int32)})
        jax.effects_barrier()
        calls = made.family().drawing.calls
        assert sum(rows) == 4 * calls
        assert calls == expected if expected else T < calls < 2 * T


def test_a_dynamic_threshold_keeps_most_of_an_example_within_the_range():
    made = model(with_memory, sampling={"dynamic_threshold": 0.9})
    x0 = jnp.linspace(-3.0, 3.0, 4).reshape(1, 2, 2, 1) * jnp.array([1.0, 0.1]).reshape(2, 1, 1, 1)
    found = np.asarray(made.threshold(x0))
    limit = np.quantile(np.abs(x0[0]), 0.9)
    np.testing.assert_allclose(found[0], np.clip(x0[0], -limit, limit) / limit, rtol=1e-6)
    np.testing.assert_array_equal(found[1], x0[1])  # within the range already
