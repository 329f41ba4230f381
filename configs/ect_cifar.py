"""Consistency tuning on CIFAR-10: two steps from the weights of an EDM model.

    python launch.py --config=configs/ect_cifar.py --config.init_from=RUN       # of EDM, see below
    python launch.py --config=configs/ect_cifar.py:continuous --config.init_from=RUN

Published: FID 4.54 in one step and 2.20 in two after 100,000 steps of 128 images, 2.73 in two
after 8,000, an hour on one A100 (Geng et al. 2024, arXiv:2406.14548, and locuslab/ect:README.md,
training/loss.py and run_ecm_1hour.sh). RUN is a run of configs/edm_cifar.py. "continuous" has
the numbers of Lu & Song 2024 (arXiv:2410.11081, appendix G), who publish 2.85 and 2.06 for training
without such weights.
"""

from ml_collections import ConfigDict

from configs.bases import diffusion
from configs.bases.base import finish, half_life

VARIANTS = {
    "one_step": {"sampling.steps": 1},
    "hour": {"train.steps": 8000},
    "continuous": {
        "diffusion.consistency": {"name": "continuous", "warmup": 10_000, "norm": 0.1},
        "diffusion.times": {"name": "log_normal", "mean": -1.0, "std": 1.4},
    },
    "conditional": {"diffusion.conditional": True},
    "smoke": diffusion.SMOKE_CONTINUOUS | {"sampling.steps": 2},
}


def get_config(variant: str = "") -> ConfigDict:
    """The config, or variants of it joined by "+"."""
    config = diffusion.consistency()  # its numbers are this experiment's
    config.data.name = "cifar10"
    diffusion.edm_unet(config)
    config.network.update({"dropout": 0.2, "augment_dim": 9})  # as RUN's: it is told zeros
    config.train.update({"batch_size": 128, "steps": 100_000})
    config.optimizer.update({"name": "radam", "learning_rate": 1e-4, "warmup": 0, "clip": 0.0})
    config.ema.half_life = half_life(0.9993, 128)
    config.evaluation.examples = 2048
    config.published = (("fid", 2.20, "Geng et al. 2024, two steps, 100,000 iterations"),)
    return finish(config, VARIANTS, variant)
