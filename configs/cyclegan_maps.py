"""CycleGAN between aerial photographs (A) and maps (B) of the same city, at 128x128.

    python launch.py --config=configs/cyclegan_maps.py          # downloads and prepares the images
    python launch.py --config=configs/cyclegan_maps.py:small    # 64x64, 5 minutes on 2 CPU cores
    python launch.py --mode=translate --workdir=runs/cyclegan_maps --input=DIR --direction=a2b

Every number is Zhu et al. 2017's (arXiv:1703.10593, appendix 7), with the six residual blocks that
they use at 128x128: 100 epochs of 1,096 images at a constant rate and 100 to 0. Published of this
data at 256x256 is what people take for real, 23.2 % of translations to a map and 26.8 % of those to
a photograph (table 1), which nothing here measures; "at256" is that experiment.

The published batch is 1. Several devices need a batch that they divide, such as
--config.train.batch_size=8, with --config.train.steps fewer in proportion.
"""

from ml_collections import ConfigDict

from configs.bases import cyclegan
from configs.bases.base import finish

AT_128 = {"data.image_size": 128, "augment.jitter": 15, "network.generator.blocks": 6}
VARIANTS = {
    "at256": {"data.image_size": 256, "augment.jitter": 30, "network.generator.blocks": 9},
    "no_identity": {"cyclegan.identity": 0.0},
    "cross_entropy": {"cyclegan.loss": "non_saturating", "cyclegan.adversarial": 1.0},
    "small": {
        "data.image_size": 64,
        "augment.jitter": 7,
        "network.generator.width": 16,
        "network.generator.blocks": 3,
        "network.discriminator.width": 16,
        "network.discriminator.layers": 2,
        "train.steps": 4000,
        "log.eval_every": 1000,
        "log.sample_every": 1000,
        "checkpoint.every": 1000,
    },
    "smoke": cyclegan.SMOKE,
}


def get_config(variant: str = "") -> ConfigDict:
    """The config, or variants of it joined by "+"."""
    config = cyclegan.cyclegan()
    config.data.name = "cycle_gan/maps"
    config.update_from_flattened_dict(AT_128)
    config.train.steps = 200 * 1096
    return finish(config, VARIANTS, variant)
