"""DDPM on the embedded digits: a first run, minutes on two CPU cores, nothing downloaded.

    python launch.py --config=configs/ddpm_digits.py

scikit-learn's 1,797 handwritten digits, 8x8. Not published anywhere: it is here to be seen working.
"""

from ml_collections import ConfigDict

from configs.bases import diffusion
from configs.bases.base import finish, test_metric

VARIANTS = diffusion.VARIANTS | {
    "smoke": diffusion.SMOKE
    | {
        "evaluation.at_end": True,
        # As many everywhere: batches of one size, compiled once.
        "evaluation.count": 40,
        "evaluation.scheduled_count": 40,
        "log.samples": 40,
    },
}


def get_config(variant: str = "") -> ConfigDict:
    """The config, or variants of it joined by "+"."""
    config = diffusion.ddpm()
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
    config.diffusion.process.schedule = "cosine"
    config.sampling.update({"steps": 60, "variance": "fixed_small"})
    config.train.update({"batch_size": 64, "steps": 3000})
    config.optimizer.update({"learning_rate": 2e-3, "warmup": 100, "schedule": "cosine"})
    config.ema.update({"half_life": 20_000.0, "ramp": 0.1})
    config.log.update({"eval_every": 1500, "sample_every": 1500, "first_sample": 500})
    config.checkpoint.update({"every": 1500, "best": test_metric(config, "loss")})
    config.evaluation.update(
        {"network": "digits", "count": 500, "scheduled_count": 200, "at_end": True}
    )
    config.evaluation.likelihood_count = 64  # the whole bound is a thousand network calls each
    return finish(config, VARIANTS, variant)
