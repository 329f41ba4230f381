"""Scheduler configs of diffusers in our words, and back.

The keys are those of its DDPMScheduler and DDIMScheduler (huggingface.co/docs/diffusers, release
0.42).
"""

from collections.abc import Mapping
from typing import Any

# Their words for ours.
SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


def process_of(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """What a scheduler_config.json says of the diffusion that a network was trained for.

    Returns:
      {"timesteps", "schedule", "prediction", "beta_min", "beta_max"}, as in `config.diffusion`,
      with DDPMScheduler's values where the file is silent; a word that is not ours stays theirs. {}
      for no scheduler, which says nothing.
    """
    if not scheduler:
        return {}
    schedule = scheduler.get("beta_schedule", "linear")
    prediction = scheduler.get("prediction_type", "epsilon")
    return {
        "timesteps": scheduler.get("num_train_timesteps", 1000),
        "schedule": _inverse(SCHEDULES).get(schedule, schedule),
        "prediction": _inverse(PREDICTIONS).get(prediction, prediction),
        "beta_min": scheduler.get("beta_start", 1e-4),
        "beta_max": scheduler.get("beta_end", 0.02),
    }


def config_of(
    *,
    timesteps: int,
    schedule: str,
    prediction: str,
    beta_min: float,
    beta_max: float,
    variance: str,
    clip: bool,
    spacing: str,
) -> dict[str, Any]:
    """The arguments of DDPMScheduler for a diffusion, in the words of our configs.

    Args:
      timesteps, schedule, prediction, beta_min, beta_max: as in `config.diffusion`.
      variance, clip, spacing: as in `config.sampling`. diffusers has no "quadratic" spacing: it
        then keeps its own.
    """
    found = {
        "num_train_timesteps": timesteps,
        "beta_start": beta_min,
        "beta_end": beta_max,
        "beta_schedule": SCHEDULES[schedule],
        "prediction_type": PREDICTIONS[prediction],
        "variance_type": variance,
        "clip_sample": clip,
    }
    if spacing != "quadratic":
        found["timestep_spacing"] = spacing
    return found


def _inverse(words: Mapping[str, str]) -> dict[str, str]:
    return {theirs: ours for ours, theirs in words.items()}
