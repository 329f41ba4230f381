"""MeanFlow on CIFAR-10 in one network call (Geng et al. 2025, arXiv:2505.13447, appendix A).

    python launch.py --config=configs/meanflow_cifar.py            # downloads and prepares CIFAR-10
    python launch.py --config=configs/meanflow_cifar.py:improved   # Improved Mean Flows' tangent

Published: FID 2.92 in one step (50,000 samples, training set as reference) after 800,000 steps of
1,024 images; Gsunshine/py-meanflow:README.md has 2.80, 47 hours on eight H200. The paper's network
is the U-Net of Song et al. 2021 with EDM's augmentation; here images are
flipped only.
"""

from ml_collections import ConfigDict

from configs.bases import diffusion
from configs.bases.base import finish, half_life

VARIANTS = {
    "improved": {"diffusion.tangent": "predicted"},
    "conditional": {"diffusion.conditional": True},
    "smoke": diffusion.SMOKE_CONTINUOUS | {"sampling.steps": 1},
}


def get_config(variant: str = "") -> ConfigDict:
    """The config, or variants of it joined by "+"."""
    config = diffusion.meanflow()  # its numbers are this experiment's
    config.data.name = "cifar10"
    config.augment.flip = True
    diffusion.edm_unet(config)
    config.network.update({"dropout": 0.2, "second_time": True})
    config.train.update({"batch_size": 1024, "steps": 800_000})
    config.optimizer.update({"learning_rate": 6e-4, "warmup": 10_000})
    config.ema.half_life = half_life(0.99995, 1024)
    config.evaluation.examples = 2048
    config.published = (("fid", 2.92, "Geng et al. 2025, table 3, one step, unconditional"),)
    return finish(config, VARIANTS, variant)
