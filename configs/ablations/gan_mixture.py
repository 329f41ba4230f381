"""Losses of a GAN, with and without a penalty, on the ring of 8 modes.

    python launch.py --mode=ablate --config=configs/ablations/gan_mixture.py --replicas=vmap

2,500 steps a run, a quarter of the experiment's own. docs/ablations/gan_mixture.md has what came of
it.
"""

from ml_collections import ConfigDict

from configs import gan_mixture
from configs.bases.ablation import ablation

LOSSES = ("minimax", "non_saturating", "least_squares", "hinge", "wasserstein", "relativistic")


def get_config(variant: str = "") -> ConfigDict:
    """The config; a variant is one of the base."""
    base = gan_mixture.get_config(variant)
    base.train.steps = min(base.train.steps, 2500)
    return ablation(
        base,
        grid={"gan.loss": LOSSES, "gan.penalty.name": ("none", "r1", "r1_r2")},
        metrics=("mixture_modes", "high_quality", "reverse_kl", "reverse_kl_all"),
    )
