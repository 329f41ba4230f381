"""WGAN-GP on CIFAR-10 (Gulrajani et al. 2017, arXiv:1704.00028).

    python launch.py --config=configs/wgan_gp_cifar.py        # downloads and prepares CIFAR-10
    python launch.py --config=configs/wgan_gp_cifar.py:small  # a look at it on two CPU cores

The ResNet of the paper's appendix F without its labels; five critics a step, lambda 10, the rate
falling to 0 over 100,000 steps (igul222/improved_wgan_training:gan_cifar_resnet.py). Published: FID
22.29 (kwotsin/mimicry, 50,000 samples against 50,000 images), 29.3 and 26.08 (TTUR, as reported
and there). Not trained by us to the end.
"""

from ml_collections import ConfigDict

from configs.bases import gan
from configs.bases.base import finish

VARIANTS = {
    "small": {
        "network.generator.width": 32,
        "network.discriminator.width": 32,
        "train.steps": 2000,
        "log.eval_every": 500,
        "log.sample_every": 500,
        "checkpoint.every": 500,
        "evaluation.examples": 512,
    },
    "smoke": gan.SMOKE | {"gan.critics": 2},
}


def get_config(variant: str = "") -> ConfigDict:
    """The config, or variants of it joined by "+"."""
    config = gan.gan()
    config.data.name = "cifar10"
    config.augment.flip = True
    config.network = ConfigDict(
        {
            "generator": {"name": "resnet", "latent": 128, "width": 128},
            "discriminator": {
                "name": "resnet",
                "width": 128,
                "norm": "none",
                "pool": "mean",
                "attention": False,
                "conditioning": "none",
            },
        }
    )
    config.gan.update({"critics": 5, "generator_batch": 2, "loss": "wasserstein"})
    config.gan.penalty.name = "gradient_penalty"
    config.train.update({"batch_size": 64, "steps": 100_000})
    config.optimizer.update({"b1": 0.0, "b2": 0.9, "schedule": "linear"})
    config.log.update({"eval_every": 5000, "sample_every": 5000})
    config.checkpoint.every = 5000
    config.evaluation.examples = 2048
    config.published = (("fid", 22.29, "kwotsin/mimicry README, 50k samples, train set"),)
    return finish(config, VARIANTS, variant)
