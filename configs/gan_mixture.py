"""Mixtures in the plane, where what a GAN misses can be counted: 8 modes on a ring, 25 on a grid.

    python launch.py --config=configs/gan_mixture.py                      # ring, relativistic
    python launch.py --config=configs/gan_mixture.py:grid+non_saturating
    PYTHONPATH=. python benchmarks/mixture_losses.py                      # all losses, as a table

Ring and grid of PacGAN (Lin et al. 2018, arXiv:1712.04086), which publishes 6.3 of 8 modes and a
reverse KL of 0.45 on the ring, 17.3 of 25 and 0.70 on the grid for a plain GAN of other networks.
Three layers of 128, 10,000 steps of 256 points: seconds to a minute. docs/results.md has ours.
"""

from ml_collections import ConfigDict

from configs.bases import gan
from configs.bases.base import SMOKE, finish

VARIANTS = {
    "grid": {"data.name": "grid"},
    "minimax": {"gan.loss": "minimax", "gan.penalty.name": "none"},
    "non_saturating": {"gan.loss": "non_saturating", "gan.penalty.name": "none"},
    "lsgan": {"gan.loss": "least_squares", "gan.penalty.name": "none"},
    "hinge": {"gan.loss": "hinge", "gan.penalty.name": "none"},
    "wgan_gp": {
        "gan.loss": "wasserstein",
        "gan.penalty.name": "gradient_penalty",
        "gan.critics": 5,
    },
    "r1": {"gan.loss": "non_saturating", "gan.penalty.name": "r1"},
    "dragan": {"gan.loss": "non_saturating", "gan.penalty.name": "dragan"},
    "smoke": SMOKE | {"network.generator.hidden": (16,), "network.discriminator.hidden": (16,)},
}


def get_config(variant: str = "") -> ConfigDict:
    """The config, or variants of it joined by "+"."""
    config = gan.gan()
    config.data.name = "ring"
    config.network = ConfigDict(
        {
            "generator": {
                "name": "mlp",
                "latent": 2,
                "hidden": (128, 128, 128),
                "activation": "leaky_relu",  # with relu the losses differ less
                "output": "linear",
            },
            "discriminator": {"name": "mlp", "hidden": (128, 128, 128), "conditioning": "none"},
        }
    )
    config.gan.loss = "relativistic"
    config.gan.penalty.update({"name": "r1_r2", "weight": 0.1})
    config.train.update({"batch_size": 256, "steps": 10_000})
    config.optimizer.update({"learning_rate": 1e-3, "b1": 0.0, "b2": 0.9, "schedule": "cosine"})
    config.log.update({"every": 500, "eval_every": 2500, "sample_every": 2500, "samples": 2000})
    config.checkpoint.every = 5000
    config.evaluations = ConfigDict({"examples": {}, "mixture": {}})
    config.evaluation.update({"count": 20_000, "scheduled_count": 5000, "at_end": True})
    return finish(config, VARIANTS, variant)
