"""A GAN of MNIST: DCGAN at 28x28, or fully connected.

    python launch.py --config=configs/gan_mnist.py
    python launch.py --config=configs/gan_mnist.py:mlp         # the first GANs' networks
    python launch.py --config=configs/gan_mnist.py:relativistic+falling   # the best digits

Radford et al. 2016 (arXiv:1511.06434) at half their width; the other losses are variants. Nothing
is published in the features of our LeNet; docs/results.md has what we measured.
"""

from ml_collections import ConfigDict

from configs import common

VARIANTS = common.GAN_LOSSES | {
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
    # With "relativistic": R3GAN's optimizer and less of its penalties (arXiv:2501.05441).
    "falling": {
        "gan.penalty_weight": 0.1,
        "optimizer.learning_rate": 5e-4,
        "optimizer.learning_rate_end": 5e-5,
        "optimizer.schedule": "cosine",
        "optimizer.b1": 0.0,
        "optimizer.b2": 0.99,
    },
    "smoke": common.GAN_SMOKE,
}


def get_config(variant: str = "") -> ConfigDict:
    """The config, or variants of it joined by "+"."""
    config = common.gan()
    config.data.name = "mnist"
    config.network.generator.width = 32
    config.network.discriminator.width = 32
    config.train.update({"batch_size": 64, "steps": 18_760})  # 20 epochs
    config.log.update({"eval_every": 1876, "sample_every": 1876})
    config.evaluation.update({"network": "lenet", "count": 10_000, "examples": 1024})
    return common.finish(config, VARIANTS, variant)
