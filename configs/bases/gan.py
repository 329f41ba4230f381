"""What the GAN experiments share: a config with every key, its losses as variants."""

from ml_collections import ConfigDict

from configs.bases import base

SMOKE = base.SMOKE | {"network.generator.width": 4, "network.discriminator.width": 4}
# What plays against what, for networks that can do without batch norm.
LOSSES = {
    "minimax": {"gan.loss": "minimax"},
    "lsgan": {"gan.loss": "least_squares"},
    "hinge": {"gan.loss": "hinge", "network.discriminator.norm": "spectral"},
    "wgan_gp": {
        "gan.loss": "wasserstein",
        "gan.penalty.name": "gradient_penalty",
        "gan.critics": 5,
        "network.discriminator.norm": "none",
        "optimizer.b1": 0.0,
        "optimizer.b2": 0.9,
    },
    "dragan": {"gan.penalty.name": "dragan", "network.discriminator.norm": "none"},
    "r1": {
        "gan.penalty.name": "r1",
        "gan.penalty.weight": 1.0,
        "network.discriminator.norm": "none",
    },
    "lazy_r1": {
        "gan.penalty.name": "r1",
        "gan.penalty.weight": 1.0,
        "gan.penalty.every": 16,
        "network.discriminator.norm": "none",
    },
    "relativistic": {
        "gan.loss": "relativistic",
        "gan.penalty.name": "r1_r2",
        "gan.penalty.weight": 1.0,
        "network.discriminator.norm": "none",
    },
    "diffaugment": {"gan.augment.policy": ("color", "translation", "cutout")},
    "adaptive": {
        "gan.augment.policy": ("color", "translation", "cutout"),
        "gan.augment.probability": 0.0,
        "gan.augment.target": 0.6,
    },
}


def gan() -> ConfigDict:
    """A config with every key that a GAN experiment has: DCGAN's (Radford et al. 2016)."""
    config = base.base()
    config.family = "gan"
    config.network = ConfigDict(
        {
            "generator": {"name": "dcgan", "latent": 100, "width": 64},
            "discriminator": {
                "name": "dcgan",
                "width": 64,
                "norm": "batch",  # or "spectral", "none"
                "minibatch_std": False,
                "conditioning": "none",  # or "concat", "projection", "classifier" (AC-GAN)
            },
        }
    )
    config.gan = ConfigDict(
        {
            "loss": "non_saturating",  # or another of aigc_jax/gan/losses.py
            "critics": 1,  # updates of the discriminator for one of the generator
            "generator_batch": 1,  # generated examples of the generator's update, in batches
            "prior": "normal",  # of z: or "uniform"
            # In so many steps the penalty's weight and the probability of augmentation go along a
            # cosine to their ends; 0: both are constant.
            "decay_steps": 0,
            "frozen": 0,  # layers of the discriminator, from the input, that do not learn
            "penalty": {
                "name": "none",  # or "gradient_penalty", "dragan", "r1", "r1_r2"
                "weight": 10.0,  # lambda of the first two, gamma of (gamma / 2) R1
                "weight_end": 0.0,  # used where decay_steps is not 0
                "every": 1,  # steps; above 1 the penalty is lazy
            },
            "augment": {  # of what the discriminator sees
                "policy": (),  # of "color", "translation", "cutout"
                "probability": 1.0,
                "probability_end": 1.0,  # used where decay_steps is not 0
                "target": 0.0,  # E sign(D(real)) at which the probability is held; 0: it is not
                "images": 500_000.0,  # in which a held probability can go from 0 to 1
            },
            "classifier": {  # of conditioning "classifier": its share of each player's loss
                "weight": 1.0,
                "weight_generator": 0.1,
            },
        }
    )
    config.sampling = ConfigDict({"truncation": 0.0})
    config.optimizer.update({"learning_rate": 2e-4, "b1": 0.5, "clip": 0.0})
    config.ema.ramp = 0.05
    return config
