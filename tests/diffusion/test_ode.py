"""Exact likelihoods by the probability-flow ODE, of data whose density is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import VARIABLES, model
from normal import MEAN, PROCESSES, STD, knowing, log_p

from aigc_jax.diffusion.likelihood import HALF_BIN
from aigc_jax.diffusion.model_likelihood import LEAST, MOST
from aigc_jax.family import Variables
from aigc_jax.training.sharding import make_mesh, put

POINTS = np.array([[0.3, 0.3], [-0.5, 0.9], [1.4, 0.1]], np.float32)


def density(made, x, seed=0, **settings):
    settings = {"probes": 0, "tolerance": 1e-6} | settings
    return made.likelihood.density(VARIABLES, {"x": x}, jax.random.key(seed), **settings)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_density_of_a_gaussian_is_what_the_flow_makes_of_the_prior(name):
    made = knowing(name)
    found = density(made, POINTS)
    ends = made.process.ends.ratio
    low, high = np.clip(ends, LEAST, MOST)
    # The flow is affine: it scales distances from the mean alike.
    scale = np.sqrt((STD**2 + high**2) / (STD**2 + low**2))
    last = MEAN + (POINTS - MEAN) * scale
    # Of a process that goes on to noise alone all is noise at the end that is taken.
    start = made.process.start_std / made.process.at_ratio(high).alpha
    pushed = log_p(last, 0.0, high if ends[1] > MOST else start) + np.log(scale)
    np.testing.assert_allclose(-found["nll_ode"], pushed.sum(1), atol=1e-3)
    # Nearly that of the data: up to the noise at one end and the signal at the other.
    slack = 0.02 if name != "log_snr" else 0.05
    np.testing.assert_allclose(-found["nll_ode"], log_p(POINTS, MEAN, STD).sum(1), atol=slack)
    bits = found["nll_ode"] / 2 / np.log(2)
    np.testing.assert_allclose(found["bits_per_dim_ode"], bits, rtol=1e-6)


MEANS = ((-0.7, 0.3), (0.7, -0.3))  # around 0, as the prior is
ABOUT = np.array([[-0.6, 0.1], [0.0, 0.0], [0.9, 0.3], [0.4, -0.5]], np.float32)


def mixture_log_p(x):
    each = [log_p(x, np.array(mean), 0.3).sum(1) for mean in MEANS]
    return np.logaddexp(*each) - np.log(2)


@pytest.mark.parametrize("name", ["vp", "flow", "edm"])
def test_the_density_of_a_mixture_is_its_own(name):
    found = density(knowing(name, MEANS, 0.3), ABOUT)
    np.testing.assert_allclose(-found["nll_ode"], mixture_log_p(ABOUT), atol=1e-3)


def test_random_probes_have_the_divergence_as_their_mean_and_more_of_them_vary_less():
    made, x = knowing("vp", MEANS, 0.3), np.tile(ABOUT[1:2], (256, 1))
    one, four = (
        -density(made, x, probes=n, tolerance=1e-4)["nll_ode"] - mixture_log_p(x) for n in (1, 4)
    )
    assert 0.1 < four.std() / one.std() < 0.8
    for error in (one, four):
        assert abs(error.mean()) < 4 * error.std() / 16


def test_a_finer_tolerance_takes_more_calls_and_each_example_its_own():
    made = knowing("vp", MEANS, 0.3)
    coarse, fine = (density(made, ABOUT, tolerance=t)["nfe"] for t in (1e-3, 1e-6))
    assert np.all(coarse < fine)
    assert np.all(coarse % 6 == 1)
    assert len(np.unique(fine)) > 1
    alone = density(made, ABOUT[2:3])
    together = density(made, ABOUT)
    np.testing.assert_allclose(alone["nll_ode"][0], together["nll_ode"][2], rtol=1e-5)
    assert alone["nfe"][0] == together["nfe"][2]


def test_calls_are_counted_as_they_are_made():
    seen = []
    exact = knowing("vp").network.of

    def of(x, t, label, train):
        jax.debug.callback(lambda _: seen.append(1), x)
        return exact(x, t, label, train)

    made = model(
        of,
        shape=(2,),
        of_bytes=False,
        process=PROCESSES["vp"],
        sampling={"clip": False},
    )
    found = density(made, POINTS[:1], tolerance=1e-4)
    jax.effects_barrier()
    assert len(seen) == pytest.approx(int(found["nfe"][0]), abs=1)  # linearised or not, one each


def test_a_density_that_the_solver_does_not_reach_is_no_number():
    made = model(
        lambda x, t, label, train: x * jnp.nan,
        shape=(2,),
        of_bytes=False,
        process=PROCESSES["vp"],
    )
    assert np.isnan(density(made, POINTS)["nll_ode"]).all()


def test_bytes_are_spread_over_their_bins():
    """Each byte's bits are those of the density in its bin, and their mean exceeds the entropy."""
    made = knowing("vp", (0.0,), STD, shape=(1, 1, 1), of_bytes=True)
    x = (np.arange(256) / 127.5 - 1).astype(np.float32)
    found = density(made, x.reshape(-1, 1, 1, 1), tolerance=1e-5)
    assert found.keys() == {"bits_per_dim_ode", "nfe"}
    expected = -(log_p(x, 0.0, STD) + np.log(2 * HALF_BIN)) / np.log(2)
    np.testing.assert_allclose(found["bits_per_dim_ode"], expected, atol=0.04)
    error = found["bits_per_dim_ode"] - expected
    assert 0.003 < error.std() < 0.02  # within a bin the density varies, and so does the noise
    p = np.exp(log_p(x, 0.0, STD))
    assert np.sum(p / p.sum() * found["bits_per_dim_ode"]) > -np.sum(
        p / p.sum() * np.log2(p / p.sum())
    )


def test_the_label_is_the_models_and_guidance_and_clipping_are_not():
    def of(x, t, label, train):
        return 0.3 * x + jnp.where(label == 1, 0.4, -2.0)[:, None]

    settings = {"shape": (2,), "of_bytes": False, "process": PROCESSES["vp"]}
    batch = {"x": POINTS, "label": jnp.array([1, 0, 1])}
    plain, guided = (
        model(of, 2, sampling={"guidance": w, "clip": c}, **settings).likelihood.density(
            VARIABLES, batch, jax.random.key(0)
        )["nll_ode"]
        for w, c in ((1.0, False), (3.0, True))
    )
    np.testing.assert_array_equal(plain, guided)
    other = model(of, 2, **settings).likelihood.density(
        VARIABLES, batch | {"label": jnp.array([1, 1, 1])}, jax.random.key(0)
    )["nll_ode"]
    assert (other != plain).tolist() == [False, True, False]


def test_no_density_depends_on_the_number_of_devices():
    made, x = knowing("vp", MEANS, 0.3), np.tile(ABOUT, (2, 1))
    one, eight = (
        made.likelihood.density(
            Variables({"net": {}}, {}),
            put(make_mesh(jax.devices()[:n]), {"x": x}),
            jax.random.key(0),
            probes=2,
        )
        for n in (1, 8)
    )
    np.testing.assert_allclose(one["nll_ode"], eight["nll_ode"], rtol=1e-5)
