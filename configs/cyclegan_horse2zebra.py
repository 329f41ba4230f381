"""CycleGAN from horses (A) to zebras (B) and back, at 256x256.

    python launch.py --config=configs/cyclegan_horse2zebra.py   # downloads and prepares the images
    python launch.py --config=configs/cyclegan_horse2zebra.py:folder --config.data.path=DIR
    python launch.py --mode=translate --workdir=runs/cyclegan_horse2zebra --input=DIR

Every number is Zhu et al. 2017's (arXiv:1703.10593, appendix 7): 100 epochs of 1,334 images (the
zebras; there are 1,067 horses) at a constant rate and 100 to 0. Published for horses turned to
zebras: FID 62.1 by the authors' weights, 64.5 when trained anew, 74.8 without identity loss
(open-mmlab/mmgeneration:configs/cyclegan/README.md), which no evaluation here measures. "folder"
takes two domains of your own, in the subfolders trainA, trainB, testA and testB of data.path. Not
trained here, and no time was measured.

The published batch is 1. Several devices need a batch that they divide, such as
--config.train.batch_size=8, with --config.train.steps fewer in proportion.
"""

from ml_collections import ConfigDict

from configs.bases import cyclegan
from configs.bases.base import finish

VARIANTS = {
    "folder": {"data.name": "folder"},
    "at128": {"data.image_size": 128, "augment.jitter": 15, "network.generator.blocks": 6},
    "no_identity": {"cyclegan.identity": 0.0},
    "smoke": cyclegan.SMOKE,
}


def get_config(variant: str = "") -> ConfigDict:
    """The config, or variants of it joined by "+"."""
    config = cyclegan.cyclegan()
    config.data.name = "cycle_gan/horse2zebra"
    config.train.steps = 200 * 1334
    return finish(config, VARIANTS, variant)
