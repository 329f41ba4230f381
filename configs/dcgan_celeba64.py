"""DCGAN on CelebA faces, 64x64 (Radford, Metz & Chintala 2016, arXiv:1511.06434).

    python launch.py --config=configs/dcgan_celeba64.py       # downloads and prepares CelebA
    python launch.py --config=configs/dcgan_celeba64.py:folder --config.data.path=faces.zip

The network of PyTorch's examples, z of 100 numbers, 25 epochs of batches of 128 at Adam's 2e-4,
0.5; the paper has twice the width. Published for it on 64x64 CelebA faces: sliced Wasserstein
distance 23.26, MS-SSIM 0.2899 after 300,000 steps (open-mmlab/mmgeneration:configs/dcgan), no FID.
Other losses are variants; those with a penalty go without batch norm in the discriminator.
"""

from ml_collections import ConfigDict

from configs.bases import gan
from configs.bases.base import finish

VARIANTS = gan.LOSSES | {
    # One's own faces, framed already: a folder or .zip in data.path.
    "folder": {"data.name": "folder", "data.crop": 0},
    "narrow": {"network.generator.width": 32, "network.discriminator.width": 32},
    "smoke": gan.SMOKE,
}


def get_config(variant: str = "") -> ConfigDict:
    """The config, or variants of it joined by "+"."""
    config = gan.gan()
    config.data.update({"name": "celeb_a", "crop": 140, "image_size": 64})
    config.augment.flip = True
    config.train.update({"batch_size": 128, "steps": 40_000})
    config.log.update({"eval_every": 2000, "sample_every": 2000})
    config.checkpoint.every = 2000
    config.evaluation.examples = 2048
    return finish(config, VARIANTS, variant)
