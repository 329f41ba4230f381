"""MeanFlow on the embedded digits: samples in one network call, minutes on a CPU core.

    python launch.py --config=configs/meanflow_digits.py

Like ddpm_digits, whose samples take 60 calls: nothing downloaded, not published anywhere.
"""

from ml_collections import ConfigDict

from configs.bases import diffusion
from configs.bases.base import finish

VARIANTS = {
    "published": {"diffusion.tangent": "conditional"},
    "conditional": {"diffusion.conditional": True},
    "smoke": diffusion.SMALL,
}


def get_config(variant: str = "") -> ConfigDict:
    """The config, or variants of it joined by "+"."""
    config = diffusion.meanflow()
    config.data.name = "digits"
    config.network.update(
        {
            "width": 24,
            "multipliers": (1, 2),
            "blocks": 1,
            "attention": (4,),
            "groups": 8,
            "dropout": 0.0,
        }
    )
    times = {"name": "logit_normal", "mean": -0.4, "std": 1.0, "shift": 1.0}
    config.diffusion.update(
        {"times": times, "end_times": times, "ratio": 0.5, "tangent": "predicted", "norm_p": 1.0}
    )
    config.train.update({"batch_size": 64, "steps": 6000})
    config.optimizer.update({"learning_rate": 2e-3, "warmup": 100, "schedule": "cosine"})
    config.ema.update({"half_life": 20_000.0, "ramp": 0.1})
    config.log.update({"eval_every": 1500, "sample_every": 1500, "first_sample": 500})
    config.checkpoint.every = 1500
    config.evaluation.update(
        {"network": "digits", "count": 500, "scheduled_count": 200, "at_end": True}
    )
    return finish(config, VARIANTS, variant)
