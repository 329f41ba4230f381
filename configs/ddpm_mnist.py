"""DDPM on MNIST, 28x28: 45 minutes on two CPU cores for digits that a person reads.

    python launch.py --config=configs/ddpm_mnist.py --config.data.data_dir=DIR
    python launch.py --config=configs/ddpm_mnist.py:conditional

MNIST has no published DDPM score under one protocol; docs/results.md has what we measured.
"""

from ml_collections import ConfigDict

from configs.bases import diffusion
from configs.bases.base import finish, test_metric

VARIANTS = diffusion.VARIANTS | {"smoke": diffusion.SMOKE}


def get_config(variant: str = "") -> ConfigDict:
    """The config, or variants of it joined by "+"."""
    config = diffusion.ddpm()
    config.data.name = "mnist"
    # 28 halves twice: 28, 14, 7.
    config.network.update(
        {"width": 24, "multipliers": (1, 2, 2), "blocks": 1, "attention": (7,), "groups": 8}
    )
    config.network.dropout = 0.0
    config.diffusion.process.schedule = "cosine"
    config.sampling.update({"steps": 100, "variance": "fixed_small"})
    config.train.update({"batch_size": 64, "steps": 4000})
    config.optimizer.update({"learning_rate": 1e-3, "warmup": 100, "schedule": "cosine"})
    config.ema.update({"half_life": 20_000.0, "ramp": 0.1})
    config.log.update({"eval_every": 1000, "sample_every": 500})
    config.checkpoint.update({"every": 250, "best": test_metric(config, "loss")})
    config.evaluation.update({"network": "lenet", "count": 10_000, "examples": 2000})
    config.evaluation.likelihood_count = 256  # a thousand network calls each
    return finish(config, VARIANTS, variant)
