"""A VAE of the embedded digits: under two minutes on two CPU cores, nothing downloaded.

    python launch.py --config=configs/vae_digits.py

Kingma & Welling 2014 (arXiv:1312.6114), fully connected, on scikit-learn's 1,797 digits of 8x8
pixels. Not published anywhere: it is here to be seen working.
"""

from ml_collections import ConfigDict

from configs.bases import vae
from configs.bases.base import finish, test_metric

VARIANTS = {
    "conditional": {"vae.conditional": True},
    "iwae": {"vae.importance.samples": 5},
    "beta4": {"vae.kl.beta": 4.0},
    "mixture": {"sampling.prior": "mixture"},
    "smoke": vae.SMOKE | {"network.hidden": (16,)},
}


def get_config(variant: str = "") -> ConfigDict:
    """The config, or variants of it joined by "+"."""
    config = vae.vae()
    config.data.name = "digits"
    config.network.update({"latent": 10, "hidden": (128,)})
    config.vae.likelihood.name = "gaussian_learned"
    config.train.update({"batch_size": 64, "steps": 5000})
    config.optimizer.schedule = "cosine"
    config.checkpoint.best = test_metric(config, "neg_elbo")
    config.evaluation.update({"network": "digits", "count": 500, "scheduled_count": 200})
    config.evaluation.at_end = True
    return finish(config, VARIANTS, variant)
