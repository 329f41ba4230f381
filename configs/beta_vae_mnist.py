"""What weighs the KL, on MNIST: beta (Higgins et al. 2017), annealing, free bits, capacity.

    python launch.py --config=configs/beta_vae_mnist.py          # beta 4
    python launch.py --config=configs/beta_vae_mnist.py:linear   # beta 1, warmed up
    python launch.py --config=configs/beta_vae_mnist.py:capacity # Burgess et al. 2018

784-500-20 with dynamic binarisation, 10 epochs. With beta other than 1 the loss is no bound on the
likelihood; the test's neg_elbo is one all the same. Nothing is published on this network.
"""

from ml_collections import ConfigDict

from configs.bases import vae
from configs.bases.base import finish

VARIANTS = {
    "linear": {"vae.kl.beta": 1.0, "vae.kl.weight": "linear", "vae.kl.steps": 2345},
    "cyclical": {"vae.kl.beta": 1.0, "vae.kl.weight": "cyclical", "vae.kl.steps": 1172},
    "free_bits": {"vae.kl.beta": 1.0, "vae.kl.free_bits": 0.5},
    "capacity": {"vae.kl.weight": "capacity", "vae.kl.steps": 4690},
    "smoke": vae.SMOKE,
}


def get_config(variant: str = "") -> ConfigDict:
    """The config, or variants of it joined by "+"."""
    config = vae.vae()
    config.data.name = "mnist"
    config.vae.binarise = "dynamic"
    config.vae.kl.beta = 4.0
    config.train.steps = 4690
    config.log.update({"eval_every": 469, "sample_every": 469})
    config.evaluation.update({"network": "lenet", "count": 10_000})
    return finish(config, VARIANTS, variant)
