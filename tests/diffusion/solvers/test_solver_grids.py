"""Which levels of noise solvers visit."""

import itertools
import warnings

import numpy as np
import oracles
import pytest
from diffusion.solvers.walks import linear_betas

from aigc_jax.diffusion import process as gaussian
from aigc_jax.diffusion import solvers
from aigc_jax.diffusion.solvers import Settings
from aigc_jax.diffusion.solvers.spacing import OF_RATIOS, OF_TIMES, SPACINGS, grid, timesteps

EDM, FLOW, VP = gaussian.EDM(), gaussian.Flow(), gaussian.VP()
STABLE_DIFFUSION = {"schedule": "scaled_linear", "beta_min": 0.00085, "beta_max": 0.012}


@pytest.mark.parametrize(
    ("spacing", "first", "last"),
    [("leading", [900, 800], 0), ("trailing", [999, 899], 99), ("linspace", [999, 888], 0)],
)
def test_ten_of_a_thousand_times(spacing, first, last):
    t = timesteps(spacing, 10, 1000)
    assert (t[:2].tolist(), t[-1], len(t)) == (first, last, 10)
    np.testing.assert_array_equal(grid(linear_betas(), spacing, 10).t, [*t, 0])
    scheduler = pytest.importorskip("diffusers").DDIMScheduler(timestep_spacing=spacing)
    for steps in (7, 10, 333, 1000):
        scheduler.set_timesteps(steps)
        np.testing.assert_array_equal(timesteps(spacing, steps, 1000), scheduler.timesteps.numpy())


def test_quadratic_times_are_ddims():
    published = np.linspace(0, np.sqrt(1000 * 0.8), 20) ** 2  # ermongroup/ddim, skip_type "quad"
    expected = [int(t) for t in published][::-1]
    assert timesteps("quadratic", 20, 1000).tolist() == expected


