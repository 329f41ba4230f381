"""Solvers against published numbers and exact solutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusion.solvers.walks import (
    linear_betas,
    moments,
    of_gaussian,
    rows,
    sub_grid,
    tenth_of_x,
    walk,
)
from scipy.integrate import quad

from aigc_jax.diffusion import process as gaussian
from aigc_jax.diffusion import solvers
from aigc_jax.diffusion.solvers import ancestral, ddim, multistep, predictor_corrector
from aigc_jax.diffusion.solvers.base import Estimate, noise_like
from aigc_jax.diffusion.solvers.spacing import ending, grid
from benchmarks import solver_orders

CLOSE = {"rtol": 1e-6}
EDM, FLOW, VE, VP = gaussian.EDM(), gaussian.Flow(), gaussian.VE(), gaussian.VP()


def test_posteriors_are_the_published_ones():
    process = linear_betas()
    every = grid(process, "leading", 0)
    c_x, c_x0, std = (column[::-1] for column in ancestral.coefficients(every, "fixed_small"))
    np.testing.assert_allclose(
        std[[0, 1, 500, 999]] ** 2, [0, 5.4531876613e-5, 0.0100513357789, 0.0199999835266], **CLOSE
    )
    means = np.stack([c_x0, c_x], axis=1)
    np.testing.assert_allclose(means[1], [0.54529149951, 0.454708498991], **CLOSE)
    np.testing.assert_allclose(means[500], [0.00305805707563, 0.994104350757], **CLOSE)
    np.testing.assert_allclose(means[0], [1, 0], atol=1e-12)
    large = ancestral.coefficients(every, "fixed_large")[2][::-1]
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
    two = linear_betas().level(np.array([500, 400]))
    c_x, c_x0, std = (column[0] for column in ddim.coefficients(two, eta))
    a, s = two.alpha[0], two.sigma[0]
    if eta == 0:  # x' = x_coefficient x + eps_coefficient eps
        np.testing.assert_allclose(c_x0 / a + c_x, 1.57739626441, **CLOSE)
        np.testing.assert_allclose(-c_x0 * s / a, -0.616782656872, **CLOSE)
    else:
        np.testing.assert_allclose(c_x * s, direction, **CLOSE)
    np.testing.assert_allclose(std, sigma, **CLOSE)


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
    solver = solvers.build(linear_betas(), sampler="ancestral", steps=1000, variance=variance)
    np.testing.assert_allclose(moments(solver, 0.0, std)[1], expected, **CLOSE)


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
    solver = solvers.build(linear_betas(), sampler="ddim", steps=steps)
    np.testing.assert_allclose(moments(solver, 0.0, 0.5)[1], expected, **CLOSE)
    assert not solver.stochastic


@pytest.mark.parametrize(
    ("sampler", "mean", "std"),
    [
        ("euler", 0.298413632113, 0.423031436408),
        ("heun", 0.298021407611, 0.527624637001),
        ("dpmpp_2m", 0.298008224721, 0.531140074419),
    ],
)
def test_samples_of_a_gaussian_over_edms_grid_have_the_exact_mean_and_std(sampler, mean, std):
    solver = solvers.build(EDM, sampler=sampler, steps=18)
    np.testing.assert_allclose(moments(solver, 0.3, 0.5), [mean, std], **CLOSE)


@pytest.mark.parametrize(
    ("steps", "expected"), [(1, 0.0), (2, 0.2), (10, 0.430782604899), (100, 0.492645476277)]
)
def test_euler_samples_of_a_flow_have_the_exact_std(steps, expected):
    solver = solvers.build(FLOW, sampler="euler", steps=steps)
    np.testing.assert_allclose(moments(solver, 0.0, 0.5)[1], expected, **CLOSE)


def test_euler_of_a_flow_in_x_and_t_is_ddim():
    levels = grid(FLOW, "flow_shift", 7, solvers.Settings(shift=3.0))
    x = start = np.array([0.3, -1.2])
    denoise = of_gaussian(0.3, 0.5)
    for t, to in zip(levels.t, levels.t[1:], strict=False):
        velocity = (x - denoise(x, FLOW.level(t))) / t
        x = x + (to - t) * velocity
    for sampler in ("ddim", "euler"):
        found = walk(solvers.on(FLOW, levels, sampler=sampler), denoise, start)
        np.testing.assert_allclose(found, x, rtol=1e-12)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "dpmpp_3m", "deis", "unipc", "heun"])
def test_what_noise_alone_says_serves_the_step_from_it_only(sampler):
    """Its lambda is infinite: no later step goes by it, and the first is not corrected."""
    levels, steps = grid(FLOW, "uniform", 8), 1 if sampler == "heun" else 2
    part = sub_grid(levels, 0, steps + 1)
    expected = walk(solvers.on(FLOW, part, sampler="ddim"), of_gaussian(0.3, 0.5), 1.2)
    found = walk(solvers.on(FLOW, part, sampler=sampler, order=3), of_gaussian(0.3, 0.5), 1.2)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_last_steps_of_few_go_by_fewer_estimates():
    levels = grid(EDM, "karras", 5)
    assert multistep.orders(levels, 3, taper=True).tolist() == [1, 2, 3, 2, 1]
    assert multistep.orders(levels, 3, taper=False).tolist() == [1, 2, 3, 3, 1]
    assert multistep.orders(sub_grid(levels, 0, 5), 3, taper=True).tolist() == [1, 2, 3, 3]
    for sampler in ("dpmpp_3m", "deis"):
        for steps, earlier in ((5, 1), (14, 1), (15, 2)):
            solver = solvers.build(EDM, sampler=sampler, steps=steps, order=3)
            assert np.count_nonzero(solver.table["keep"][-2, 0, 1:]) == earlier


def test_ddim_with_eta_1_is_ancestral_sampling():
    process = linear_betas()
    whole = solvers.build(process, sampler="ddim", steps=0, eta=1.0)
    np.testing.assert_allclose(moments(whole, 0.0, 0.5)[1], 0.496110079882, **CLOSE)
    for steps in (10, 1000):
        one = solvers.build(process, sampler="ddim", steps=steps, eta=1.0)
        small = solvers.build(process, sampler="ancestral", steps=steps, variance="fixed_small")
        jax.tree.map(np.testing.assert_array_equal, one.table, small.table)


# diffusers 0.42.1 in float64, eps = 0.1 x from x = 1 in 10 steps; their tables are float32.
TIMES = np.round(np.linspace(0, 999, 11))[:0:-1]


@pytest.mark.parametrize(
    ("sampler", "levels", "expected"),
    [
        ("ddim", "leading", 41.5368757071),
        ("ddim", "trailing", 100.9152482270),
        ("dpmpp_2m", TIMES, 92.0494100835),
        ("dpmpp_2m", "karras", 85.5566038372),
        ("unipc", TIMES, 90.6802070453),
    ],
)
def test_samples_of_a_fake_network_are_the_published_ones(sampler, levels, expected):
    process = linear_betas()
    of_times = not isinstance(levels, str)
    levels = ending(process.level(levels)) if of_times else grid(process, levels, 10)
    found = walk(solvers.on(process, levels, sampler=sampler), tenth_of_x, 1.0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_deis_to_the_last_time_is_the_published_one():
    process = linear_betas()
    levels = process.level(np.append(TIMES, 0))  # diffusers' DEIS ends there, by a step of DDIM
    x = walk(solvers.on(process, sub_grid(levels, 0, 10), sampler="deis"), tenth_of_x, 1.0)
    found = walk(solvers.on(process, sub_grid(levels, 9), sampler="ddim"), tenth_of_x, x)
    np.testing.assert_allclose(found, 94.7274048817, rtol=1e-5)


@pytest.mark.parametrize(("sampler", "expected"), [("euler", 0.6485413007), ("heun", 0.5309933892)])
def test_samples_from_even_times_are_the_published_ones(sampler, expected):
    process = linear_betas()
    times, ratios = np.linspace(999, 0, 10), process.sigmas / process.alphas
    # Between two times diffusers' sigma is linear, not its logarithm. Its x is x / alpha.
    levels = ending(process.at_ratio(np.interp(times, np.arange(1000), ratios)))
    found = walk(solvers.on(process, levels, sampler=sampler), tenth_of_x, levels.alpha[0])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_samples_of_a_fake_flow_are_the_published_ones():
    levels = ending(FLOW.level(np.linspace(1, 0.001, 10)))
    found = walk(
        solvers.on(FLOW, levels, sampler="euler"), lambda x, level: x - level.t * 0.1 * x, 1.0
    )
    np.testing.assert_allclose(found, 0.9043321985, rtol=1e-5)


@pytest.mark.parametrize("name", solver_orders.ORDERS)
def test_solvers_have_their_order(name):
    found = solver_orders.errors(name)
    assert abs(solver_orders.order(found) - solver_orders.ORDERS[name][1]) < 0.2
    assert found[-1] < 0.01


@pytest.mark.parametrize("z", [-19.0, -0.3, -1e-3, 1e-3, 2.0, 15.0])
def test_the_integral_of_a_polynomial_is_exact(z):
    nodes = np.array([0.0, -0.7, -2.1])
    of_nodes = 1 + 2 * nodes - 3 * nodes**2
    expected, _ = quad(
        lambda u: np.exp(z * (1 - u)) * (1 + 2 * u - 3 * u**2), 0, 1, epsabs=0, epsrel=1e-12
    )
    np.testing.assert_allclose(multistep.adams(z, nodes) @ of_nodes, expected, rtol=1e-9)


def test_churn_raises_the_noise_of_the_levels_between_its_ends():
    levels = grid(EDM, "karras", 18)
    solver = solvers.on(
        EDM, levels, sampler="heun", churn=40.0, churn_min=0.05, churn_max=50.0, churn_noise=1.003
    )
    within = (levels.sigma[:-1] >= 0.05) & (levels.sigma[:-1] <= 50)
    called = solver.table["at"].sigma[::2]
    np.testing.assert_allclose(called, levels.sigma[:-1] * np.where(within, 2**0.5, 1), rtol=1e-12)
    assert solver.calls == 2 * 18 - 1
    assert solver.std == 80
    added = np.zeros(solver.calls)
    added[1:-1:2] = 1.003 * np.sqrt(called**2 - levels.sigma[:-1] ** 2)[1:]
    np.testing.assert_allclose(solver.table["noise"][:, 0], added, rtol=1e-9)
    # The first level's is in what samples start from, and no noise rises above the process's.
    first = solvers.on(EDM, sub_grid(levels, 1), sampler="heun", churn=1.7)
    at = levels.sigma[1]
    np.testing.assert_allclose(first.std, at * 1.1)
    np.testing.assert_allclose(first.table["at"].sigma[0], at * 1.1)
    assert solvers.on(EDM, levels, sampler="heun", churn=40.0).table["at"].sigma[0] == 80


def test_churned_samples_of_a_gaussian_stay_near_its_std():
    """In x / alpha: a process with other alphas samples alike."""
    chosen = {"sampler": "heun", "churn": 10.0, "churn_max": 20.0, "spacing": "karras"}
    chosen |= {"sigma_min": 0.01, "sigma_max": 50.0}
    expected = moments(solvers.build(EDM, steps=40, **chosen), 0.3, 0.5)
    np.testing.assert_allclose(expected, [0.3, 0.5], atol=0.015)
    for process in (VP, gaussian.Cosine(), VE):
        found = moments(solvers.build(process, steps=40, **chosen), 0.3, 0.5)
        np.testing.assert_allclose(found, expected, rtol=1e-2)


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m_sde", "dpmpp_3m_sde"])
def test_stochastic_samples_of_a_gaussian_near_its_mean_and_std(sampler):
    for process in (EDM, VP, linear_betas()):
        solver = solvers.build(process, sampler=sampler, steps=200, spacing="karras")
        np.testing.assert_allclose(moments(solver, 0.3, 0.5), [0.3, 0.5], atol=0.02)
        without = solvers.build(process, sampler=sampler, steps=200, spacing="karras", eta=0.0)
        assert (solver.stochastic, without.stochastic) == (True, False)


def test_predictors_are_the_published_ones():
    levels = VE.level(np.array([0.8, 0.7]))
    (at, to), score = levels.sigma**2, 0.7
    x0 = 1.3 + at * score  # the estimate that x = 1.3 and the score make
    for coefficients, std in (
        (predictor_corrector.reverse_diffusion(levels), np.sqrt(at - to)),
        (ddim.coefficients(levels, 1.0), np.sqrt(to * (at - to) / at)),
    ):
        c_x, c_x0, noise = (column[0] for column in coefficients)
        np.testing.assert_allclose(c_x * 1.3 + c_x0 * x0, 1.3 + (at - to) * score, rtol=1e-12)
        np.testing.assert_allclose(noise, std, rtol=1e-12)
    process, beta = linear_betas(), gaussian.betas("linear", 1000)[500]
    levels = process.level(np.array([500, 499]))
    c_x, c_x0, noise = (column[0] for column in predictor_corrector.reverse_diffusion(levels))
    x0 = (1.3 + levels.sigma[0] ** 2 * score) / levels.alpha[0]
    expected = (2 - np.sqrt(1 - beta)) * 1.3 + beta * score
    np.testing.assert_allclose(c_x * 1.3 + c_x0 * x0, expected, rtol=1e-12)
    np.testing.assert_allclose(noise, np.sqrt(beta), rtol=1e-9)


def test_the_corrector_is_langevins_with_norms_of_each_sample():
    process, beta = linear_betas(), gaussian.betas("linear", 1000)[500]
    levels = process.level(np.array([500, 499]))
    solver = solvers.on(process, levels, sampler="predictor_corrector", snr=0.05)
    rng = np.random.default_rng(0)
    x, eps = rng.normal(size=(2, 3, 4, 1))
    denoise = of_gaussian(0.3, 0.5)
    row = rows(solver)[0]
    found, _ = solver.step(lambda *a: Estimate(denoise(*a)), x, row, eps)
    for i in range(3):
        score = (levels.alpha[0] * denoise(x[i], row["at"]) - x[i]) / levels.sigma[0] ** 2
        step = 2 * (1 - beta) * (0.05 * np.linalg.norm(eps[i]) / np.linalg.norm(score)) ** 2
        expected = x[i] + step * score + np.sqrt(2 * step) * eps[i]
        np.testing.assert_allclose(found[i], expected, rtol=1e-9)
    # At the very top of the density the score is 0, or what rounding leaves of it.
    for start in (x, 0 * x):
        found, _ = solver.step(lambda x, level: Estimate(x / level.alpha), start, row, eps)
        np.testing.assert_allclose(found, start + eps)


@pytest.mark.parametrize("predictor", ["ancestral", "reverse_diffusion"])
def test_samples_of_predictor_and_corrector_have_about_the_right_std(predictor):
    rng = np.random.default_rng(0)
    for process in (VE, VP):
        solver = solvers.build(
            process,
            sampler="predictor_corrector",
            steps=300,
            spacing="uniform",
            predictor=predictor,
            snr=0.1,
        )
        noise = rng.normal(size=(601, 1, 4000))
        x = walk(solver, of_gaussian(0.3, 0.5), solver.std * noise[0], noise[1:])
        np.testing.assert_allclose([x.mean(), x.std()], [0.3, 0.5], atol=0.03)


def test_a_learned_variance_lies_between_the_two_fixed_ones():
    levels = grid(linear_betas(), "leading", 10)
    x, eps = jnp.ones((1, 3)), jnp.full((1, 3), 0.5)

    def moved(variance, share=None):
        solver = solvers.on(linear_betas(), levels, sampler="ancestral", variance=variance)
        start = solver.start(x)
        return [
            solver.finish(
                solver.step(lambda x, level: Estimate(0.1 * x, share), start, row, eps)[0]
            )
            for row in rows(solver)
        ]

    for variance, share in (("fixed_small", 0.0), ("fixed_large", 1.0)):
        found = moved("learned", jnp.full((1, 3), share))
        np.testing.assert_allclose(found, moved(variance), rtol=1e-5)
    between = moved("learned", jnp.full((1, 3), 0.5))
    assert (between[0] > moved("fixed_small")[0]).all()
    assert (between[0] < moved("fixed_large")[0]).all()


def test_noise_depends_on_its_own_key_and_on_the_step_only():
    keys = jax.vmap(jax.random.key)(jnp.arange(5))
    noise = noise_like(keys, (2, 2, 1), 3)
    alone = noise_like(keys[3:4], (2, 2, 1), 3)
    np.testing.assert_array_equal(noise[3:4], alone)
    assert len(np.unique(noise)) == noise.size
    assert not np.allclose(noise, noise_like(keys, (2, 2, 1), 4))


@pytest.mark.parametrize(
    ("sampler", "schedule", "steps", "std"),
    [
        ("dpmpp_3m_sde", "linear", 50, {"leading": 1.30, "trailing": 0.52, "karras": 0.50}),
        ("dpmpp_2m_sde", "linear", 50, {"leading": 0.59}),
        ("heun", "cosine", 10, {"leading": 0.52, "trailing": 5.21}),
    ],
)
def test_where_few_steps_are_too_wide_is_as_docstrings_say(sampler, schedule, steps, std):
    process = gaussian.discrete(schedule=schedule)
    for spacing, expected in std.items():
        solver = solvers.build(process, sampler=sampler, steps=steps, spacing=spacing)
        assert moments(solver, 0.3, 0.5)[1] == pytest.approx(expected, abs=0.006)
