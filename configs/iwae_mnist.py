"""The importance-weighted autoencoder on MNIST (Burda et al. 2015, arXiv:1509.00519).

    python launch.py --config=configs/iwae_mnist.py            # 5 samples
    python launch.py --config=configs/iwae_mnist.py:k1         # the VAE of the same network
    python launch.py --config=configs/iwae_mnist.py:k50

Two layers of 200 tanh units, z of 50, batches of 20, dynamic binarisation, the learning rate
falling along a cosine where the paper's falls in steps. Published after 3,280 epochs, by 5,000
importance samples, one stochastic layer: 87.75, 85.46 and 84.59 nats for k = 1, 5 and 50
(xqding/Importance_Weighted_Autoencoders). Here 10 epochs; docs/results.md has what we measured.
"""

from ml_collections import ConfigDict

from configs.bases import vae
from configs.bases.base import finish

VARIANTS = {
    "k1": {"vae.importance.samples": 1},
    "k50": {"vae.importance.samples": 50},
    "smoke": vae.SMOKE | {"network.hidden": (16,)},
}


def get_config(variant: str = "") -> ConfigDict:
    """The config, or variants of it joined by "+"."""
    config = vae.vae()
    config.data.name = "mnist"
    config.network.update({"latent": 50, "hidden": (200, 200), "activation": "tanh"})
    config.vae.binarise = "dynamic"
    config.vae.importance.update({"samples": 5, "test_samples": 5000})
    config.train.update({"batch_size": 20, "steps": 30_000})
    config.optimizer.schedule = "cosine"
    config.log.update({"every": 1000, "eval_every": 3000, "sample_every": 3000})
    config.checkpoint.every = 3000
    config.evaluation.update({"network": "lenet", "count": 10_000, "likelihood_count": 1000})
    config.published = (
        ("neg_log_p_iw5000", 85.46, "xqding/Importance_Weighted_Autoencoders, k = 5, 3,280 epochs"),
    )
    return finish(config, VARIANTS, variant)
