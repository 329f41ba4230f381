"""The forward process against published numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.diffusion import process as gaussian

CLOSE = {"rtol": 1e-6}
ALPHA_BAR = {  # reference values, computed in float64 with torch
    ("linear", 1000, 1e-4, 0.02): {
        0: 0.9999, 1: 0.999780092072, 9: 0.998105204786, 99: 0.897018145675,
        249: 0.524085373825, 499: 0.0785872428818, 749: 0.00335055043894,
        998: 4.11819363814e-5, 999: 4.03582976538e-5,
    },
    ("cosine", 1000, 1e-4, 0.02): {500: 0.492285172449, 999: 2.42876690703e-9},
    ("cosine", 4000, 1e-4, 0.02): {2000: 0.493453979674},
    ("scaled_linear", 1000, 0.00085, 0.012): {500: 0.276332683823, 999: 0.00466009851308},
}  # fmt: skip


def linear():
    return gaussian.variance_preserving(gaussian.betas("linear", 1000))


@pytest.mark.parametrize("settings", ALPHA_BAR, ids=lambda s: f"{s[0]}-{s[1]}")
def test_alpha_bar_is_the_published_one(settings):
    process = gaussian.variance_preserving(gaussian.betas(*settings))
    for t, value in ALPHA_BAR[settings].items():
        np.testing.assert_allclose(process.alpha[t] ** 2, value, **CLOSE)
    np.testing.assert_allclose(process.alpha**2 + process.sigma**2, 1.0, rtol=1e-12)
    np.testing.assert_array_equal(process.times, np.arange(settings[1]))


def test_betas_are_the_published_ones():
    beta = gaussian.betas("linear", 1000)
    np.testing.assert_allclose(beta[[0, 1, 999]], [1e-4, 1.1991991992e-4, 0.02], **CLOSE)
    np.testing.assert_allclose(gaussian.betas("cosine", 1000)[0], 4.1284224822e-5, **CLOSE)
    np.testing.assert_allclose(gaussian.betas("cosine", 4000)[0], 9.86581881368e-6, **CLOSE)
    assert gaussian.betas("cosine", 1000)[-1] == 0.999
    scaled = gaussian.variance_preserving(gaussian.betas("scaled_linear", 1000, 0.00085, 0.012))
    ratio = scaled.sigma / scaled.alpha
    np.testing.assert_allclose(ratio[[0, 999]], [0.0291671581517, 14.6146412293], **CLOSE)


@pytest.mark.parametrize(
    ("schedule", "theirs"),
    [("linear", "linear"), ("cosine", "squaredcos_cap_v2"), ("scaled_linear", "scaled_linear")],
)
def test_betas_are_those_of_diffusers(schedule, theirs):
    schedulers = pytest.importorskip("diffusers.schedulers")
    expected = schedulers.DDPMScheduler(37, 2e-4, 0.03, theirs).betas.numpy()
    np.testing.assert_allclose(gaussian.betas(schedule, 37, 2e-4, 0.03), expected, rtol=1e-5)


def test_coefficients_are_the_tables_in_float32_and_expand_to_any_rank():
    process, index = linear(), jnp.array([999, 0, 500])
    alpha, sigma = process.coefficients(index)
    assert alpha.dtype == sigma.dtype == jnp.float32
    np.testing.assert_array_equal(alpha, process.alpha[[999, 0, 500]].astype(np.float32))
    np.testing.assert_array_equal(sigma, process.sigma[[999, 0, 500]].astype(np.float32))
    for shape in ((3,), (3, 2), (3, 4, 4, 1)):
        x0, eps = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
        x_t = gaussian.diffuse(jnp.asarray(x0), jnp.asarray(eps), alpha, sigma)
        for i in range(3):
            np.testing.assert_allclose(x_t[i], alpha[i] * x0[i] + sigma[i] * eps[i], rtol=1e-6)


def test_what_is_not_known_is_named_with_what_is():
    with pytest.raises(ValueError, match=r"diffusion.schedule is one of linear, cosine, scaled_l"):
        gaussian.betas("cosin", 10)
    with pytest.raises(ValueError, match=r"diffusion.timesteps must be at least 1, not 0"):
        gaussian.betas("linear", 0)
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\)"):
        gaussian.variance_preserving(gaussian.betas("linear", 10, 0.0, 1.0))
