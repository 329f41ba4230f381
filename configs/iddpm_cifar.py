"""Improved DDPM on CIFAR-10 (Nichol & Dhariwal 2021, arXiv:2102.09672): a learned variance.

    python launch.py --config=configs/iddpm_cifar.py          # downloads and prepares CIFAR-10
    python launch.py --config=configs/iddpm_cifar.py:linear+simple
    python launch.py --config=configs/iddpm_cifar.py:vlb      # L_vlb, times drawn by importance

L_hybrid with the cosine schedule and 4,000 steps, 500,000 training steps of 128 images, by their
network of 52.55 million parameters, whose embeddings scale and shift after each norm. Published
(openai/improved-diffusion, README): 3.17 bits/dim and FID 3.19; with `linear+simple` 3.37 and FID
2.90, the best FID of its table; with `vlb` 2.94, the fewest bits, and FID 11.47. Half as much again
a step as ddpm_cifar, and the bound is of 4,000 network calls an image:
`evaluation.likelihood_count` says how many images.
"""

from ml_collections import ConfigDict

from configs.bases import diffusion
from configs.bases.base import finish, half_life

VARIANTS = diffusion.VARIANTS | {
    "smoke": diffusion.SMOKE,
    "linear": {"diffusion.process.schedule": "linear", "network.dropout": 0.1},
    "vlb": {"diffusion.objective": "bound", "diffusion.importance": True},
    "simple": {"diffusion.variance": "fixed", "sampling.variance": "fixed_large"},
}


def get_config(variant: str = "") -> ConfigDict:
    """The config, or variants of it joined by "+"."""
    config = diffusion.ddpm()
    config.data.name = "cifar10"
    config.augment.flip = True
    config.network.update({"blocks": 3, "attention": (16, 8), "heads": 4, "dropout": 0.3})
    config.network.scale_shift = True
    # As PyTorch pads and norms, and its embedding of time, which begins with the cosines.
    config.network.update({"downsample_padding": 1, "norm_eps": 1e-5})
    config.network.update({"flip_sin_to_cos": True, "freq_shift": 0})
    config.diffusion.process.update({"schedule": "cosine", "timesteps": 4000})
    config.diffusion.variance = "learned"
    config.sampling.update({"steps": 4000, "variance": "learned"})
    config.train.steps = 500_000
    config.optimizer.update({"learning_rate": 1e-4, "warmup": 0, "clip": 0.0})
    config.ema.half_life = half_life(0.9999, 128)
    config.evaluation.examples = 2048
    config.evaluation.likelihood_count = 1024
    source = "Nichol & Dhariwal 2021: openai/improved-diffusion, README (L_hybrid, cosine)"
    config.published = (("bits_per_dim", 3.17, source), ("fid", 3.19, source))
    return finish(config, VARIANTS, variant)
