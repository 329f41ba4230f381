"""EDM on CIFAR-10, every number as published (Karras et al. 2022, arXiv:2206.00364, DDPM++).

    python launch.py --config=configs/edm_cifar.py
    python launch.py --config=configs/edm_cifar.py:conditional
    python launch.py --config=configs/edm_cifar.py:short        # 50 million images, a rate for them

Published: FID 1.97 without labels and 1.79 with them, 35 network calls (18 steps of Heun's method),
the least of three sets of 50,000; others who trained it report 2.01 to 2.08. 200 million images,
two days of eight V100s. For short runs its rate of 1e-3 and ramp of 10 million images are poor:
5.76 after 50 million, where rates of 1e-4 to 2e-4 give 2.2 to 2.6 (sail-sg/FDM, FutureXiang/
Diffusion). Not trained to the end here.
"""

from ml_collections import ConfigDict

from configs.bases import diffusion
from configs.bases.base import finish

BATCH = 512
VARIANTS = diffusion.SHARED | {
    "conditional": {"diffusion.conditional": True, "diffusion.label_dropout": 0.0},
    "short": {
        "train.steps": 50_000_000 // BATCH,
        "optimizer.learning_rate": 2e-4,
        "optimizer.warmup": 1_000_000 // BATCH,
    },
    "smoke": diffusion.SMOKE_CONTINUOUS,
}


def get_config(variant: str = "") -> ConfigDict:
    """The config, or variants of it joined by "+"."""
    config = diffusion.edm()
    diffusion.edm_unet(config)
    config.data.name = "cifar10"
    config.network.augment_dim = 9
    config.diffusion.augment = 0.12  # mirrors too: augment.flip stays off
    config.train.update({"batch_size": BATCH, "steps": 200_000_000 // BATCH})
    config.optimizer.update({"learning_rate": 1e-3, "warmup": 10_000_000 // BATCH, "clip": 0.0})
    config.ema.update({"half_life": 500_000.0, "ramp": 0.05})
    config.evaluation.examples = 2048
    labelled = "conditional" in variant.split("+")
    published = ("fid", 1.79 if labelled else 1.97, "Karras et al. 2022, table 2, DDPM++ (VP)")
    config.published = (published,)
    return finish(config, VARIANTS, variant)
