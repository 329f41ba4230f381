"""A class-conditional VAE of MNIST (Sohn et al. 2015): the label enters encoder and decoder.

    python launch.py --config=configs/cvae_mnist.py
    python launch.py --mode=sample --workdir=runs/cvae_mnist --labels=3,7

784-500-20 with dynamic binarisation, 20 epochs. Nothing is published under one protocol;
docs/results.md has what we measured.
"""

from ml_collections import ConfigDict

from configs.bases import vae
from configs.bases.base import finish

VARIANTS = {
    "conv": {"network": {"name": "conv", "latent": 20, "widths": (32, 64)}},
    "mixture": {"sampling.prior": "mixture"},
    "smoke": vae.SMOKE,
}


def get_config(variant: str = "") -> ConfigDict:
    """The config, or variants of it joined by "+"."""
    config = vae.vae()
    config.data.name = "mnist"
    config.vae.update({"binarise": "dynamic", "conditional": True})
    config.train.steps = 9380
    config.optimizer.schedule = "cosine"
    config.log.update({"eval_every": 938, "sample_every": 938})
    config.evaluation.update({"network": "lenet", "count": 10_000})
    return finish(config, VARIANTS, variant)
