"""Scheduler configs of diffusers in our words, and back."""

import pytest

from aigc_jax.formats import schedulers

ENDS = {"beta_min": 1e-4, "beta_max": 0.02}
SAMPLING = {"variance": "fixed_small", "clip": True}


@pytest.mark.parametrize("schedule", schedulers.SCHEDULES)
@pytest.mark.parametrize("prediction", schedulers.PREDICTIONS)
def test_ours_come_back_from_their_words(schedule, prediction):
    ours = {"timesteps": 20, "schedule": schedule, "prediction": prediction} | ENDS
    written = schedulers.config_of(**ours, **SAMPLING, spacing="trailing")
    assert schedulers.process_of(written) == ours
    assert written["timestep_spacing"] == "trailing"
    assert (written["variance_type"], written["clip_sample"]) == ("fixed_small", True)


def test_diffusers_keeps_its_own_spacing_where_it_lacks_ours():
    ours = {"timesteps": 20, "schedule": "cosine", "prediction": "v"} | ENDS
    assert "timestep_spacing" not in schedulers.config_of(**ours, **SAMPLING, spacing="quadratic")


def test_what_a_config_leaves_out_is_as_diffusers_has_it():
    linear = {"timesteps": 1000, "schedule": "linear", "prediction": "eps"} | ENDS
    assert schedulers.process_of({"_class_name": "DDPMScheduler"}) == linear
    assert schedulers.process_of({}) == {}  # no file says nothing


def test_a_word_that_is_not_ours_stays_theirs():
    found = schedulers.process_of({"beta_schedule": "sigmoid", "prediction_type": "flow"})
    assert (found["schedule"], found["prediction"]) == ("sigmoid", "flow")


def test_its_defaults_are_those_of_diffusers():
    pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    theirs = schedulers.process_of(dict(diffusers.DDPMScheduler().config))
    assert theirs == schedulers.process_of({"_class_name": "DDPMScheduler"})
