"""A variational diffusion model of CIFAR-10 (Kingma et al. 2021, arXiv:2107.00630).

    python launch.py --config=configs/vdm_cifar.py          # downloads and prepares CIFAR-10

Published: 2.65 bits/dim (2.637 by google-research/vdm's own checkpoint) after 10,000,000 steps of
128 images without augmentation, from google-research/vdm:configs/cifar10.py. That is 2e20 FLOP, 71
hours of an H200 at its peak: use it to see a likelihood model trained, not to beat the number. What
is learned of the schedule are its ends, as in that config; `monotone` adds the paper's network
between them, which changes the variance of the estimate and not the bound.
"""

from ml_collections import ConfigDict

from configs.bases import diffusion
from configs.bases.base import finish, half_life

VARIANTS = {
    key: value
    for key, value in diffusion.VARIANTS.items()
    if key in ("v", "x0", "conditional", "ddim50")
} | {
    "smoke": {k: v for k, v in diffusion.SMOKE.items() if k != "diffusion.process.timesteps"}
    | {"network.multipliers": (1,)},
    "monotone": {"diffusion.schedule": "monotone"},
    "exact": {
        "evaluations": {"exact_likelihood": {}, "likelihood": {}},
        "evaluation.likelihood_count": 1024,
    },
}


def get_config(variant: str = "") -> ConfigDict:
    """The config, or variants of it joined by "+"."""
    config = diffusion.ddpm()
    config.data.name = "cifar10"
    config.network.update(
        {
            "name": "fourier_unet",
            "width": 128,
            "multipliers": (1,),  # never halved
            "blocks": 32,
            "attention": (),
            "dropout": 0.1,
        }
    )
    config.diffusion.process = ConfigDict({"name": "log_snr", "gamma_min": -13.3, "gamma_max": 5.0})
    config.diffusion.ends = "learned"
    config.diffusion.weighting.name = "likelihood"
    config.diffusion.times.stratified = True
    config.sampling.update({"spacing": "", "steps": 1000})
    config.train.steps = 10_000_000
    config.optimizer.update(
        {"name": "adamw", "learning_rate": 2e-4, "warmup": 100, "b2": 0.99, "weight_decay": 0.01}
    )
    config.ema.half_life = half_life(0.9999, 128)
    config.evaluation.examples = 2048
    source = "Kingma et al. 2021, table 1 (test set, no augmentation)"
    config.published = (("bits_per_dim", 2.65, source),)
    return finish(config, VARIANTS, variant)
