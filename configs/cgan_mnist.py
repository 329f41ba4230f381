"""A conditional GAN of MNIST: it draws the digit that it is asked for.

    python launch.py --config=configs/cgan_mnist.py              # projection discriminator
    python launch.py --config=configs/cgan_mnist.py:concat       # labels as maps beside the image
    python launch.py --config=configs/cgan_mnist.py:classifier   # AC-GAN
    python launch.py --mode=sample --workdir=runs/cgan_mnist --labels=3,7

The DCGAN of gan_mnist with the label as a one-hot vector beside z; the discriminator is Miyato &
Koyama's (arXiv:1802.05637), Radford et al.'s or Odena et al.'s (arXiv:1610.09585). Nothing is
published in the features of our LeNet; docs/results.md has what we measured.
"""

from ml_collections import ConfigDict

from configs.bases import gan
from configs.bases.base import finish

VARIANTS = {
    "concat": {"network.discriminator.conditioning": "concat"},
    "classifier": {"network.discriminator.conditioning": "classifier"},
    "smoke": gan.SMOKE,
}


def get_config(variant: str = "") -> ConfigDict:
    """The config, or variants of it joined by "+"."""
    config = gan.gan()
    config.data.name = "mnist"
    config.network.generator.width = 32
    config.network.discriminator.update({"width": 32, "conditioning": "projection"})
    config.train.update({"batch_size": 64, "steps": 4690})  # 5 epochs
    config.log.update({"eval_every": 938, "sample_every": 938})
    config.evaluation.update({"network": "lenet", "count": 10_000, "examples": 1024})
    return finish(config, VARIANTS, variant)
