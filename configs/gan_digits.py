"""A GAN of the embedded 8x8 digits: the first run of the family, minutes on two CPU cores.

    python launch.py --config=configs/gan_digits.py

Fully connected; the relativistic loss with R1 and R2, which covers the classes. Nothing is
published on this data; docs/results.md has what we measured.
"""

from ml_collections import ConfigDict

from configs.bases import gan
from configs.bases.base import SMOKE, finish

VARIANTS = {
    "non_saturating": {"gan.loss": "non_saturating", "gan.penalty.name": "none"},
    "smoke": SMOKE
    | {
        "network.generator.hidden": (16,),
        "network.discriminator.hidden": (16,),
        "checkpoint.best": "",
    },
}


def get_config(variant: str = "") -> ConfigDict:
    """The config, or variants of it joined by "+"."""
    config = gan.gan()
    config.data.name = "digits"
    config.network = ConfigDict(
        {
            "generator": {"name": "mlp", "latent": 32, "hidden": (256, 256), "output": "tanh"},
            "discriminator": {"name": "mlp", "hidden": (256, 256), "conditioning": "none"},
        }
    )
    config.gan.loss = "relativistic"
    config.gan.penalty.update({"name": "r1_r2", "weight": 1.0})
    config.train.update({"batch_size": 64, "steps": 15_000})
    config.optimizer.update({"learning_rate": 1e-3, "b1": 0.0, "b2": 0.99, "schedule": "cosine"})
    config.log.update({"eval_every": 3000, "sample_every": 3000})
    config.checkpoint.every = 3000
    config.evaluation.update({"network": "digits", "count": 500, "at_end": True})
    config.evaluation.scheduled_count = 500
    config.checkpoint.best = "eval/fd_digits"
    return finish(config, VARIANTS, variant)
