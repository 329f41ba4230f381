"""The bound in continuous time, against closed forms and the entropy of the data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import VARIABLES, model
from normal import CONTINUOUS, MEAN, PROCESSES, STD, denoiser, knowing, log_p
from scipy import stats

from aigc_jax.diffusion import likelihood, model_likelihood
from aigc_jax.diffusion import process as gaussian
from aigc_jax.diffusion.model_likelihood import CALLS

VDM = gaussian.LogSNR()


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def bound(made, x, seed=0):
    return made.likelihood.bound(VARIABLES, {"x": jnp.asarray(x)}, jax.random.key(seed))


def test_its_terms_of_a_gaussian_are_the_published_ones(float64):
    """Quadratic in what is random: one of the root mean square costs the mean."""
    low, high = VDM.gamma_min, VDM.gamma_max
    n = 100_000
    gamma = low + (high - low) * (np.arange(n) + 0.5) / n
    ratio = np.exp(gamma / 2)
    error = STD * ratio / np.sqrt(STD**2 + ratio**2)
    rate = likelihood.diffusion_rate(np.zeros((n, 1)), error[:, None], ratio)
    x0 = np.full((1, 1), STD)
    prior = likelihood.prior(VDM.level(VDM.high), x0)[0]
    ones = np.ones((1, 1))
    reconstruction = likelihood.reconstruction(x0, ones, np.exp(low / 2), of_bytes=False)[0]
    diffusion = (high - low) * rate.mean()
    np.testing.assert_allclose(diffusion, 8.59271277538, rtol=1e-7)
    np.testing.assert_allclose(prior, 0.00122319641734, rtol=1e-9)
    # Published with a decoder that knows the data too, whose variance is a millionth smaller.
    np.testing.assert_allclose(reconstruction, -7.54683126826, atol=5e-6)
    np.testing.assert_allclose(diffusion + prior + reconstruction, 1.04710470354, atol=5e-6)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_the_bound_of_exact_denoising_is_the_entropy_whatever_the_process(name):
    x = MEAN + STD * np.random.default_rng(0).normal(size=(1024, 32)).astype(np.float32)
    found = bound(knowing(name, shape=(32,)), x)
    parts = [found[f"bits_{part}"] for part in ("prior", "reconstruction", "diffusion")]
    np.testing.assert_allclose(found["bits_per_dim"], sum(parts), rtol=1e-5)
    np.testing.assert_allclose(found["neg_elbo"], found["bits_per_dim"] * 32 * np.log(2), rtol=1e-5)
    # Above -log2 p of each example in the mean, by no more than the prior misses.
    gap = np.asarray(found["bits_per_dim"]) + log_p(x, MEAN, STD).mean(1) / np.log(2)
    error = gap.std() / 32
    assert error < 0.012
    assert abs(gap.mean()) < 4 * error + (0.003 if name == "log_snr" else 0)


def test_a_worse_network_has_a_larger_bound_by_its_error():
    x = STD * np.random.default_rng(0).normal(size=(512, 8)).astype(np.float32)
    exact = denoiser(VDM, (0.0,))

    def worse(x, t, label, train):
        alpha, sigma = (a[:, None] for a in VDM.coefficients(t / 1000))
        return exact(x, t, label, train) + 0.3 * sigma / alpha

    settings = {"shape": (8,), "of_bytes": False, "process": PROCESSES["log_snr"]}
    good, bad = (
        bound(model(of, sampling={"clip": False}, **settings), x)["bits_diffusion"].mean()
        for of in (exact, worse)
    )
    expected = 0.5 * 0.3**2 * (VDM.gamma_max - VDM.gamma_min) / np.log(2)
    np.testing.assert_allclose(bad - good, expected, rtol=0.05)


def test_the_bound_of_gaussian_bytes_lies_above_their_entropy():
    x = (np.arange(256) / 127.5 - 1).astype(np.float32)
    edges = np.concatenate([[-np.inf], (x[1:] + x[:-1]) / 2, [np.inf]])
    p = np.diff(stats.norm.cdf(edges / STD))

    def of(x_t, t, label, train):
        alpha, sigma = (a[:, None, None, None] for a in VDM.coefficients(t / 1000))
        z = (x_t / alpha - x.reshape(1, 1, 1, -1)) / (sigma / alpha)
        share = jax.nn.softmax(np.log(p, dtype=np.float32).reshape(1, 1, 1, -1) - 0.5 * z**2)
        return (share @ x)[..., None]

    made = model(of, shape=(4, 4, 1), process=PROCESSES["log_snr"], sampling={"clip": False})
    found = bound(made, np.broadcast_to(x[:, None, None, None], (256, 4, 4, 1)))
    assert "neg_elbo" not in found
    bits = np.sum(p * found["bits_per_dim"])
    print(bits, found["bits_reconstruction"])
    assert 7.7628 < bits < 7.9
    # All of a byte's own bits are in the noise between its neighbours: nothing is left at the end.
    assert 0 < np.sum(p * found["bits_reconstruction"]) < 0.1


def test_each_example_sees_its_own_times_evenly_and_the_program_is_compiled_once():
    seen, traces = [], []

    def of(x, t, label, train):
        traces.append(1)
        jax.debug.callback(lambda t: seen.append(np.asarray(t)), t)
        return x

    made = model(of, process=PROCESSES["log_snr"])
    for seed in range(2):
        bound(made, np.zeros((4, 2, 2, 1), np.float32), seed)
    jax.effects_barrier()
    assert len(traces) == 1
    times = np.sort(np.stack(seen[:CALLS]) / 1000, axis=0)
    np.testing.assert_allclose(np.diff(times, axis=0), 1 / CALLS, atol=1e-4)
    every = np.sort(times.reshape(-1))  # and those of all, four times as densely
    np.testing.assert_allclose(np.diff(every), 1 / (4 * CALLS), atol=1e-4)
    assert 0 < every[0] < every[-1] < 1


def test_ends_without_noise_or_of_noise_alone_are_left_out():
    found = model_likelihood.ratios(gaussian.Flow())
    assert found == (model_likelihood.LEAST, model_likelihood.MOST)
    np.testing.assert_allclose(model_likelihood.ratios(gaussian.EDM()), (0.002, 80))


def test_points_have_a_density_in_discrete_time_too():
    found = bound(knowing("discrete", shape=(2,)), np.full((64, 2), MEAN, np.float32))
    # About the entropy of x_0 at its mean, where bytes would have 7 bits more.
    exact = -log_p(MEAN, MEAN, STD) / np.log(2)
    assert abs(found["bits_per_dim"].mean() - exact) < 1.5
    assert found["bits_reconstruction"].mean() < 0
