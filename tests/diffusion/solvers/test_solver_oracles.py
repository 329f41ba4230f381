"""Solvers are k-diffusion's and diffusers', on the same fake network and the same noise."""

import numpy as np
import oracles
import pytest
from diffusion.solvers.walks import linear_betas, tenth_of_x, walk

from aigc_jax.diffusion import process as gaussian
from aigc_jax.diffusion import solvers
from aigc_jax.diffusion.process import Level
from aigc_jax.diffusion.solvers.spacing import grid
from benchmarks import solver_orders

EDM, FLOW = gaussian.EDM(), gaussian.Flow()
PROCESSES = {"edm": EDM, "vp": gaussian.VP(), "flow": FLOW, "discrete": linear_betas()}
# diffusers' own, of numpy and torch together.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
RNG = np.random.default_rng(0)
START, NOISE = RNG.normal(size=(4, 2)), RNG.normal(size=(40, 4, 2))


def bent(x, level):
    """A denoiser that is smooth, and the same function of x / alpha and sigma / alpha for all."""
    return np.tanh(0.7 * x / np.hypot(level.alpha, level.sigma)) / (1 + 0.3 * level.ratio) + 0.1


def by_level(x, level):
    """A denoiser that is linear in ln(sigma / alpha), whatever x: its second difference is 0."""
    return 0.3 - 0.2 * np.log(level.ratio) + 0 * x


def k_diffusion(name, x, ratios, denoise=bent, noise=(), **settings):
    """What `sample_NAME` of k-diffusion makes of x, in float64; noise[i] is step i's."""
    sampling = oracles.k_diffusion()
    import torch

    def model(x, sigma):
        sigma = sigma.numpy()[:, None]
        return torch.tensor(denoise(x.numpy(), Level(sigma, np.ones_like(sigma), sigma)))

    drawn = iter(torch.tensor(noise))
    if "eta" in settings:
        settings["noise_sampler"] = lambda *_: next(drawn)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn_like", lambda x: next(drawn, torch.zeros_like(x)))
        sample = getattr(sampling, f"sample_{name}")
        x, ratios = torch.tensor(x), torch.tensor(ratios)
        return sample(model, x, ratios, disable=True, **settings).numpy()


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m"])
def test_solvers_are_k_diffusions_in_x_over_alpha(sampler, name):
    process = PROCESSES[name]
    levels = grid(process, "karras", 18)
    x = levels.ratio[0] * START
    expected = k_diffusion(sampler, x, levels.ratio)
    found = walk(solvers.on(process, levels, sampler=sampler), bent, levels.alpha[0] * x)
    np.testing.assert_allclose(found, expected, **CLOSE)


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize(
    ("sampler", "denoise"),
    [("euler_ancestral", bent), ("dpmpp_2m_sde", bent), ("dpmpp_3m_sde", by_level)],
)
def test_stochastic_solvers_are_k_diffusions(sampler, denoise, eta):
    for process in PROCESSES.values():
        levels = grid(process, "karras", 18)
        x = levels.ratio[0] * START
        expected = k_diffusion(sampler, x, levels.ratio, denoise, NOISE, eta=eta)
        solver = solvers.on(process, levels, sampler=sampler, eta=eta)
        found = walk(solver, denoise, levels.alpha[0] * x, NOISE)
        np.testing.assert_allclose(found, expected, **CLOSE)


def test_three_estimates_make_the_third_order_that_k_diffusions_halved_difference_does_not():
    levels = grid(EDM, "karras", 18)
    found = walk(solvers.on(EDM, levels, sampler="dpmpp_3m"), by_level, 80 * START)
    expected = k_diffusion("dpmpp_3m_sde", 80 * START, levels.ratio, by_level, eta=0.0)
    np.testing.assert_allclose(found, expected, **CLOSE)

    def denoise(x, level):
        level = Level(*(np.ravel(column)[0] for column in level))
        return solver_orders.denoise(x[:, 0], level)[:, None]

    errors = []
    for steps in (80, 160):
        ratios = np.geomspace(80.0, 0.05, steps + 1)
        y = k_diffusion("dpmpp_3m_sde", np.array([[16.0]]), ratios, denoise, eta=0.0)
        errors.append(abs(y[0, 0] - solver_orders.exact(16.0)))
    assert 1.7 < np.log2(errors[0] / errors[1]) < 2.3


def test_churn_is_that_of_k_diffusion():
    levels = grid(EDM, "karras", 18)
    ends = {"churn": 12.0, "churn_min": 0.05, "churn_max": 50.0, "churn_noise": 1.003}
    theirs = {"s_churn": 12.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003}
    expected = k_diffusion("heun", 80 * START, levels.ratio, noise=NOISE, **theirs)
    solver = solvers.on(EDM, levels, sampler="heun", **ends)
    by_call = np.zeros((solver.calls, *START.shape))
    by_call[1:-1:2] = NOISE[1:18]  # the noise of a step is added by the call before it
    np.testing.assert_allclose(walk(solver, bent, 80 * START, by_call), expected, **CLOSE)


