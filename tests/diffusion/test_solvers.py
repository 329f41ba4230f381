"""Solvers against published numbers, diffusers' schedulers and exact Gaussian solutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.diffusion import process as gaussian
from aigc_jax.diffusion import solvers
from aigc_jax.diffusion.solvers import ancestral, ddim
from aigc_jax.diffusion.solvers.base import noise_like
from aigc_jax.diffusion.solvers.spacing import SPACINGS, timesteps

CLOSE = {"rtol": 1e-6}


def linear(total=1000):
    return gaussian.variance_preserving(gaussian.betas("linear", total))


def walk(solver, denoise, x, noise=None):
    """The whole table in float64 numpy: `step` is arithmetic, so it need not be jax."""
    carry = solver.start(np.asarray(x, np.float64))
    for i in range(len(solver.table["index"])):
        row = {name: column[i] for name, column in solver.table.items()}
        carry, _ = solver.step(denoise, carry, row, None if noise is None else noise[i])
    return solver.finish(carry)


def gaussian_std(solver, process, std):
    """Std of samples of N(0, std^2), exactly: steps are x' = a x + b noise, and variances add."""

    def denoise(x, index):
        alpha, sigma = process.alpha[int(index)], process.sigma[int(index)]
        return alpha * std**2 / (alpha**2 * std**2 + sigma**2) * x

    variance = 1.0
    for i in range(len(solver.table["index"])):
        row = {name: column[i] for name, column in solver.table.items()}
        (a, b), _ = solver.step(denoise, np.array([1.0, 0.0]), row, np.array([0.0, 1.0]))
        variance = a**2 * variance + b**2
    return variance**0.5


def test_posteriors_are_the_published_ones():
    process = linear()
    every = np.arange(1000)[::-1]
    small = ancestral.solver(process, every, "fixed_small").table
    small = {name: column[::-1] for name, column in small.items()}
    np.testing.assert_array_equal(small["index"], np.arange(1000))
    np.testing.assert_allclose(
        small["std"][[0, 1, 500, 999]] ** 2,
        [0, 5.4531876613e-5, 0.0100513357789, 0.0199999835266],
        **CLOSE,
    )
    means = np.stack([small["c_x0"], small["c_x"]], axis=1)
    np.testing.assert_allclose(means[1], [0.54529149951, 0.454708498991], **CLOSE)
    np.testing.assert_allclose(means[500], [0.00305805707563, 0.994104350757], **CLOSE)
    np.testing.assert_allclose(means[0], [1, 0], atol=1e-12)
    large = ancestral.solver(process, every, "fixed_large").table["std"][::-1]
    np.testing.assert_allclose(large[1:] ** 2, gaussian.betas("linear", 1000)[1:], **CLOSE)
    assert large[0] == 0  # the step that reaches x_0 adds no noise


@pytest.mark.parametrize(
    ("eta", "sigma", "direction"),
    [
        (0.0, 0.0, None),
        (0.2, 0.144639269854, 0.886288594054),
        (0.5, 0.361598174636, 0.821994373724),
        (1.0, 0.723196349271, 0.532367383236),
    ],
)
def test_ddim_coefficients_from_500_to_400_are_the_published_ones(eta, sigma, direction):
    process = linear()
    row = {k: v[0] for k, v in ddim.solver(process, np.array([500, 400]), eta).table.items()}
    a, s = process.alpha[500], process.sigma[500]
    if eta == 0:  # x' = x_coefficient x + eps_coefficient eps
        np.testing.assert_allclose(row["c_x0"] / a + row["c_x"], 1.57739626441, **CLOSE)
        np.testing.assert_allclose(-row["c_x0"] * s / a, -0.616782656872, **CLOSE)
    else:
        np.testing.assert_allclose(row["c_x"] * s, direction, **CLOSE)
    np.testing.assert_allclose(row["std"], sigma, **CLOSE)


@pytest.mark.parametrize(
    ("spacing", "first", "last"),
    [("leading", [900, 800], 0), ("trailing", [999, 899], 99), ("linspace", [999, 888], 0)],
)
def test_ten_of_a_thousand_times(spacing, first, last):
    t = timesteps(spacing, 10, 1000)
    assert (t[:2].tolist(), t[-1], len(t)) == (first, last, 10)
    scheduler = pytest.importorskip("diffusers").DDIMScheduler(timestep_spacing=spacing)
    for steps in (7, 10, 333, 1000):
        scheduler.set_timesteps(steps)
        np.testing.assert_array_equal(timesteps(spacing, steps, 1000), scheduler.timesteps.numpy())


def test_quadratic_times_are_ddims():
    published = np.linspace(0, np.sqrt(1000 * 0.8), 20) ** 2  # ermongroup/ddim, skip_type "quad"
    expected = [int(t) for t in published][::-1]
    assert timesteps("quadratic", 20, 1000).tolist() == expected


@pytest.mark.parametrize("spacing", SPACINGS)
def test_times_are_distinct_descending_and_within_the_process(spacing):
    for total in (1, 2, 20, 100, 1000):
        for steps in {1, 2, total // 3, total // 2, total - 1, total} - {0}:
            if steps <= total:
                t = timesteps(spacing, steps, total)
                assert len(t) == steps
                assert np.all(np.diff(t) < 0)
                assert t.min() >= 0
                assert t.max() < total


@pytest.mark.parametrize("spacing", SPACINGS)
def test_one_step_starts_from_the_noisiest_time(spacing):
    assert timesteps(spacing, 1, 1000).tolist() == [999]


@pytest.mark.parametrize(
    ("variance", "std", "expected"),
    [
        ("fixed_small", 0.5, 0.496110079882),
        ("fixed_large", 0.5, 0.50075151024),
        ("fixed_small", 1.0, 0.995523669408),
        ("fixed_large", 1.0, 0.99994999875),
    ],
)
def test_ancestral_samples_of_a_gaussian_have_the_exact_std(variance, std, expected):
    process = linear()
    solver = solvers.build(process, sampler="ancestral", steps=1000, variance=variance)
    np.testing.assert_allclose(gaussian_std(solver, process, std), expected, **CLOSE)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (10, 0.374128493791),
        (20, 0.433734422246),
        (50, 0.472439113028),
        (100, 0.48598056732),
        (1000, 0.498495282996),
    ],
)
def test_ddim_samples_of_a_gaussian_have_the_exact_std(steps, expected):
    process = linear()
    solver = solvers.build(process, sampler="ddim", steps=steps)
    np.testing.assert_allclose(gaussian_std(solver, process, 0.5), expected, **CLOSE)
    assert not solver.stochastic


