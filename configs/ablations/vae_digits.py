"""What a VAE's objective does to samples and to the bound: beta, free bits, likelihood, IWAE's k.

    python launch.py --mode=ablate --config=configs/ablations/vae_digits.py --replicas=vmap

docs/ablations/vae_digits.md has what came of it.
"""

from ml_collections import ConfigDict

from configs import vae_digits
from configs.bases.ablation import ablation

VARIANTS = {
    "beta_0.25": {"vae.kl.beta": 0.25},
    "beta_0.5": {"vae.kl.beta": 0.5},
    "beta_2": {"vae.kl.beta": 2.0},
    "beta_4": {"vae.kl.beta": 4.0},
    "free_bits_0.1": {"vae.kl.free_bits": 0.1},
    "free_bits_0.5": {"vae.kl.free_bits": 0.5},
    "gaussian_optimal": {"vae.likelihood.name": "gaussian_optimal"},
    "gaussian_1": {"vae.likelihood.name": "gaussian"},
    "bernoulli": {"vae.likelihood.name": "bernoulli"},
    "iwae_5": {"vae.importance.samples": 5},
    "iwae_20": {"vae.importance.samples": 20},
}


def get_config(variant: str = "") -> ConfigDict:
    """The config; a variant is one of the base."""
    metrics = ("fd_digits", "bits_per_dim", "neg_log_p_iw100", "kl", "active_units")
    return ablation(vae_digits.get_config(variant), VARIANTS, metrics=metrics)
