"""What weighs the KL, on MNIST: beta (Higgins et al. 2017), annealing, free bits, capacity.

    python launch.py --config=configs/beta_vae_mnist.py          # beta 4
    python launch.py --config=configs/beta_vae_mnist.py:linear   # beta 1, warmed up
    python launch.py --config=configs/beta_vae_mnist.py:capacity # Burgess et al. 2018

784-500-20 with dynamic binarisation, 10 epochs. With beta other than 1 the loss is no bound on the
likelihood; the test's neg_elbo is one all the same. Nothing is published on this network.
"""

from ml_collections import ConfigDict

from configs import common

VARIANTS = {
    "linear": {"vae.beta": 1.0, "vae.kl": "linear", "vae.kl_steps": 2345},
    "cyclical": {"vae.beta": 1.0, "vae.kl": "cyclical", "vae.kl_steps": 1172},
    "free_bits": {"vae.beta": 1.0, "vae.free_bits": 0.5},
    "capacity": {"vae.kl": "capacity", "vae.kl_steps": 4690},
    "smoke": common.VAE_SMOKE,
}


def get_config(variant: str = "") -> ConfigDict:
    """The config, or variants of it joined by "+"."""
    config = common.vae()
    config.data.name = "mnist"
    config.vae.update({"binarise": "dynamic", "beta": 4.0})
    config.train.steps = 4690
    config.log.update({"eval_every": 469, "sample_every": 469})
    config.evaluation.update({"network": "lenet", "count": 10_000})
    return common.finish(config, VARIANTS, variant)
