"""VQ-VAE on CIFAR-10: 8x8 indices into 512 entries (van den Oord et al. 2017, arXiv:1711.00937).

    python launch.py --config=configs/vqvae_cifar.py         # downloads and prepares CIFAR-10
    python launch.py --config=configs/vqvae_cifar.py:small   # minutes on two CPU cores
    python launch.py --config=configs/vqvae_cifar.py:mixture # for bits/dim, as far as that goes

Published: 4.67 bits/dim (section 4.1), with two strided and two residual layers of 256 channels, a
likelihood that the paper does not name, 250,000 steps of 128 images and Adam at 2e-4. The encoder
and decoder here are latent diffusion's at f4, larger; codebook decay and commitment are those of
deepmind/sonnet:examples/vqvae_example.ipynb, whose reconstruction loss, divided by the data's
variance, is a Gaussian's of sigma 0.356. Under that, bits/dim says little. Samples draw each index
alone, so they are textures: good ones need a prior learned over the indices, which is not here.
Not trained by us yet; docs/results.md has "small".
"""

from ml_collections import ConfigDict

from configs.bases import base, vae
from configs.bases.base import finish, test_metric

VARIANTS = {
    "small": {
        "network.width": 16,
        "network.multipliers": (1, 2, 2),
        "network.blocks": 1,
        "network.latent": 16,
        "network.groups": 8,
        "vae.codebook.size": 128,
        "optimizer.learning_rate": 1e-3,
        "train.batch_size": 64,
        "train.steps": 2000,
        "log.eval_every": 500,
        "log.sample_every": 500,
        "checkpoint.every": 500,
        "evaluation.examples": 1024,
        "evaluation.count": 1000,
    },
    "mixture": {"vae.likelihood.name": "logistic_mixture"},
    "uniform": {"sampling.prior": "uniform"},
    "smoke": base.SMOKE
    | {
        "network.latent": 4,
        "network.width": 8,
        "network.multipliers": (1, 1, 1),
        "network.blocks": 1,
        "network.groups": 4,
        "network.attention": False,
        "vae.codebook.size": 16,
    },
}


def get_config(variant: str = "") -> ConfigDict:
    """The config, or variants of it joined by "+"."""
    config = vae.vqvae()
    config.data.name = "cifar10"
    config.vae.likelihood.sigma = 0.356
    config.train.update({"batch_size": 128, "steps": 250_000})
    config.optimizer.learning_rate = 2e-4
    config.log.update({"eval_every": 5000, "sample_every": 5000})
    config.checkpoint.update({"every": 5000, "best": test_metric(config, "distortion")})
    config.evaluation.examples = 2048
    config.published = (("bits_per_dim", 4.67, "van den Oord et al. 2017, section 4.1"),)
    return finish(config, VARIANTS, variant)
