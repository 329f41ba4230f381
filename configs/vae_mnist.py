"""A VAE of MNIST, fully connected or convolutional: 784-500-20 as Kingma & Welling 2014.

    python launch.py --config=configs/vae_mnist.py             # 10 epochs
    python launch.py --config=configs/vae_mnist.py:conv
    python launch.py --config=configs/vae_mnist.py:long        # 400-400, z of 40, 100 epochs

Every pixel is drawn black or white by its grey value each time it is seen (dynamic binarisation),
in the test set too. Published: about 104 nats of test -ELBO after ten epochs by Flax's own example
(google/flax:examples/vae, on Larochelle's fixed binarisation); 89.8 nats of -log p by importance
sampling for a longer run (clementchadebec/benchmark_VAE: 400 hidden, z of 40, 500 epochs, also on
the fixed binarisation). docs/results.md has what we measured.
"""

from ml_collections import ConfigDict

from configs.bases import vae
from configs.bases.base import finish, test_metric

VARIANTS = {
    "conv": {"network": {"name": "conv", "latent": 20, "widths": (32, 64)}},
    "long": {
        "network.hidden": (400,),
        "network.latent": 40,
        "train.steps": 46_900,
        "optimizer.schedule": "cosine",
        "log.eval_every": 4690,
        "log.sample_every": 4690,
    },
    "grey": {"vae.binarise": "none"},
    "mixture": {"sampling.prior": "mixture"},
    "smoke": vae.SMOKE,
}


def get_config(variant: str = "") -> ConfigDict:
    """The config, or variants of it joined by "+"."""
    config = vae.vae()
    config.data.name = "mnist"
    config.vae.binarise = "dynamic"
    config.train.steps = 4690  # 10 epochs
    config.log.update({"eval_every": 469, "sample_every": 469})
    config.checkpoint.best = test_metric(config, "neg_elbo")
    config.evaluation.update({"network": "lenet", "count": 10_000})
    config.published = (
        ("neg_elbo", 104.0, "google/flax:examples/vae, 10 epochs, fixed binarisation"),
        ("neg_log_p_iw100", 89.78, "clementchadebec/benchmark_VAE, 500 epochs, 200 samples"),
    )
    return finish(config, VARIANTS, variant)
