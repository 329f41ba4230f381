"""Scheduler configs of diffusers in our words, and back."""

import numpy as np
import pytest

from aigc_jax.formats import schedulers

ENDS = {"name": "discrete", "beta_min": 1e-4, "beta_max": 0.02, "zero_terminal_snr": False}
SAMPLING = {"variance": "fixed_small", "clip": True}


@pytest.mark.parametrize("schedule", schedulers.SCHEDULES)
@pytest.mark.parametrize("prediction", schedulers.PREDICTIONS)
def test_ours_come_back_from_their_words(schedule, prediction):
    process = {"timesteps": 20, "schedule": schedule} | ENDS
    ours = {"process": process, "prediction": prediction}
    written = schedulers.config_of(**ours, **SAMPLING)
    assert schedulers.process_of(written) == ours
    assert (written["variance_type"], written["clip_sample"]) == ("fixed_small", True)


def test_steps_that_do_not_divide_t_leave_the_samples_of_a_written_scheduler_their_width():
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    process = {"timesteps": 1000, "schedule": "linear"} | ENDS
    written = schedulers.config_of(process=process, prediction="eps", **SAMPLING | {"clip": False})
    scheduler = diffusers.DDIMScheduler.from_config(written)
    scheduler.set_timesteps(400)
    x = torch.ones((1, 1), dtype=torch.float64)  # each step is linear: a factor on the width
    for t in scheduler.timesteps:
        alpha_bar = scheduler.alphas_cumprod[t].double()
        x0 = 0.25 * alpha_bar.sqrt() * x / (alpha_bar * 0.25 + 1 - alpha_bar)
        eps = (x - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt()
        x = scheduler.step(eps, t, x).prev_sample
    np.testing.assert_allclose(x.item(), 0.5, rtol=0.02)


@pytest.mark.parametrize(
    ("process", "prediction", "variance"),
    [
        ({"name": "edm"}, "eps", "fixed_small"),
        (ENDS, "velocity", "fixed_small"),
        (ENDS, "v", "learned"),
    ],
)
def test_what_ddpm_scheduler_does_not_have_is_told(process, prediction, variance):
    with pytest.raises(ValueError, match=r"diffusers' pipeline has no diffusion.process"):
        schedulers.config_of(process=process, prediction=prediction, variance=variance, clip=True)


def test_what_a_config_leaves_out_is_as_diffusers_has_it():
    process = {"timesteps": 1000, "schedule": "linear"} | ENDS
    linear = {"process": process, "prediction": "eps"}
    assert schedulers.process_of({"_class_name": "DDPMScheduler"}) == linear
    assert schedulers.process_of({}) == {}  # no file says nothing


def test_a_word_that_is_not_ours_stays_theirs():
    found = schedulers.process_of({"beta_schedule": "sigmoid", "prediction_type": "flow"})
    assert (found["process"]["schedule"], found["prediction"]) == ("sigmoid", "flow")


def test_its_defaults_are_those_of_diffusers():
    pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    theirs = schedulers.process_of(dict(diffusers.DDPMScheduler().config))
    assert theirs == schedulers.process_of({"_class_name": "DDPMScheduler"})
