"""A denoising VAE of MNIST: the encoder sees noise, the decoder answers for the clean image.

    python launch.py --config=configs/dvae_mnist.py            # Gaussian noise, sigma 0.3 of 0..1
    python launch.py --config=configs/dvae_mnist.py:sigma5     # 0.5
    python launch.py --config=configs/dvae_mnist.py:salt_pepper
    python launch.py --mode=denoise --workdir=runs/dvae_mnist --input=DIR

Im et al. 2017 (arXiv:1511.06406). Noisy images are clipped to the range of images. No published
PSNR stands under one protocol; the best linear filter, fitted on the same data, gets 20.66 dB at
0.3 and 17.73 dB at 0.5 (benchmarks/denoising_baseline.py; docs/results.md has what we measured).
30 epochs.
"""

from ml_collections import ConfigDict

from configs.bases import vae
from configs.bases.base import finish

VARIANTS = {
    "sigma5": {"vae.noise.level": 0.5},
    "salt_pepper": {"vae.noise.kind": "salt_pepper", "vae.noise.level": 0.25},
    "unclipped": {"vae.noise.clip": False},
    "smoke": vae.SMOKE,
}


def get_config(variant: str = "") -> ConfigDict:
    """The config, or variants of it joined by "+"."""
    config = vae.vae()
    config.data.name = "mnist"
    config.network.update({"latent": 128, "hidden": (1000, 500)})
    # A sigma below what the error would choose: pixels weigh more than the code.
    config.vae.likelihood.update({"name": "gaussian", "sigma": 0.1})
    config.vae.noise.update({"kind": "gaussian", "level": 0.3})
    config.train.steps = 14_070
    config.optimizer.schedule = "cosine"
    config.log.update({"eval_every": 1407, "sample_every": 1407})
    config.evaluation.update({"network": "lenet", "count": 10_000})
    return finish(config, VARIANTS, variant)
