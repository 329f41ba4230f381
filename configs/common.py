"""What several experiments share: the skeleton of a config, and named variants of it."""

import difflib
import functools
import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

EVALUATIONS = (
    "examples",
    "likelihood",
    "diagnosis",
    "restoration",
    "fid",
    "kid",
    "precision_recall",
    "inception_score",
    "modes",
    "diversity",
    "memorisation",
)


def base() -> ConfigDict:
    """What every experiment has, whatever its family."""
    config = ConfigDict()
    config.seed = 0
    config.init_from = ""  # a diffusers folder, or a run's, whose weights start this one
    config.data = ConfigDict(
        {
            "name": "",  # any of TFDS, or "digits", "stacked_mnist", "ring", "grid", "folder"
            "data_dir": placeholder(str),  # of TFDS; None: $TFDS_DATA_DIR or ~/tensorflow_datasets
            "path": placeholder(str),  # of "folder": a folder or .zip of images
            "image_size": 0,  # 0: as they are
            "crop": 0,  # side of a central square cut out first; 0: none
            "in_memory": placeholder(bool),  # None: if it decodes to under 2 GiB
            "on_corrupt": "raise",  # or "skip"
            "train_split": "train",  # or its first images: "train[:100]"
            "test_split": "test",
        }
    )
    config.augment = ConfigDict({"flip": False, "shift": 0, "rotation": 0.0, "scale": 0.0})
    config.train = ConfigDict(
        {
            "batch_size": 128,  # global, as every number here
            "steps": 10_000,
            "sharding": "replicated",  # or "fsdp"
            "max_skipped": 20,  # steps in a row with non-finite gradients before the run stops
        }
    )
    config.optimizer = ConfigDict(
        {
            "name": "adam",
            "learning_rate": 1e-3,
            "schedule": "constant",
            "warmup": 0,
            "decay_steps": config.train.get_oneway_ref("steps"),
            "decay_start": 0,  # step until which the rate is constant
            "learning_rate_end": 0.0,  # from decay_steps on
            "clip": 1.0,
            "b1": 0.9,
            "b2": 0.999,
            "b2_end": 0.0,  # where b2 goes along the rate's schedule; 0: it stays
            "eps": 1e-8,
            "momentum": 0.0,
            "weight_decay": 0.0,
        }
    )
    config.ema = ConfigDict({"half_life": 20_000.0, "ramp": 0.1})  # in images
    config.log = ConfigDict(
        {"every": 100, "eval_every": 1000, "sample_every": 1000, "samples": 100}
    )
    config.checkpoint = ConfigDict({"every": 1000, "keep": 2, "best": "", "best_mode": "min"})
    config.evaluations = EVALUATIONS
    config.evaluation = ConfigDict(
        {
            "network": "inception",  # of the features: or resnet56, lenet, stacked_lenet, digits
            "weights": placeholder(str),  # its file; None: looked for in $AIGC_WEIGHTS
            "count": 50_000,  # samples
            "reference_split": "train",
            "statistics": "",  # an .npz of mu and sigma to take the Fréchet distance to instead
            "manifold_count": 10_000,  # most images where all pairs are compared
            "likelihood_count": 0,  # examples whose likelihood is bounded; 0: all
            "at_end": False,  # of training too, as by --mode=evaluate
            # On the schedule of log.eval_every, while training:
            "examples": 0,  # of the test split; 0: all
            "scheduled_count": 0,  # samples; 0: no distribution metrics
        }
    )
    config.published = ()  # rows (metric, value, source)
    return config


def ddpm() -> ConfigDict:
    """A config with every key that a diffusion experiment has; numbers are Ho et al. 2020's."""
    config = base()
    config.family = "diffusion"
    config.network = ConfigDict(
        {
            "name": "unet",
            "width": 128,
            "multipliers": (1, 2, 2, 2),
            "blocks": 2,
            "attention": (16,),
            "heads": 1,
            "groups": 32,
            "dropout": 0.1,
            "dtype": "float32",
        }
    )
    config.diffusion = ConfigDict(
        {
            "schedule": "linear",
            "timesteps": 1000,
            "beta_min": 1e-4,
            "beta_max": 0.02,
            "prediction": "eps",
            "weighting": "simple",
            "gamma": 5.0,  # of weighting "min_snr"
            "conditional": False,
            "label_dropout": 0.1,  # of conditional models
        }
    )
    config.sampling = ConfigDict(
        {
            "sampler": "ancestral",
            "steps": 1000,
            "spacing": "leading",
            "variance": "fixed_large",
            "eta": 0.0,  # of sampler "ddim"
            "clip": True,
            "guidance": 1.0,
        }
    )
    config.train.steps = 800_000
    config.optimizer.update({"learning_rate": 2e-4, "warmup": 5000})
    config.ema.update({"half_life": half_life(0.9999, 128), "ramp": 0.0})
    config.log.update({"eval_every": 10_000, "sample_every": 10_000})
    config.checkpoint.every = 5000
    return config


