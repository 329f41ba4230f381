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
        np.testing.assert_allclose(process.alphas[t] ** 2, value, **CLOSE)
    np.testing.assert_allclose(process.alphas**2 + process.sigmas**2, 1.0, rtol=1e-12)
    assert (process.low, process.high, process.total) == (0, settings[1] - 1, settings[1])


def test_betas_are_the_published_ones():
    beta = gaussian.betas("linear", 1000)
    np.testing.assert_allclose(beta[[0, 1, 999]], [1e-4, 1.1991991992e-4, 0.02], **CLOSE)
    np.testing.assert_allclose(gaussian.betas("cosine", 1000)[0], 4.1284224822e-5, **CLOSE)
    np.testing.assert_allclose(gaussian.betas("cosine", 4000)[0], 9.86581881368e-6, **CLOSE)
    assert gaussian.betas("cosine", 1000)[-1] == 0.999
    scaled = gaussian.variance_preserving(gaussian.betas("scaled_linear", 1000, 0.00085, 0.012))
    ratio = scaled.sigmas / scaled.alphas
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
    process = linear()
    level = process.level(jnp.array([999.0, 0.0, 500.0]))
    alpha, sigma = level.alpha, level.sigma
    assert alpha.dtype == sigma.dtype == jnp.float32
    np.testing.assert_array_equal(alpha, process.alphas[[999, 0, 500]].astype(np.float32))
    np.testing.assert_array_equal(sigma, process.sigmas[[999, 0, 500]].astype(np.float32))
    for shape in ((3,), (3, 2), (3, 4, 4, 1)):
        x0, eps = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
        x_t = gaussian.diffuse(jnp.asarray(x0), jnp.asarray(eps), level)
        for i in range(3):
            np.testing.assert_allclose(x_t[i], alpha[i] * x0[i] + sigma[i] * eps[i], rtol=1e-6)


def test_what_is_not_known_is_named_with_what_is():
    with pytest.raises(
        ValueError, match=r"diffusion.process.schedule is one of linear, cosine, scal"
    ):
        gaussian.betas("cosin", 10)
    with pytest.raises(ValueError, match=r"diffusion.process.timesteps must be at least 1, not 0"):
        gaussian.betas("linear", 0)
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\)"):
        gaussian.variance_preserving(gaussian.betas("linear", 10, 0.0, 1.0))


def made(name, **settings):
    return gaussian.build({"name": name, **settings})


@pytest.mark.parametrize("name", gaussian.PROCESSES)
def test_a_process_is_inverted_and_is_the_same_on_the_device(name):
    process = made(name)
    t = np.linspace(process.low, process.high, 9)
    level = process.level(np.round(t) if process.total else t)
    assert np.all(np.diff(level.alpha) <= 0)
    assert np.all(np.diff(level.ratio) > 0)
    np.testing.assert_allclose(process.time(level.ratio[1:-1]), level.t[1:-1], rtol=1e-9)
    again = process.at_ratio(level.ratio[1:-1])
    np.testing.assert_allclose(again.alpha, level.alpha[1:-1], rtol=1e-9)
    there = process.level(jnp.asarray(level.t, jnp.float32))
    np.testing.assert_allclose(there.alpha, level.alpha, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(there.sigma, level.sigma, rtol=1e-4, atol=1e-6)
    back = process.time(there.ratio[1:-1])
    np.testing.assert_allclose(back, there.t[1:-1], rtol=1e-3)


def test_sigmas_of_vp_and_the_ends_of_vdm_are_the_published_ones():
    ratio = made("vp").level(np.array([1e-5, 1e-3, 0.1, 0.5, 1])).ratio
    published = [0.00100049762665, 0.0104859927867, 0.340176529077, 3.41291830907, 152.166970284]
    np.testing.assert_allclose(ratio, published, rtol=1e-9)
    ends = made("log_snr").ends
    np.testing.assert_allclose(ends.sigma[0] ** 2, 1.67449040551e-6, rtol=1e-9)
    np.testing.assert_allclose(ends.alpha[1] ** 2, 0.00669285092428, rtol=1e-9)


def test_sub_vp_has_the_variance_of_vp_squared_and_the_same_alpha():
    vp, sub = (made(name).level(np.array([0.1, 0.6])) for name in ("vp", "sub_vp"))
    np.testing.assert_array_equal(sub.alpha, vp.alpha)
    np.testing.assert_allclose(sub.sigma, vp.sigma**2, rtol=1e-12)


def test_zero_terminal_snr_is_the_published_one():
    process = made(
        "discrete", schedule="scaled_linear", beta_min=0.00085, beta_max=0.012,
        zero_terminal_snr=True,
    )  # fmt: skip
    alpha_bar = process.alphas**2
    np.testing.assert_allclose(alpha_bar[[0, 500]], [0.99915, 0.241018782757], rtol=1e-9)
    np.testing.assert_allclose(alpha_bar[998], 1.96788805662e-7, rtol=1e-9)
    assert alpha_bar[999] == 0
    assert process.level(999.0).ratio == np.inf


def test_between_two_times_of_a_discrete_process_the_log_of_the_ratio_is_linear():
    process = linear()
    before, between, after = process.level(np.array([400, 400.25, 401])).ratio
    np.testing.assert_allclose(np.log(between), 0.75 * np.log(before) + 0.25 * np.log(after))
    np.testing.assert_allclose(process.time(between), 400.25, rtol=1e-9)


@pytest.mark.parametrize("name", [n for n in gaussian.PROCESSES if n != "discrete"])
def test_the_noise_rate_is_the_slope_of_the_log_snr(name):
    process = made(name)
    t = np.linspace(process.low, process.high, 7)[1:-1]
    step = 1e-4 * t
    slope = np.log(process.level(t + step).ratio / process.level(t - step).ratio) / step
    np.testing.assert_allclose(process.noise_rate(jnp.asarray(t)), slope, rtol=2e-3)


def test_the_noise_rate_of_a_discrete_process_sums_to_its_change():
    process = made("discrete")
    rate = process.noise_rate(jnp.arange(1000.0)) / 1000
    total = 2 * np.log(process.ends.ratio[1] / process.ends.ratio[0])
    np.testing.assert_allclose(rate.sum(), total, rtol=0.05)


def test_ends_in_the_wrong_order_are_told():
    for settings in ({"name": "edm", "sigma_min": 90.0}, {"name": "log_snr", "gamma_min": 5.0}):
        with pytest.raises(ValueError, match=r"diffusion.process.\w+_min=.* must lie below"):
            gaussian.build(settings)
    with pytest.raises(
        ValueError, match=r"diffusion.process.name is one of discrete, vp, .* 'vpp'"
    ):
        made("vpp")
    with pytest.raises(ValueError, match=r"config.diffusion.process has no key 'timesteps'"):
        made("edm", timesteps=100)
