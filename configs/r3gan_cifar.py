"""R3GAN on CIFAR-10, class-conditional (Huang et al. 2024, arXiv:2501.05441).

    python launch.py --config=configs/r3gan_cifar.py           # downloads and prepares CIFAR-10
    python launch.py --config=configs/r3gan_cifar.py:quarter   # a quarter as wide: an hour's GPU
    python launch.py --config=configs/r3gan_cifar.py:small     # a look at it on two CPU cores

The relativistic loss with R1 and R2 every step, no normalisation, no tanh. Published: FID 1.96, of
the class-conditional model (brownvc/R3GAN:README.md, train.py). Over its 20 million images the
rate, gamma, Adam's second beta and the probability of augmentation go along a cosine to their ends;
the half-life of the average, whose ends and middle are the published, along a line. What is
augmented are the three kinds of Zhao et al. 2020 (arXiv:2006.10738); theirs are ADA's. The
published model computes three of its four stages in bfloat16: "bf16" all of them. Not trained by us
to the end.
"""

from ml_collections import ConfigDict

from configs.bases import gan
from configs.bases.base import SMOKE, finish

STAGES = 4

VARIANTS = {
    "unconditional": {"network.discriminator.conditioning": "none"},
    "quarter": {
        "network.generator.widths": (192,) * STAGES,
        "network.generator.cardinality": (24,) * STAGES,
        "network.discriminator.widths": (192,) * STAGES,
        "network.discriminator.cardinality": (24,) * STAGES,
    },
    "small": {
        "network.generator.widths": (32,) * STAGES,
        "network.generator.cardinality": (4,) * STAGES,
        "network.generator.blocks": (1,) * STAGES,
        "network.discriminator.widths": (32,) * STAGES,
        "network.discriminator.cardinality": (4,) * STAGES,
        "network.discriminator.blocks": (1,) * STAGES,
        "train.batch_size": 64,
        "train.steps": 2000,
        "log.eval_every": 500,
        "log.sample_every": 500,
        "checkpoint.every": 500,
        "evaluation.examples": 512,
    },
    "smoke": SMOKE
    | {
        "network.generator.widths": (8, 8),
        "network.generator.cardinality": (2, 2),
        "network.generator.blocks": (1, 1),
        "network.discriminator.widths": (8, 8),
        "network.discriminator.cardinality": (2, 2),
        "network.discriminator.blocks": (1, 1),
    },
}


def get_config(variant: str = "") -> ConfigDict:
    """The config, or variants of it joined by "+"."""
    config = gan.gan()
    config.data.name = "cifar10"
    config.augment.flip = True
    shared = {
        "name": "r3gan",
        "widths": (768,) * STAGES,
        "blocks": (2,) * STAGES,
        "cardinality": (96,) * STAGES,
        "expansion": 2,
    }
    config.network = ConfigDict(
        {
            "generator": {**shared, "latent": 64, "embed": 64},
            "discriminator": {**shared, "conditioning": "projection"},
        }
    )
    config.train.update({"batch_size": 512, "steps": 39_063})  # 20 million images
    config.gan.loss = "relativistic"
    config.gan.penalty.update({"name": "r1_r2", "weight": 0.05, "weight_end": 0.005})
    config.gan.augment.policy = ("color", "translation", "cutout")
    config.gan.augment.update({"probability": 0.0, "probability_end": 0.55})
    config.gan.decay_steps = config.train.get_oneway_ref("steps")
    config.optimizer.update({"schedule": "cosine", "learning_rate_end": 5e-5})  # from 2e-4
    config.optimizer.update({"b1": 0.0, "b2": 0.9, "b2_end": 0.99})
    config.ema.update({"half_life": 5e6, "ramp": 0.25})
    config.log.update({"eval_every": 2000, "sample_every": 2000})
    config.checkpoint.every = 2000
    config.evaluation.examples = 2048
    config.published = (("fid", 1.96, "Huang et al. 2024, class-conditional, 50k samples"),)
    return finish(config, VARIANTS, variant)
