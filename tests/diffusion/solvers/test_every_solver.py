"""Every solver with every process, grid and number of steps: it samples, or is refused."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusion.solvers.walks import of_gaussian, sub_grid, walk

from aigc_jax.diffusion import process as gaussian
from aigc_jax.diffusion import solvers
from aigc_jax.diffusion.solvers.base import Estimate
from aigc_jax.diffusion.solvers.spacing import OF_TIMES, SPACINGS, grid
from aigc_jax.errors import SettingError

T = 12
PROCESSES = {
    "discrete": gaussian.variance_preserving(gaussian.betas("linear", T, 0.01, 0.9)),
    "zero_terminal": gaussian.discrete(timesteps=T, zero_terminal_snr=True),
    "cosine_betas": gaussian.discrete(schedule="cosine", timesteps=T),
    **{name: gaussian.PROCESSES[name]() for name in gaussian.PROCESSES if name != "discrete"},
}
SETTINGS = {
    "heun": {"churn": 3.0},
    "deis": {"order": 3},
    "unipc": {"order": 3},
    "predictor_corrector": {"predictor": "reverse_diffusion"},
}


def can(process, sampler, spacing):
    if sampler == "flow_heun" and process is not PROCESSES["flow"]:
        return False
    return not (spacing in OF_TIMES if not process.total else spacing == "uniform")


def calls_of(sampler, steps, infinite):
    if sampler in ("heun", "flow_heun"):
        return 2 * steps - 1 - (infinite and steps > 1 and sampler == "heun")
    return steps * (2 if sampler == "predictor_corrector" else 1)


@pytest.mark.parametrize("sampler", solvers.SOLVERS)
@pytest.mark.parametrize("name", PROCESSES)
def test_a_solver_samples_or_is_refused(name, sampler):
    process, exact = PROCESSES[name], of_gaussian(0.3, 0.5)
    noise = np.random.default_rng(0).normal(size=(21, 1, 3))
    for spacing, steps in itertools.product(SPACINGS, (1, 2, 3, 10)):
        settings = {"sampler": sampler, "spacing": spacing, "steps": steps}
        settings |= SETTINGS.get(sampler, {})
        if not can(process, sampler, spacing):
            with pytest.raises(SettingError, match="take "):
                solvers.build(process, **settings)
            continue
        solver = solvers.build(process, **settings)
        called = []

        def denoise(x, level, called=called):
            assert level.sigma > 0
            assert 0 <= level.alpha <= 1
            called.append((level, np.clip(exact(x, level), -1, 1)))
            return called[-1][1]

        found = walk(solver, denoise, solver.std * noise[0], noise[1:])
        assert np.isfinite(found).all(), settings
        # The step to x_0 is the limit: the estimate itself.
        np.testing.assert_allclose(found, called[-1][1], atol=1e-9)
        levels = grid(process, spacing, steps)
        assert len(called) == solver.calls == calls_of(sampler, steps, levels.alpha[0] == 0)
        times = [level.t for level, _ in called]
        assert process.low - 1e-9 <= min(times) <= max(times) <= process.high + 1e-9


@pytest.mark.parametrize("sampler", solvers.SOLVERS)
def test_a_run_may_begin_and_end_anywhere(sampler):
    """Parts of a grid join, where a solver keeps nothing between its steps."""
    process, exact = PROCESSES["flow"], of_gaussian(0.3, 0.5)
    levels = grid(process, "", 8)
    first, last = (
        solvers.on(process, part, sampler=sampler)
        for part in (sub_grid(levels, 0, 6), sub_grid(levels, 5))
    )
    noise = np.random.default_rng(0).normal(size=(16, 1, 3))
    x = walk(first, exact, np.ones((1, 3)), noise)
    found = walk(last, exact, x, noise[first.calls :])
    whole = walk(solvers.on(process, levels, sampler=sampler), exact, np.ones((1, 3)), noise)
    keeps = sampler in ("deis", "unipc") or sampler.startswith("dpmpp")
    np.testing.assert_allclose(found, whole, atol=0.5 if keeps else 1e-9)


@pytest.mark.parametrize("sampler", solvers.SOLVERS)
def test_a_compiled_run_in_float32_is_the_one_in_float64(sampler):
    # At EDM's lowest levels float32 holds little of a score.
    flow = sampler in ("flow_heun", "predictor_corrector")
    process, exact = PROCESSES["flow" if flow else "edm"], of_gaussian(0.3, 0.5)
    solver = solvers.build(process, sampler=sampler, steps=6)
    table = jax.tree.map(lambda column: jnp.asarray(column, jnp.float32), solver.table)
    noise = np.random.default_rng(0).normal(size=(solver.calls + 1, 2, 3))

    @jax.jit
    def run(x, noise):
        def step(carry, row):
            eps = row[1] if solver.stochastic else None
            return solver.step(lambda x, at: Estimate(exact(x, at)), carry, row[0], eps)

        carry, estimates = jax.lax.scan(step, solver.start(x), (table, noise))
        return solver.finish(carry), estimates

    x = (solver.std * noise[0]).astype(np.float32)
    found, estimates = run(x, noise[1:].astype(np.float32))
    expected = walk(solver, exact, x, noise[1:])
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(found, estimates[-1], rtol=1e-4)
    # A sample is its own noise's alone.
    alone, _ = run(x[1:], noise[1:, 1:].astype(np.float32))
    np.testing.assert_allclose(alone, found[1:], rtol=1e-5)


def test_what_samples_start_from_has_the_noise_of_the_first_level():
    for name, process in PROCESSES.items():
        first = solvers.build(process, sampler="ddim", steps=3).std
        assert first == pytest.approx(process.start_std, rel=1e-4), name
    for name, sigma in (("edm", 5.0), ("ve", 5.0), ("flow", 5 / 6), ("vp", 1), ("discrete", 1)):
        solver = solvers.build(
            PROCESSES[name], sampler="ddim", steps=3, spacing="karras", sigma_max=5.0
        )
        assert solver.std == pytest.approx(sigma), name


def test_each_solver_says_which_processes_it_serves():
    assert set(solvers.SERVES) == set(solvers.SOLVERS)
    for sampler, names in solvers.SERVES.items():
        for name in gaussian.PROCESSES:
            assert can(PROCESSES[name], sampler, "") == (name in names)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "ddmi"}, r"sampling.sampler is one of ancestral, ddim.*did you mean 'ddim'"),
        ({"sampler": "flow_heun"}, "diffusion.process.name=flow alone: take heun"),
        ({"varience": "fixed_small"}, "has no key 'varience'.*did you mean 'variance'"),
        ({"variance": "larned"}, "sampling.variance is one of fixed_small, fixed_large, learned"),
        ({"eta": -0.1}, r"sampling.eta is a number in \[0, 1\]"),
        ({"eta": 1.5}, r"sampling.eta is a number in \[0, 1\]"),
        ({"rho": 0.0}, "sampling.rho is a number above 0"),
        ({"order": 4}, r"sampling.order is a whole number in \[1, 3\]"),
        ({"churn": -1.0}, "sampling.churn is a number at least 0"),
        ({"sigmas": ("5",)}, "sampling.sigmas is a sequence, maybe empty,"),
        ({"predictor": "euler"}, "sampling.predictor is one of ancestral, reverse_diffusion"),
    ],
)
def test_what_a_solver_cannot_do_is_told(settings, message):
    settings = {"sampler": "ddim", "steps": 5, **settings}
    with pytest.raises(SettingError, match=message):
        solvers.build(PROCESSES["discrete"], **settings)


OTHERS = {
    **{"eta": 0.5, "order": 3, "predictor": "reverse_diffusion", "snr": 0.3},
    **{"churn": 3.0, "churn_min": 5.0, "churn_max": 5.0, "churn_noise": 1.1},
}


@pytest.mark.parametrize("sampler", solvers.SOLVERS)
def test_a_solver_reads_the_settings_that_are_said_to_be_its_own(sampler):
    """And what a config holds for others changes nothing."""
    assert set(OTHERS) == set(solvers.READ_BY)
    process = PROCESSES["flow" if sampler == "flow_heun" else "edm"]

    def made(**settings):
        solver = solvers.build(process, sampler=sampler, steps=20, **settings)
        return jax.tree.leaves((solver.table, solver.std))

    for name, value in OTHERS.items():
        beside = {"churn": 2.0} if name.startswith("churn") else {}
        before, after = made(**beside), made(**beside | {name: value})
        same = len(before) == len(after) and all(map(np.array_equal, before, after))
        reads = sampler in solvers.READ_BY[name]
        assert same is not reads, name
        if reads:
            solvers.check_read(["euler", sampler], [name, "clip"])
        else:
            with pytest.raises(SettingError, match=rf"{name} is of .* and {sampler} would ignore"):
                solvers.check_read([sampler], ["steps", name])
