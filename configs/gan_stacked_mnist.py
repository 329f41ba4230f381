"""Stacked MNIST: three digits as the channels of one image, a thousand modes to cover.

    python launch.py --config=configs/gan_stacked_mnist.py
    python launch.py --config=configs/gan_stacked_mnist.py:non_saturating

Metz et al. 2017 (arXiv:1611.02163). Published, modes found of 1,000 and reverse KL in nats: DCGAN
99.0 and 3.40, VEEGAN 150 and 2.95, PacDCGAN2 1,000 and 0.06 (Lin et al. 2018, arXiv:1712.04086,
table 2, 26,000 samples); R3GAN 1,000. Here DCGAN's networks, the discriminator without batch norm,
and R3GAN's loss, in the classes of our LeNet.
"""

from ml_collections import ConfigDict

from configs.bases import gan
from configs.bases.base import finish

VARIANTS = {
    "non_saturating": {
        "gan.loss": "non_saturating",
        "gan.penalty.name": "none",
        "network.discriminator.norm": "batch",
    },
    "small": {
        "network.generator.width": 16,
        "network.discriminator.width": 16,
        "train.batch_size": 64,
        "train.steps": 3000,
        "log.eval_every": 1000,
        "log.sample_every": 1000,
    },
    "smoke": gan.SMOKE,
}


def get_config(variant: str = "") -> ConfigDict:
    """The config, or variants of it joined by "+"."""
    config = gan.gan()
    config.data.name = "stacked_mnist"
    config.network.discriminator.norm = "none"
    config.gan.loss = "relativistic"
    config.gan.penalty.update({"name": "r1_r2", "weight": 1.0})
    config.train.update({"batch_size": 128, "steps": 25_000})
    config.log.update({"eval_every": 2500, "sample_every": 2500})
    config.checkpoint.every = 2500
    names = ("examples", "fid", "modes", "diversity")
    config.evaluations = ConfigDict({name: {} for name in names})
    config.evaluation.update({"network": "stacked_lenet", "count": 26_000, "examples": 1024})
    config.evaluation.reference_split = "train[:26000]"
    config.published = (("modes_stacked_lenet", 1000.0, "PacDCGAN2, Lin et al. 2018, table 2"),)
    return finish(config, VARIANTS, variant)
