"""DDPM on CelebA faces, 64x64: the CIFAR-10 recipe one resolution up.

    python launch.py --config=configs/ddpm_celeba64.py       # downloads and prepares CelebA
    python launch.py --config=configs/ddpm_celeba64.py:folder --config.data.path=faces.zip

Published for CelebA 64x64, DDIM with 50, 100 and 1,000 steps: FID 9.17, 6.53 and 3.51, by Song et
al. 2021 (arXiv:2010.02502, table 1), whose network this is: five resolutions, attention at 16.
Their faces are framed otherwise, 128 pixels around row 121, column 89 (here 140 around the centre),
so scores will not compare to the digit. Not trained to the end here, and no time was measured.
"""

from ml_collections import ConfigDict

from configs.bases import diffusion
from configs.bases.base import finish

VARIANTS = diffusion.VARIANTS | {
    # One's own faces, framed already: a folder or .zip in data.path.
    "folder": {"data.name": "folder", "data.crop": 0},
    "smoke": diffusion.SMOKE,
}


def get_config(variant: str = "") -> ConfigDict:
    """The config, or variants of it joined by "+"."""
    config = diffusion.ddpm()
    config.data.update({"name": "celeb_a", "crop": 140, "image_size": 64})
    config.augment.flip = True
    config.network.multipliers = (1, 2, 2, 2, 4)
    config.train.steps = 500_000
    config.evaluation.examples = 2048
    config.published = (
        ("fid", 3.51, "Song et al. 2021, table 1: DDIM, 1,000 steps, eta 0"),
        ("fid", 9.17, "Song et al. 2021, table 1: DDIM, 50 steps, eta 0"),
    )
    return finish(config, VARIANTS, variant)
