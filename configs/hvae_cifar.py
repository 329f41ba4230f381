"""The very deep VAE on CIFAR-10, every number as published (Child 2020, arXiv:2011.10650).

    python launch.py --config=configs/hvae_cifar.py          # downloads and prepares CIFAR-10
    python launch.py --config=configs/hvae_cifar.py:small    # minutes on two CPU cores
    python launch.py --config=configs/hvae_cifar.py --config.train.precision=bfloat16

Published: 2.87 bits/dim of the test set, the mean of four runs (2.842 to 2.898), with 39 million
parameters in under a week on two GPUs (openai/vdvae:README.md, hps.py). That code stops nowhere in
particular: the million steps here are our choice. Not trained by us yet;
docs/results.md has "small".
"""

from ml_collections import ConfigDict

from configs.bases import base, vae
from configs.bases.base import finish, half_life, test_metric

DIMS = 32 * 32 * 3

VARIANTS = {
    "small": {
        "network.width": 32,
        "network.latent": 4,
        "network.encoder": "32x1,32d2,16x1,16d2,8x1,8d2,4x1,4d4,1x1",
        "network.decoder": "1x1,4m1,4x1,8m4,8x1,16m8,16x1,32m16",
        "optimizer.learning_rate": 1e-3,
        "train.steps": 2000,
        "log.eval_every": 500,
        "log.sample_every": 500,
        "checkpoint.every": 500,
        "evaluation.examples": 1024,
        "evaluation.count": 1000,
        "ema.half_life": 6400.0,
    },
    "beta_warmup": {"vae.kl.weight": "linear", "vae.kl.steps": 10_000},
    "cool": {"sampling.temperature": 0.8},
    "smoke": base.SMOKE
    | {
        "network.latent": 4,
        "network.width": 8,
        "network.encoder": "32d4,8d8,1x1",
        "network.decoder": "1x1,8m1,32m8",
        "optimizer.warmup": 2,
    },
}


def get_config(variant: str = "") -> ConfigDict:
    """The config, or variants of it joined by "+"."""
    config = vae.hierarchical_vae()
    config.data.name = "cifar10"
    config.train.update({"batch_size": 32, "steps": 1_000_000})
    config.optimizer.update(
        {
            "name": "adamw",
            "learning_rate": 2e-4,
            "warmup": 100,
            "b1": 0.9,
            "b2": 0.9,
            "weight_decay": 0.01,
            # The published loss is per dimension, ours of the image: so are gradients, and Adam's.
            "clip": 200.0 * DIMS,
            "eps": 1e-8 * DIMS,
        }
    )
    config.optimizer.skip_above = 400.0 * DIMS
    config.ema.update({"half_life": half_life(0.9999, 32), "ramp": 0.0})
    config.log.update({"eval_every": 10_000, "sample_every": 10_000})
    config.checkpoint.update({"every": 5000, "best": test_metric(config, "neg_elbo")})
    config.evaluation.examples = 2048
    config.published = (("bits_per_dim", 2.87, "openai/vdvae README, mean of four runs, test set"),)
    return finish(config, VARIANTS, variant)
