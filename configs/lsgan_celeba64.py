"""Least-squares GAN on CelebA faces, 64x64 (Mao et al. 2017, arXiv:1611.04076).

    python launch.py --config=configs/lsgan_celeba64.py       # downloads and prepares CelebA
    python launch.py --config=configs/lsgan_celeba64.py:folder --config.data.path=faces.zip

DCGAN's networks and the optimizer of open-mmlab/mmgeneration:configs/lsgan, which publishes FID
11.93 after 100,000 steps of 128 images. Their faces are framed otherwise, so scores will not
compare to the digit. Not trained by us to the end.
"""

from ml_collections import ConfigDict

from configs.bases import gan
from configs.bases.base import finish

VARIANTS = {
    # One's own faces, framed already: a folder or .zip in data.path.
    "folder": {"data.name": "folder", "data.crop": 0},
    "smoke": gan.SMOKE,
}


def get_config(variant: str = "") -> ConfigDict:
    """The config, or variants of it joined by "+"."""
    config = gan.gan()
    config.data.update({"name": "celeb_a", "crop": 140, "image_size": 64})
    config.augment.flip = True
    config.gan.loss = "least_squares"
    config.optimizer.update({"learning_rate": 1e-3, "b2": 0.99})
    config.train.update({"batch_size": 128, "steps": 100_000})
    config.log.update({"eval_every": 5000, "sample_every": 5000})
    config.checkpoint.every = 5000
    config.evaluation.examples = 2048
    config.published = (("fid", 11.93, "open-mmlab/mmgeneration:configs/lsgan, 50,000 samples"),)
    return finish(config, VARIANTS, variant)