def vae() -> ConfigDict:
    """A config with every key that a VAE experiment has: Kingma & Welling's, fully connected."""
    config = base()
    config.family = "vae"
    config.network = ConfigDict(
        {"name": "mlp", "latent": 20, "hidden": (500,), "activation": "relu"}
    )
    config.vae = ConfigDict(
        {
            "likelihood": "bernoulli",
            "sigma": 1.0,  # of likelihood "gaussian", images being in [-1, 1]
            "scale": 1.0,  # of likelihood "laplace", of the same images
            "components": 10,  # of likelihood "logistic_mixture"
            "binarise": "none",  # or "dynamic", or "threshold" at half
            "conditional": False,
            "kl": "constant",  # its weight: or "linear", "cyclical", or "capacity"
            "kl_steps": 10_000,  # of these but the first
            "beta": 1.0,
            "free_bits": 0.0,  # nats, in each:
            "free_bits_per": "dimension",  # or "channel", "layer"
            "gamma": 100.0,  # of "capacity"
            "capacity": 25.0,  # nats, of "capacity"
            "importance": 1,  # samples in training; above 1 the bound is IWAE's
            "noise": "none",  # of the encoder's input: or "gaussian", "salt_pepper"
            "noise_level": 0.0,  # deviation in units of 0..1, or share of pixels
            "noise_clip": True,
            "test_samples": 100,  # importance samples of the test estimate
            "chunk": 50,  # of them at a time
            "feature_network": "",  # whose distance is paid too: "vgg16" or "resnet56"
            "feature_weights": placeholder(str),  # its file; None: looked for in $AIGC_WEIGHTS
            "feature_weight": 1.0,  # nats for each value of an image, as L1 at scale 1 has
            "adversary_weight": 0.0,  # of a patch discriminator's verdict; 0: there is none
            "adversary_start": 50_001,  # step from which it plays
            "codes": 0,  # vectors of the codebook: above 0 this is a VQ-VAE
            "code_decay": 0.99,  # of its moving averages, a step
            "commitment": 0.25,  # nats for a unit of |z - z_q|^2
            "restart": 1.0,  # codes used less often than this in a batch start anew; 0: none
        }
    )
    config.sampling = ConfigDict({"prior": "normal", "components": 10, "temperature": 1.0})
    config.optimizer.clip = 0.0
    return config


def gan() -> ConfigDict:
    """A config with every key that a GAN experiment has: DCGAN's (Radford et al. 2016)."""
    config = base()
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
            "loss": "non_saturating",
            "penalty": "none",  # or "gradient_penalty", "dragan", "r1", "r1_r2"
            "penalty_weight": 10.0,  # lambda of the first two, gamma of (gamma / 2) R1
            "penalty_weight_end": 0.0,  # read where decay_steps is not 0
            "penalty_every": 1,  # steps; above 1 the penalty is lazy
            "critics": 1,  # updates of the discriminator for one of the generator
            "generator_batch": 1,  # generated images of the generator's update, in batches
            "prior": "normal",  # or "uniform"
            "class_weight": 1.0,  # of conditioning "classifier", in each player's loss
            "class_weight_generator": 0.1,
            "augment": (),  # of "color", "translation", "cutout", for the discriminator alone
            "augment_probability": 1.0,
            "augment_probability_end": 1.0,  # read where decay_steps is not 0
            "augment_target": 0.0,  # E sign(D(real)) to hold the probability at; 0: it stays
            "augment_images": 500_000.0,  # in which it can go from 0 to 1
            "decay_steps": 0,  # over which both go along a cosine to their ends; 0: they stay
            "frozen": 0,  # layers of the discriminator, from the image, that do not learn
        }
    )
    config.sampling = ConfigDict({"truncation": 0.0})
    config.optimizer.update({"learning_rate": 2e-4, "b1": 0.5, "clip": 0.0})
    config.ema.ramp = 0.05
    return config


def cyclegan() -> ConfigDict:
    """A config with every key that a CycleGAN experiment has: Zhu et al. 2017's at 256x256."""
    config = base()
    config.family = "cyclegan"
    config.data.update(  # or "folder": of the subfolders trainA, trainB, testA, testB
        {"train_split": "trainA+trainB", "test_split": "testA+testB", "image_size": 256}
    )
    config.augment.flip = True
    config.augment.jitter = 30  # pixels: enlarged to 286, then a random 256
    config.network = ConfigDict(
        {
            "generator": {"width": 64, "blocks": 9, "dtype": "float32"},
            "discriminator": {  # 70x70 pixels a patch
                "width": 64,
                "layers": 3,
                "norm": "instance",
                "dtype": "float32",
            },
        }
    )
    config.cyclegan = ConfigDict(
        {
            "loss": "least_squares",  # or another of aigc_jax/gan/losses.py
            "adversarial": 2.0,  # a generator's is published without the half that this loss has
            "cycle_a": 10.0,  # lambda of A to B to A
            "cycle_b": 10.0,  # lambda of B to A to B
            "identity": 0.5,  # times these: images of a generator's target shall stay; 0: none
            "pool": 50,  # earlier translations from which a discriminator is shown some; 0: none
        }
    )
    config.sampling = ConfigDict()  # nothing is drawn from noise
    config.train.batch_size = 1
    half = config.train.get_oneway_ref("steps") // 2
    config.optimizer.update({"learning_rate": 2e-4, "b1": 0.5, "clip": 0.0})
    config.optimizer.update({"schedule": "linear", "decay_start": half})
    config.ema.update({"half_life": 0.0, "ramp": 0.0})  # none, as published
    config.log.update({"eval_every": 5000, "sample_every": 5000})
    config.checkpoint.every = 5000
    config.evaluations = ("examples", "restoration")
    config.evaluation.reference_split = config.data.train_split
    return config


