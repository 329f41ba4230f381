"""A GAN of MNIST: DCGAN's networks at 28x28, or fully connected ones.

    python launch.py --config=configs/gan_mnist.py
    python launch.py --config=configs/gan_mnist.py:mlp         # the first GANs' networks
    python launch.py --config=configs/gan_mnist.py:lsgan       # another loss, as DCGAN trains it
    python launch.py --config=configs/gan_mnist.py:lsgan+mlp   # in this order

Radford et al. 2016 (arXiv:1511.06434) at half their width, by default with R3GAN's loss and
optimizer (Huang et al. 2024, arXiv:2501.05441), which draw better digits than "non_saturating",
DCGAN as published. Nothing is published in the features of our LeNet; docs/results.md has what we
measured.
"""

import functools

from ml_collections import ConfigDict

from configs.bases import gan
from configs.bases.base import finish

# R3GAN's game. A penalty that falls to a tenth, as theirs does, made worse digits (of one seed).
MODERN = {
    "network.discriminator.norm": "none",
    "gan.loss": "relativistic",
    "gan.penalty.name": "r1_r2",
    "gan.penalty.weight": 0.1,
    "optimizer.schedule": "cosine",
    "optimizer.learning_rate": 5e-4,
    "optimizer.learning_rate_end": 5e-5,
    "optimizer.b1": 0.0,
    "optimizer.b2": 0.99,
}
# DCGAN's own in its place, which the other losses start from.
PLAIN = {key: functools.reduce(getattr, key.split("."), gan.gan()) for key in MODERN}
VARIANTS = {
    "non_saturating": PLAIN,
    **{name: PLAIN | changes for name, changes in gan.LOSSES.items()},
    "diffaugment": gan.LOSSES["diffaugment"],  # of whatever loss
    "mlp": {
        "network.generator": {
            "name": "mlp",
            "latent": 100,
            "hidden": (256, 512, 1024),
            "output": "tanh",
        },
        "network.discriminator": {
            "name": "mlp",
            "hidden": (1024, 512, 256),
            "conditioning": "none",
        },
    },
    "smoke": gan.SMOKE,
}


def get_config(variant: str = "") -> ConfigDict:
    """The config, or variants of it joined by "+"."""
    config = gan.gan()
    config.data.name = "mnist"
    config.network.generator.width = config.network.discriminator.width = 32
    config.update_from_flattened_dict(MODERN)
    config.train.update({"batch_size": 64, "steps": 9380})  # 10 epochs
    config.log.update({"eval_every": 1876, "sample_every": 1876})
    config.evaluation.update({"network": "lenet", "count": 10_000, "examples": 1024})
    return finish(config, VARIANTS, variant)
