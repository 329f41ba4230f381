"""SNGAN on CIFAR-10 (Miyato et al. 2018, arXiv:1802.05957), and its projection discriminator.

    python launch.py --config=configs/sngan_cifar.py             # downloads and prepares CIFAR-10
    python launch.py --config=configs/sngan_cifar.py:projection  # Miyato & Koyama 2018
    python launch.py --config=configs/sngan_cifar.py:small       # a look at it on two CPU cores

The hinge loss, five updates of the discriminator a step, 50,000 steps, the rate falling to 0
(pfnet-research/sngan_projection:configs/sn_cifar10_unconditional.yml). Published: FID 21.7 in the
paper (10,000 real, 5,000 generated images), 16.77 at 50,000 of each (kwotsin/mimicry); with
projection 17.5 and 10.84. Protocols move this number by more than most methods do. Not trained by
us to the end.
"""

from ml_collections import ConfigDict

from configs import wgan_gp_cifar
from configs.bases.base import finish

VARIANTS = wgan_gp_cifar.VARIANTS | {
    "projection": {"network.discriminator.conditioning": "projection"},
    "attention": {"network.discriminator.attention": True},
}


def get_config(variant: str = "") -> ConfigDict:
    """The config, or variants of it joined by "+"."""
    config = wgan_gp_cifar.get_config().unlock()  # the ResNet of the two papers, and Adam
    config.network.generator.width = 256
    config.network.discriminator.update({"norm": "spectral", "pool": "sum"})
    config.gan.loss, config.gan.penalty.name = "hinge", "none"
    config.train.steps = 50_000
    config.published = (
        ("fid", 16.77, "kwotsin/mimicry README, 50k samples, train set"),
        ("inception_score", 7.97, "kwotsin/mimicry README"),
    )
    return finish(config, VARIANTS, variant)
