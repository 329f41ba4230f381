"""The forward process against published numbers, and conversions against each other."""

import jax
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


def test_snr_and_its_weights_are_the_published_ones():
    process = linear()
    snr = (process.alpha / process.sigma) ** 2
    np.testing.assert_allclose(snr[[0, 99, 499]], [9999, 8.71044856935, 0.0852899444626], **CLOSE)
    expected = {
        "eps": (0.574023250374, 1.0),
        "v": (0.514909271625, 0.0785872428818),
        "x0": (5.0, 0.0852899444626),
    }
    for prediction, values in expected.items():
        weight = gaussian.weight("min_snr", prediction, process.alpha, process.sigma, 5.0)
        np.testing.assert_allclose(weight[[99, 499]], values, **CLOSE)
        simple = gaussian.weight("simple", prediction, process.alpha, process.sigma)
        np.testing.assert_array_equal(simple, np.ones(1000))
    np.testing.assert_allclose(
        gaussian.weight("snr", "eps", process.alpha, process.sigma), 1.0, rtol=1e-12
    )


def draws(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("prediction", gaussian.PREDICTIONS)
def test_predictions_convert_back_to_x0_and_eps_for_any_alpha_and_sigma(prediction):
    rng = np.random.default_rng(0)
    x0, eps = draws(rng, 16, 4, 3), draws(rng, 16, 4, 3)
    alpha, sigma = rng.uniform(0.1, 2, (2, 16)).astype(np.float32)
    x_t = gaussian.diffuse(x0, eps, alpha, sigma)
    output = gaussian.target(prediction, x0, eps, alpha, sigma)
    found = gaussian.to_x0(prediction, output, x_t, alpha, sigma)
    np.testing.assert_allclose(found, x0, atol=2e-4)
    np.testing.assert_allclose(gaussian.to_eps(found, x_t, alpha, sigma), eps, atol=2e-3)


@pytest.mark.parametrize("weighting", ["snr", "min_snr"])
def test_the_same_error_in_x0_costs_the_same_whatever_is_predicted(weighting):
    process = gaussian.variance_preserving(gaussian.betas("cosine", 50))
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        x0, eps, error = rng.normal(size=(3, 50, 8))
        x_t = gaussian.diffuse(x0, eps, process.alpha, process.sigma)
        guess = x0 + error
        guessed_eps = gaussian.to_eps(guess, x_t, process.alpha, process.sigma)
        losses = []
        for prediction in gaussian.PREDICTIONS:
            pred = gaussian.target(prediction, guess, guessed_eps, process.alpha, process.sigma)
            true = gaussian.target(prediction, x0, eps, process.alpha, process.sigma)
            weight = gaussian.weight(weighting, prediction, process.alpha, process.sigma)
            losses.append(weight * np.mean((np.asarray(pred) - np.asarray(true)) ** 2, axis=1))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-8)
    np.testing.assert_allclose(losses[2], losses[0], rtol=1e-8)
    snr = (process.alpha / process.sigma) ** 2
    factor = np.minimum(snr, 5) if weighting == "min_snr" else snr
    np.testing.assert_allclose(losses[0], factor * np.mean(error**2, axis=1), rtol=1e-8)


def test_what_is_not_known_is_named_with_what_is():
    with pytest.raises(ValueError, match=r"diffusion.schedule is one of linear, cosine, scaled_l"):
        gaussian.betas("cosin", 10)
    with pytest.raises(ValueError, match=r"diffusion.timesteps must be at least 1, not 0"):
        gaussian.betas("linear", 0)
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\)"):
        gaussian.variance_preserving(gaussian.betas("linear", 10, 0.0, 1.0))
    one = np.ones(1)
    for weighting in gaussian.WEIGHTINGS:
        with pytest.raises(ValueError, match=r"diffusion.prediction is one of eps, x0, v, not"):
            gaussian.weight(weighting, "epsilon", one, one)
    with pytest.raises(ValueError, match=r"diffusion.weighting is one of simple, snr, min_snr"):
        gaussian.weight("minsnr", "eps", one, one)
    for convert in (gaussian.target, gaussian.to_x0):
        with pytest.raises(ValueError, match=r"diffusion.prediction is one of"):
            convert("epsilon", one, one, one, one)