@pytest.mark.parametrize("spacing", OF_TIMES)
def test_times_are_distinct_descending_and_within_the_process(spacing):
    for total in (1, 2, 20, 100, 1000):
        for steps in {1, 2, total // 3, total // 2, total - 1, total} - {0}:
            if steps <= total:
                t = timesteps(spacing, steps, total)
                assert len(t) == steps
                assert np.all(np.diff(t) < 0)
                assert t.min() >= 0
                assert t.max() < total


@pytest.mark.parametrize("spacing", OF_TIMES)
def test_one_step_starts_from_the_noisiest_time(spacing):
    assert timesteps(spacing, 1, 1000).tolist() == [999]


def test_edms_levels_are_the_published_ones():
    eighteen = [
        *(80, 57.5859847212, 40.7855737965, 28.3745846042, 19.3524529803, 12.9100823808),
        *(8.4009353091, 5.3151945218, 3.25682151977, 1.92333983704, 1.08817063655, 0.585348123195),
        *(0.296442284479, 0.139516468731, 0.0599473112355, 0.0229345183723, 0.00752801996278),
        *(0.002, 0),
    ]
    found = grid(EDM, "", 18)
    np.testing.assert_allclose(found.sigma, eighteen, rtol=1e-9)
    np.testing.assert_array_equal(found.alpha, 1.0)
    np.testing.assert_array_equal(found.t, found.sigma)
    forty = [69.4509460372, 16.7798894986, 2.24043975893, 0.131197363044, 0.00367658916811]
    np.testing.assert_allclose(grid(EDM, "karras", 40).sigma[[1, 10, 20, 30, 38]], forty, rtol=1e-9)


@pytest.mark.parametrize("rho", [1.0, 7.0])
def test_grids_of_ratios_are_those_of_k_diffusion(rho):
    sampling = oracles.k_diffusion()
    for name, theirs in {
        "karras": sampling.get_sigmas_karras(12, 0.01, 50.0, rho),
        "exponential": sampling.get_sigmas_exponential(12, 0.01, 50.0),
    }.items():
        chosen = Settings(rho=rho, sigma_min=0.01, sigma_max=50.0)
        np.testing.assert_allclose(grid(EDM, name, 12, chosen).ratio, theirs, rtol=2e-5, atol=2e-6)
    ends = VP.level(np.array([1e-3, 1.0])).ratio
    chosen = Settings(sigma_min=ends[0], sigma_max=ends[1])
    theirs = sampling.get_sigmas_vp(12)  # in float32 its square roots of small numbers are rough
    np.testing.assert_allclose(grid(VP, "vp", 12, chosen).ratio, theirs, rtol=5e-4)
    np.testing.assert_allclose(
        grid(VP, "vp", 12, chosen).t, [*np.linspace(1, 1e-3, 12), 0], rtol=1e-9
    )


def test_levels_of_a_discrete_process_lie_between_its_times_too():
    """As of diffusers' DPMSolverMultistepScheduler(use_karras_sigmas); its tables are float32."""
    found = grid(gaussian.discrete(**STABLE_DIFFUSION), "karras", 10)
    ratios = [
        *(14.6146469, 9.10293674, 5.47840118, 3.16861105, 1.74942315, 0.914076507, 0.446920902),
        *(0.201399863, 0.0819110498, 0.0291675329, 0),
    ]
    np.testing.assert_allclose(found.ratio, ratios, rtol=2e-5)
    np.testing.assert_allclose(np.hypot(found.alpha, found.sigma), 1)
    np.testing.assert_array_equal(
        np.round(found.t), [999, 916, 815, 687, 523, 327, 146, 41, 7, 0, 0]
    )
    assert found.t[1] % 1 > 0


def test_times_of_unipc_have_its_published_ratios():
    process = gaussian.discrete(**STABLE_DIFFUSION)
    times = np.round(np.linspace(0, 999, 11))[:0:-1]
    ratios = [
        *(14.6146469, 8.30280590, 5.08776522, 3.32108450, 2.27646399, 1.61827970, 1.16439164),
        *(0.832753181, 0.571666360, 0.343931823),
    ]
    np.testing.assert_allclose(process.level(times).ratio, ratios, rtol=2e-5)


def test_the_shifted_flow_has_the_published_times():
    published = [
        *(1, 0.960129321, 0.913348973, 0.857692301, 0.790368259, 0.707278490, 0.602150559),
        *(0.464876026, 0.278048784, 0.00892857183, 0),
    ]
    # diffusers shifts its last time, 1 / 1000, twice.
    found = grid(FLOW, "flow_shift", 10, Settings(shift=3.0, sigma_min=9 / 999))
    np.testing.assert_allclose(found.t, published, rtol=1e-6)
    t = np.arange(10, 0, -1) / 10
    found = grid(FLOW, "", 10, Settings(shift=3.0))
    np.testing.assert_allclose(found.t, [*(3 * t / (1 + 2 * t)), 0], rtol=1e-12)


@pytest.mark.parametrize("spacing", ["", "uniform", "flow_shift"])
def test_a_flow_without_a_shift_has_even_times(spacing):
    for steps in (1, 2, 10):
        t = np.arange(steps, -1, -1) / steps
        np.testing.assert_allclose(grid(FLOW, spacing, steps).t, t, atol=1e-15)


def test_even_times_end_at_x_0_or_at_a_level_of_ones_own():
    np.testing.assert_allclose(grid(VP, "", 4).t, [1, 0.75, 0.5, 0.25, 0], atol=1e-5)
    low, high = VP.level(np.array([0.2, 0.8])).ratio
    chosen = Settings(sigma_min=low, sigma_max=high)
    np.testing.assert_allclose(grid(VP, "uniform", 4, chosen).t, [0.8, 0.6, 0.4, 0.2, 0])


def test_ones_own_levels_are_taken_as_they_are():
    for own in ((5.0, 1.0, 0.3), (5.0, 1.0, 0.3, 0.0)):
        for process, steps in itertools.product((EDM, FLOW, VP, linear_betas()), (0, 3)):
            found = grid(process, "", steps, Settings(sigmas=own))
            np.testing.assert_allclose(found.ratio, [5, 1, 0.3, 0], rtol=1e-12)


PROCESSES = {
    "discrete": linear_betas(20),
    "zero_terminal": gaussian.discrete(timesteps=20, zero_terminal_snr=True),
    "cosine_betas": gaussian.discrete(schedule="cosine", timesteps=20),
    **{name: gaussian.PROCESSES[name]() for name in gaussian.PROCESSES if name != "discrete"},
}


@pytest.mark.parametrize("name", PROCESSES)
def test_every_grid_falls_within_its_process_to_x_0(name):
    process = PROCESSES[name]
    tried = 0
    for spacing, steps in itertools.product(SPACINGS, (1, 2, 3, 10, 20)):
        if (spacing in OF_TIMES and not process.total) or (spacing == "uniform" and process.total):
            continue
        found = grid(process, spacing, steps)
        assert all(column.shape == (steps + 1,) for column in found), (spacing, steps)
        assert (np.diff(found.ratio) < 0).all()
        assert (np.diff(found.t[:-1]) < 0).all()
        assert (found.t[0] <= process.high + 1e-9) & (found.t[-2] >= process.low - 1e-9)
        assert [float(column[-1]) for column in found] == [0, 1, 0]
        for of_process, of_grid in zip(process.level(found.t[:-1]), found, strict=True):
            np.testing.assert_allclose(of_process, of_grid[:-1], rtol=1e-9)
        tried += 1
    assert tried >= 25


OWN = {"sigmas": (5.0, 1.0)}


@pytest.mark.parametrize(
    ("process", "spacing", "steps", "settings", "message"),
    [
        ("edm", "", 0, {}, "sampling.steps must be at least 1, such as 50, not 0"),
        ("flow", "", -1, {}, "sampling.steps must be at least 1, such as 50, not -1"),
        ("discrete", "karras", 21, {}, r"sampling.steps must lie in 1..20 .* not 21"),
        ("discrete", "", 21, {}, r"sampling.steps must lie in 1..20 .* not 21"),
        ("discrete", "", -1, {}, r"sampling.steps must lie in 1..20 .* not -1"),
        ("edm", "cubic", 5, {}, "sampling.spacing is one of "),
        ("edm", "karas", 5, {}, "did you mean 'karras'"),
        ("edm", "trailing", 5, {}, "take uniform, flow_shift, karras, exponential, vp"),
        ("discrete", "uniform", 5, {}, "take leading, trailing, linspace, quadratic"),
        ("discrete", "leading", 5, {"sigma_min": 0.1}, "sampling.sigma_min and sigma_max say"),
        ("vp", "", 5, {"sigma_max": 200.0}, r"sampling.sigma_max must lie in 0.001\S*..152"),
        ("edm", "", 5, {"sigma_min": 1e-3}, r"sampling.sigma_min must lie in 0.002..80"),
        ("edm", "", 5, {"sigma_min": 3.0, "sigma_max": 2.0}, "sigma_min=3 must lie below"),
        ("flow", "karras", 5, {"sigma_min": 90.0}, "sigma_min=90 must lie below sigma_max=80"),
        ("edm", "karras", 0, OWN, "set sampling.spacing=''"),
        ("edm", "", 2, {**OWN, "sigma_max": 7.0}, "sampling.sigmas is a whole grid"),
        ("edm", "", 3, OWN, "sampling.sigmas has 2 levels: set sampling.steps=2"),
        ("edm", "", 0, {"sigmas": (1.0, 5.0)}, "sampling.sigmas must fall"),
        ("edm", "", 0, {"sigmas": (5.0, 5.0)}, "sampling.sigmas must fall"),
        ("edm", "", 0, {"sigmas": (5.0, 0.0, 0.0)}, "sampling.sigmas must fall"),
        ("edm", "", 0, {"sigmas": (0.0,)}, "sampling.sigmas must fall"),
        ("edm", "", 0, {"sigmas": (90.0, 1.0)}, "sampling.sigmas must lie in 0.002..80"),
    ],
)
def test_what_is_no_grid_is_refused_with_what_is(process, spacing, steps, settings, message):
    with pytest.raises(ValueError, match=message):
        grid(PROCESSES[process], spacing, steps, Settings(**settings))


def test_a_grid_of_ratios_has_ends_where_the_process_has_none():
    for spacing in OF_RATIOS:
        np.testing.assert_allclose(grid(FLOW, spacing, 5).ratio[[0, -2]], [80, 0.002])
    # Between the last two levels of a process that ends in noise alone there is no other.
    zero_terminal = PROCESSES["zero_terminal"]
    highest = grid(zero_terminal, "karras", 5).t[0]
    np.testing.assert_allclose(highest, 18)
    assert grid(zero_terminal, "trailing", 5).alpha[0] == 0


def test_a_grid_that_begins_well_below_the_noise_says_so_and_what_does_not():
    cosine = gaussian.discrete(schedule="cosine")

    def drawn(process, spacing, steps, sampler="ddim", **settings):
        solvers.build(process, sampler=sampler, spacing=spacing, steps=steps, **settings)

    said = r"leading in 10 steps begins at time 900 of 0..999, where x holds 0.15 of .*{}$"
    with pytest.warns(UserWarning, match=said.format("spacing=trailing, or sampling.steps=18")):
        drawn(cosine, "leading", 10)
    said = r"begins at time 599 .*, or sampling.steps=500 or 936$"
    with pytest.warns(UserWarning, match=said):
        drawn(cosine, "leading", 600)
    with pytest.warns(UserWarning, match=r"x holds 0.31 of .* set sampling.spacing=trailing$"):
        drawn(cosine, "quadratic", 10)
    # As these do: 60 of 1,000 draw better digits than "trailing"; that of 12 has little noise ever.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for steps in (1, 18, 60, 500, 936, 1000):
            drawn(cosine, "leading", steps)
            drawn(linear_betas(), "leading", steps)
        for steps in range(1, 1001, 37):
            drawn(cosine, "trailing", steps)
        drawn(gaussian.discrete(timesteps=12), "leading", 8)
        drawn(cosine, "leading", 10, "heun")  # for which "trailing" is worse
        drawn(cosine, "karras", 10)
        drawn(cosine, "", 2, sigmas=(1.0, 0.5))  # somebody's own
