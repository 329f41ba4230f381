"""Losses of a GAN, with and without a penalty, on the ring of 8 modes.

python launch.py --mode=ablate --config=configs/ablations/gan_mixture.py
"""

from ml_collections import ConfigDict

from configs import gan_mixture
from configs.bases.ablation import ablation

LOSSES = ("minimax", "non_saturating", "least_squares", "hinge", "wasserstein", "relativistic")


def get_config(variant: str = "") -> ConfigDict:
    """The config; a variant is one of the base."""
    return ablation(
        gan_mixture.get_config(variant),
        grid={"gan.loss": LOSSES, "gan.penalty.name": ("none", "r1", "r1_r2")},
        metrics=("mixture_modes", "high_quality", "reverse_kl"),
    )