def half_life(decay: float, batch_size: int) -> float:
    """Images after which a weight counts half in an EMA of `decay` a step."""
    return batch_size * math.log(0.5) / math.log(decay)


DDPM_VARIANTS = {
    "cosine": {"diffusion.schedule": "cosine"},
    "v": {"diffusion.prediction": "v"},
    "x0": {"diffusion.prediction": "x0"},
    "min_snr": {"diffusion.weighting": "min_snr"},
    "conditional": {"diffusion.conditional": True},
    "ddim50": {"sampling.sampler": "ddim", "sampling.steps": 50},
    "bf16": {"network.dtype": "bfloat16"},
    "fsdp": {"train.sharding": "fsdp"},
}

# Seconds on a CPU: one small network, a few steps, every part of the loop once.
SMOKE = {
    "train.batch_size": 16,
    "train.steps": 4,
    "log.every": 2,
    "log.eval_every": 4,
    "log.sample_every": 4,
    "log.samples": 16,
    "checkpoint.every": 2,
    "evaluation.examples": 32,
    "evaluation.count": 32,
    "evaluation.likelihood_count": 32,
    "evaluation.at_end": False,
    "evaluation.scheduled_count": 0,
}
DDPM_SMOKE = SMOKE | {
    "network.width": 8,
    "network.multipliers": (1, 2),
    "network.blocks": 1,
    "network.attention": (),
    "network.groups": 4,
    "diffusion.timesteps": 20,
    "sampling.steps": 4,
    "optimizer.warmup": 2,
}
GAN_SMOKE = SMOKE | {"network.generator.width": 4, "network.discriminator.width": 4}
# What plays against what, for networks that can go without batch norm.
GAN_LOSSES = {
    "minimax": {"gan.loss": "minimax"},
    "lsgan": {"gan.loss": "least_squares"},
    "hinge": {"gan.loss": "hinge", "network.discriminator.norm": "spectral"},
    "wgan_gp": {
        "gan.loss": "wasserstein",
        "gan.penalty": "gradient_penalty",
        "gan.critics": 5,
        "network.discriminator.norm": "none",
        "optimizer.b1": 0.0,
        "optimizer.b2": 0.9,
    },
    "dragan": {"gan.penalty": "dragan", "network.discriminator.norm": "none"},
    "r1": {
        "gan.penalty": "r1",
        "gan.penalty_weight": 1.0,
        "network.discriminator.norm": "none",
    },
    "lazy_r1": {
        "gan.penalty": "r1",
        "gan.penalty_weight": 1.0,
        "gan.penalty_every": 16,
        "network.discriminator.norm": "none",
    },
    "relativistic": {
        "gan.loss": "relativistic",
        "gan.penalty": "r1_r2",
        "gan.penalty_weight": 1.0,
        "network.discriminator.norm": "none",
    },
    "diffaugment": {"gan.augment": ("color", "translation", "cutout")},
    "adaptive": {
        "gan.augment": ("color", "translation", "cutout"),
        "gan.augment_probability": 0.0,
        "gan.augment_target": 0.6,
    },
}
CYCLEGAN_BF16 = {f"network.{player}.dtype": "bfloat16" for player in ("generator", "discriminator")}
CYCLEGAN_SMOKE = SMOKE | {
    "data.image_size": 32,
    "augment.jitter": 4,
    "network.generator.width": 4,
    "network.generator.blocks": 1,
    "network.discriminator.width": 4,
    "network.discriminator.layers": 2,
    "train.batch_size": 8,
}
VAE_SMOKE = SMOKE | {"network.latent": 4, "vae.test_samples": 4, "vae.chunk": 2}


def finish(
    config: ConfigDict, variants: Mapping[str, Mapping[str, Any]], chosen: str
) -> ConfigDict:
    """Applies variants, "cosine+v", from left to right, and locks the config.

    Raises:
      LookupError: an unknown variant; it names the near misses.
    """
    for name in filter(None, chosen.split("+")):
        if name not in variants:
            near = difflib.get_close_matches(name, variants, n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            # No ValueError: config_flags would wrap it in a printed traceback.
            raise LookupError(
                f"unknown variant {name!r}: {hint}There are {', '.join(sorted(variants))}"
            )
        for key, value in variants[name].items():
            if isinstance(value, Mapping):  # a part with other keys, such as another network
                *path, last = key.split(".")
                functools.reduce(getattr, path, config)[last] = ConfigDict(value)
            else:
                config.update_from_flattened_dict({key: value})
    return config.lock()
