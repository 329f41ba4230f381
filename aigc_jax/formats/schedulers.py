"""Scheduler configs of diffusers in our words, and back.

The keys are those of its DDPMScheduler and DDIMScheduler (huggingface.co/docs/diffusers, release
0.42).
"""

from collections.abc import Mapping
from typing import Any

from aigc_jax.errors import SettingError

# Their words for ours.
SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


def process_of(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """What a scheduler_config.json says of the diffusion that a network was trained for.

    Returns:
      {"process", "prediction"}, as in `config.diffusion`, with DDPMScheduler's values where the
      file is silent; a word that is not ours stays theirs. {} for no scheduler.
    """
    if not scheduler:
        return {}
    schedule = scheduler.get("beta_schedule", "linear")
    prediction = scheduler.get("prediction_type", "epsilon")
    process = {
        "name": "discrete",
        "timesteps": scheduler.get("num_train_timesteps", 1000),
        "schedule": _inverse(SCHEDULES).get(schedule, schedule),
        "beta_min": scheduler.get("beta_start", 1e-4),
        "beta_max": scheduler.get("beta_end", 0.02),
        "zero_terminal_snr": scheduler.get("rescale_betas_zero_snr", False),
    }
    return {
        "process": process,
        "prediction": _inverse(PREDICTIONS).get(prediction, prediction),
    }


def config_of(
    *, process: Mapping[str, Any], prediction: str, variance: str, clip: bool
) -> dict[str, Any]:
    """The arguments of DDPMScheduler for a diffusion, in the words of our configs.

    Args:
      process, prediction: as in `config.diffusion`; of process "discrete".
      variance, clip: as in `config.sampling`.

    Raises:
      ValueError: a process, prediction or variance that DDPMScheduler does not have.
    """
    if process["name"] != "discrete" or prediction not in PREDICTIONS or variance == "learned":
        raise SettingError(
            f"diffusers' pipeline has no diffusion.process {process['name']!r} with prediction "
            f"{prediction!r} and sampling.variance {variance!r}: it takes process 'discrete', "
            f"predictions {', '.join(PREDICTIONS)} and a fixed variance"
        )
    return {
        "num_train_timesteps": process["timesteps"],
        "beta_start": process["beta_min"],
        "beta_end": process["beta_max"],
        "beta_schedule": SCHEDULES[process["schedule"]],
        "rescale_betas_zero_snr": process.get("zero_terminal_snr", False),
        "prediction_type": PREDICTIONS[prediction],
        "variance_type": variance,
        "clip_sample": clip,
        # Whoever samples the folder chooses the steps, maybe by DDIM: its scheduler steps by T // S
        # whatever the spacing, so that 400 "trailing" or "linspace" steps of 1,000 leave samples
        # 15 % too wide (findings/diffusers_ddim_steps.sh).
        "timestep_spacing": "leading",
    }


def _inverse(words: Mapping[str, str]) -> dict[str, str]:
    return {theirs: ours for ours, theirs in words.items()}