def test_ddim_with_eta_1_is_ancestral_sampling():
    process = linear()
    whole = solvers.build(process, sampler="ddim", steps=0, eta=1.0)
    np.testing.assert_allclose(gaussian_std(whole, process, 0.5), 0.496110079882, **CLOSE)
    for steps in (10, 1000):
        one = solvers.build(process, sampler="ddim", steps=steps, eta=1.0)
        small = solvers.build(process, sampler="ancestral", steps=steps, variance="fixed_small")
        for name in one.table:
            np.testing.assert_array_equal(one.table[name], small.table[name])


def tenth_of_x(process):
    """The denoiser of a network whose eps is 0.1 x."""

    def denoise(x, index):
        return (x - process.sigma[int(index)] * 0.1 * x) / process.alpha[int(index)]

    return denoise


@pytest.mark.parametrize(
    ("spacing", "expected"), [("leading", 41.5368757071), ("trailing", 100.9152482270)]
)
def test_ddim_end_to_end_is_the_published_number_and_diffusers(spacing, expected):
    process = linear()
    solver = solvers.build(process, sampler="ddim", steps=10, spacing=spacing)
    found = walk(solver, tenth_of_x(process), 1.0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)  # theirs has float32 tables
    torch = pytest.importorskip("torch")
    scheduler = pytest.importorskip("diffusers").DDIMScheduler(
        timestep_spacing=spacing, clip_sample=False
    )
    scheduler.set_timesteps(10)
    x = torch.ones((), dtype=torch.float64)
    for t in scheduler.timesteps:
        x = scheduler.step(0.1 * x, t, x).prev_sample
    np.testing.assert_allclose(found, x.numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "settings", "steps"),
    [
        ("DDPMScheduler", {"variance": "fixed_small"}, 10),
        ("DDPMScheduler", {"variance": "fixed_large"}, 10),
        ("DDPMScheduler", {"variance": "fixed_large"}, 1000),
        ("DDIMScheduler", {"eta": 0.5}, 10),
    ],
)
def test_stochastic_steps_are_those_of_diffusers_given_their_noise(name, settings, steps):
    torch = pytest.importorskip("torch")
    process = linear()
    rng = np.random.default_rng(0)
    start, noise = rng.normal(size=(4, 2)), rng.normal(size=(steps, 4, 2))
    if name == "DDPMScheduler":
        solver = solvers.build(process, sampler="ancestral", steps=steps, **settings)
        changes, arguments = {"variance_type": settings["variance"]}, {}
    else:
        solver = solvers.build(process, sampler="ddim", steps=steps, **settings)
        changes, arguments = {}, settings
    scheduler = getattr(pytest.importorskip("diffusers"), name)(clip_sample=False, **changes)
    scheduler.set_timesteps(steps)
    module = __import__(type(scheduler).__module__, fromlist=["randn_tensor"])
    x = torch.tensor(start)
    for i, t in enumerate(scheduler.timesteps):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "randn_tensor", lambda *_, i=i, **__: torch.tensor(noise[i]))
            x = scheduler.step(0.1 * x, t, x, **arguments).prev_sample
    found = walk(solver, tenth_of_x(process), start, noise)
    np.testing.assert_allclose(found, x.numpy(), rtol=2e-5, atol=1e-5)


def test_noise_depends_on_its_own_key_and_on_the_step_only():
    keys = jax.vmap(jax.random.key)(jnp.arange(5))
    noise = noise_like(keys, (2, 2, 1), 3)
    alone = noise_like(keys[3:4], (2, 2, 1), 3)
    np.testing.assert_array_equal(noise[3:4], alone)
    assert len(np.unique(noise)) == noise.size
    assert not np.allclose(noise, noise_like(keys, (2, 2, 1), 4))


def test_a_setting_that_no_solver_has_is_refused():
    with pytest.raises(TypeError, match="varience"):
        solvers.build(linear(20), sampler="ddim", steps=5, varience="fixed_small")


def test_what_a_solver_cannot_do_is_told():
    build = solvers.build
    process = linear(20)
    with pytest.raises(ValueError, match=r"sampling.steps must lie in 1..20 .* not 21"):
        build(process, sampler="ddim", steps=21)
    with pytest.raises(ValueError, match=r"sampling.sampler is one of ancestral, ddim, not 'ddmi'"):
        build(process, sampler="ddmi", steps=5)
    with pytest.raises(ValueError, match=r"sampling.spacing is one of leading, trailing"):
        build(process, sampler="ddim", steps=5, spacing="cubic")
    with pytest.raises(ValueError, match=r"sampling.variance is one of fixed_small, fixed_large"):
        build(process, sampler="ancestral", steps=5, variance="learned")
    for eta in (-0.1, 1.5):
        with pytest.raises(ValueError, match=r"sampling.eta must lie in 0..1, not"):
            build(process, sampler="ddim", steps=5, eta=eta)