def diffusers(name, steps, noise=None, *, flow=False, scaled=False, **settings):
    """Grid and samples of a scheduler of diffusers, from START.

    Args:
      noise: noise[i] is step i's.
      flow: the network gives a velocity, not eps.
      scaled: their x is x / alpha.
    """
    torch = pytest.importorskip("torch")
    scheduler = getattr(pytest.importorskip("diffusers"), name)(**settings)
    scheduler.set_timesteps(steps)
    ratios = scheduler.sigmas.numpy().astype(np.float64)  # of each call
    if flow:
        levels = FLOW.level(ratios)
    else:
        alpha = 1 / np.hypot(1, ratios)
        levels = Level(0 * ratios, alpha, alpha * ratios)
    x = torch.tensor(START / (levels.alpha[0] if scaled else 1))
    module = __import__(type(scheduler).__module__, fromlist=["randn_tensor"])
    for i, t in enumerate(scheduler.timesteps):
        level = Level(*(column[i] for column in levels))
        given = x.numpy() * (level.alpha if scaled else 1)
        denoised = bent(given, level)
        output = (given - (1 if flow else level.alpha) * denoised) / level.sigma
        with pytest.MonkeyPatch.context() as patch:
            if noise is not None:
                patch.setattr(module, "randn_tensor", lambda *_, i=i, **__: torch.tensor(noise[i]))
            x = scheduler.step(torch.tensor(output), t, x).prev_sample
    _, first = np.unique(-ratios, return_index=True)
    return Level(*(column[first] for column in levels)), x.numpy()


@pytest.mark.parametrize(
    ("sampler", "scheduler", "steps", "settings"),
    [
        ("dpmpp_2m", "DPMSolverMultistepScheduler", 10, {}),
        ("dpmpp_2m", "DPMSolverMultistepScheduler", 20, {"use_karras_sigmas": True}),
        ("unipc", "UniPCMultistepScheduler", 10, {}),
        ("unipc", "UniPCMultistepScheduler", 20, {"solver_order": 3}),
        ("unipc", "UniPCMultistepScheduler", 5, {"solver_order": 3}),
        ("deis", "DEISMultistepScheduler", 20, {}),
        ("deis", "DEISMultistepScheduler", 20, {"solver_order": 3}),
    ],
)
def test_multistep_solvers_are_diffusers(sampler, scheduler, steps, settings):
    levels, expected = diffusers(scheduler, steps, **settings)
    solver = solvers.on(
        linear_betas(), levels, sampler=sampler, order=settings.get("solver_order", 2)
    )
    assert solver.calls == steps
    np.testing.assert_allclose(walk(solver, bent, START), expected, **CLOSE)


@pytest.mark.parametrize(
    ("sampler", "scheduler", "noise"),
    [
        ("euler", "EulerDiscreteScheduler", None),
        ("heun", "HeunDiscreteScheduler", None),
        ("euler_ancestral", "EulerAncestralDiscreteScheduler", NOISE),
    ],
)
def test_solvers_in_x_over_alpha_are_diffusers(sampler, scheduler, noise):
    levels, expected = diffusers(scheduler, 10, noise, scaled=True)
    solver = solvers.on(linear_betas(), levels, sampler=sampler)
    np.testing.assert_allclose(walk(solver, bent, START, NOISE), expected, **CLOSE)


def test_the_sde_solver_is_diffusers():
    scheduler, kind = "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}
    levels, expected = diffusers(scheduler, 10, NOISE, **kind)
    solver = solvers.on(linear_betas(), levels, sampler="dpmpp_2m_sde")
    np.testing.assert_allclose(walk(solver, bent, START, NOISE), expected, **CLOSE)


@pytest.mark.parametrize(
    ("sampler", "scheduler"),
    [
        ("euler", "FlowMatchEulerDiscreteScheduler"),
        ("flow_heun", "FlowMatchHeunDiscreteScheduler"),
    ],
)
def test_solvers_of_flows_are_diffusers(sampler, scheduler):
    levels, expected = diffusers(scheduler, 10, flow=True, shift=3.0)
    found = walk(solvers.on(FLOW, levels, sampler=sampler), bent, START)
    np.testing.assert_allclose(found, expected, **CLOSE)


@pytest.mark.parametrize(
    ("name", "settings", "steps"),
    [
        ("DDPMScheduler", {"variance": "fixed_small"}, 10),
        ("DDPMScheduler", {"variance": "fixed_large"}, 10),
        ("DDPMScheduler", {"variance": "fixed_large"}, 1000),
        ("DDIMScheduler", {"eta": 0.5}, 10),
    ],
)
def test_steps_of_ancestral_and_ddim_are_those_of_diffusers(name, settings, steps):
    torch = pytest.importorskip("torch")
    noise = np.random.default_rng(0).normal(size=(steps, 4, 2))
    if name == "DDPMScheduler":
        sampler, changes, arguments = "ancestral", {"variance_type": settings["variance"]}, {}
    else:
        sampler, changes, arguments = "ddim", {}, settings
    solver = solvers.build(linear_betas(), sampler=sampler, steps=steps, **settings)
    scheduler = getattr(pytest.importorskip("diffusers"), name)(clip_sample=False, **changes)
    scheduler.set_timesteps(steps)
    module = __import__(type(scheduler).__module__, fromlist=["randn_tensor"])
    x = torch.tensor(START)
    for i, t in enumerate(scheduler.timesteps):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "randn_tensor", lambda *_, i=i, **__: torch.tensor(noise[i]))
            x = scheduler.step(0.1 * x, t, x, **arguments).prev_sample
    found = walk(solver, tenth_of_x, START, noise)
    np.testing.assert_allclose(found, x.numpy(), rtol=2e-5, atol=1e-5)


def test_ddim_from_noise_alone_is_diffusers():
    torch = pytest.importorskip("torch")
    process = gaussian.discrete(zero_terminal_snr=True)
    solver = solvers.build(process, sampler="ddim", steps=10, spacing="trailing")
    scheduler = pytest.importorskip("diffusers").DDIMScheduler(
        clip_sample=False,
        prediction_type="sample",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(10)
    x = torch.tensor(START)
    for t in scheduler.timesteps:
        denoised = torch.tensor(bent(x.numpy(), process.level(float(t))))
        x = scheduler.step(denoised, t, x).prev_sample
    np.testing.assert_allclose(walk(solver, bent, START), x.numpy(), rtol=1e-4, atol=1e-5)
