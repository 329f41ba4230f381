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

from configs import common

VARIANTS = {
    "projection": {"network.discriminator.conditioning": "projection"},
    "attention": {"network.discriminator.attention": True},
    "small": {
        "network.generator.width": 32,
        "network.discriminator.width": 32,
        "train.steps": 2000,
        "log.eval_every": 500,
        "log.sample_every": 500,
        "checkpoint.every": 500,
        "evaluation.examples": 512,
    },
    "bf16": {"network.generator.dtype": "bfloat16", "network.discriminator.dtype": "bfloat16"},
    "fsdp": {"train.sharding": "fsdp"},
    "smoke": common.GAN_SMOKE | {"gan.critics": 2},
}


def get_config(variant: str = "") -> ConfigDict:
    """The config, or variants of it joined by "+"."""
    config = common.gan()
    config.data.name = "cifar10"
    config.augment.flip = True
    config.network = ConfigDict(
        {
            "generator": {"name": "resnet", "latent": 128, "width": 256, "dtype": "float32"},
            "discriminator": {
                "name": "resnet",
                "width": 128,
                "norm": "spectral",
                "pool": "sum",
                "attention": False,
                "conditioning": "none",
                "dtype": "float32",
            },
        }
    )
    config.gan.update({"critics": 5, "generator_batch": 2, "loss": "hinge"})
    config.train.update({"batch_size": 64, "steps": 50_000})
    config.optimizer.update({"b1": 0.0, "b2": 0.9, "schedule": "linear"})
    config.log.update({"eval_every": 5000, "sample_every": 5000})
    config.checkpoint.every = 5000
    config.evaluation.examples = 2048
    config.published = (
        ("fid", 16.77, "kwotsin/mimicry README, 50k samples, train set"),
        ("inception_score", 7.97, "kwotsin/mimicry README"),
    )
    return common.finish(config, VARIANTS, variant)
