"""DDPM on CIFAR-10, every number as published (Ho, Jain & Abbeel 2020, arXiv:2006.11239).

    python launch.py --config=configs/ddpm_cifar.py          # downloads and prepares CIFAR-10
    python launch.py --config=configs/ddpm_cifar.py:bf16     # bfloat16 activations
    python launch.py --config=configs/ddpm_cifar.py:cosine+v --config.network.width=64
    python launch.py --config=configs/ddpm_cifar.py:budget+bf16   # 25 minutes of one big GPU

Published: FID 3.17 and IS 9.46 (50,000 samples, 1,000 ancestral steps, training set as reference)
after 800,000 steps of 128 images, from hojonathanho/diffusion:scripts/run_cifar.py; the paper used
a TPU v3-8. In bfloat16 another implementation took 11 hours on one RTX 5090 (its README,
Euswbnix/DDPM-Diffusion-Model); ours takes 60.6 ms a step of 512 images on one H200.
"""

from ml_collections import ConfigDict

from configs.bases import diffusion
from configs.bases.base import finish

VARIANTS = diffusion.VARIANTS | {
    "budget": diffusion.BUDGET | {"sampling.sampler": "dpmpp_2m", "sampling.steps": 25},
    "smoke": diffusion.SMOKE,
}


def get_config(variant: str = "") -> ConfigDict:
    """The config, or variants of it joined by "+"."""
    config = diffusion.ddpm()  # its numbers are this experiment's
    config.data.name = "cifar10"
    config.augment.flip = True
    config.evaluation.examples = 2048
    config.published = (
        ("fid", 3.17, "Ho et al. 2020, table 1 (against the training set)"),
        ("inception_score", 9.46, "Ho et al. 2020, table 1"),
        ("bits_per_dim", 3.75, "Ho et al. 2020, table 1, upper bound (test set)"),
    )
    return finish(config, VARIANTS, variant)
