"""What the experiments with autoencoders share: a config with every key, for each of the families.

The three families have a section `vae` each, with other keys: what a family cannot do it has no key
for.
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs.bases import base

LIKELIHOOD = {
    "name": "bernoulli",  # or another of aigc_jax/vae/likelihood.py
    "sigma": 1.0,  # of "gaussian", images being in [-1, 1]
    "scale": 1.0,  # of "laplace", of the same images
    "components": 10,  # of "logistic_mixture"
}
KL = {
    "weight": "constant",  # or "linear", "cyclical", or "capacity"
    "steps": 10_000,  # of each but "constant"
    "beta": 1.0,
    "free_bits": 0.0,  # nats, in each:
    "free_bits_per": "dimension",  # or "channel", "layer"
    "gamma": 100.0,  # of "capacity"
    "capacity": 25.0,  # nats, of "capacity"
}
SMOKE = base.SMOKE | {
    "network.latent": 4,
    "vae.importance.test_samples": 4,
    "vae.importance.chunk": 2,
}


def vae() -> ConfigDict:
    """A config with every key of a plain VAE: Kingma & Welling's, fully connected."""
    config = _base("vae")
    config.network = ConfigDict(
        {"name": "mlp", "latent": 20, "hidden": (500,), "activation": "relu"}
    )
    config.vae = ConfigDict(
        {
            "likelihood": LIKELIHOOD,
            "binarise": "none",  # or "dynamic", or "threshold" at half
            "conditional": False,
            "kl": KL,
            "importance": {
                "samples": 1,  # in training; above 1 the bound is IWAE's
                "test_samples": 100,  # of the test estimate
                "chunk": 50,  # of them at a time
            },
            "noise": {  # of the encoder's input
                "kind": "none",  # or "gaussian", "salt_pepper"
                "level": 0.0,  # deviation in units of 0..1, or share of pixels
                "clip": True,
            },
            "perceptual": {  # a distance in the maps of a network, beside the bound
                "network": "",  # "vgg16" or "resnet56"; "": there is none
                "weights": placeholder(str),  # its file; None: looked for by its usual names
                "weight": 1.0,  # nats for each value of an image, as L1 at scale 1 has
            },
            "adversary": {  # a discriminator of patches
                "weight": 0.0,  # of what it costs the autoencoder; 0: there is none
                "start": 50_001,  # step from which it plays
            },
        }
    )
    config.sampling = ConfigDict({"prior": "normal", "components": 10, "temperature": 1.0})
    return config


def hierarchical_vae() -> ConfigDict:
    """A config with every key of a VAE with groups of latents: Child 2020's ladder for CIFAR-10."""
    config = _base("hierarchical_vae")
    config.network = ConfigDict(
        {
            "name": "ladder",
            "width": 384,
            "latent": 16,
            "encoder": "32x11,32d2,16x6,16d2,8x6,8d2,4x3,4d4,1x3",
            "decoder": "1x1,4m1,4x2,8m4,8x5,16m8,16x10,32m16,32x21",
            "bottleneck": 0.25,
        }
    )
    config.vae = ConfigDict({"likelihood": LIKELIHOOD, "kl": KL})
    config.vae.likelihood.name = "logistic_mixture"
    config.sampling = ConfigDict({"temperature": 1.0})
    return config


def vqvae() -> ConfigDict:
    """A config with every key of a VQ-VAE: 512 entries, the encoder of latent diffusion at f4."""
    config = _base("vqvae")
    config.network = ConfigDict(
        {
            "name": "residual",
            "width": 128,
            "multipliers": (1, 2, 2),
            "blocks": 2,
            "latent": 64,
            "attention": False,
            "groups": 32,
        }
    )
    config.vae = ConfigDict(
        {
            "likelihood": LIKELIHOOD,
            "conditional": False,
            "codebook": {
                "size": 512,  # its entries
                "decay": 0.99,  # of its moving averages, a step
                "commitment": 0.25,  # nats for a unit of |z - z_q|^2
                "restart": 1.0,  # entries used less often than this in a batch start anew; 0: none
            },
        }
    )
    config.vae.likelihood.name = "gaussian"
    config.sampling = ConfigDict({"prior": "frequency"})  # or "uniform"
    return config


def _base(family: str) -> Any:
    config = base.base()
    config.family = family
    config.optimizer.clip = 0.0
    return config
