"""EDM on the embedded digits, beside ddpm_digits: the same network and as many images.

    python launch.py --config=configs/edm_digits.py

Not published anywhere; docs/results.md has what we measured.
"""

from ml_collections import ConfigDict

from configs.bases import diffusion
from configs.bases.base import finish
from configs.bases.digits import SMOKE, digits

VARIANTS = diffusion.SHARED | {
    "smoke": diffusion.SMOKE_CONTINUOUS | SMOKE | {"network.groups": 4},
}


def get_config(variant: str = "") -> ConfigDict:
    """The config, or variants of it joined by "+"."""
    config = diffusion.edm()
    digits(config)
    return finish(config, VARIANTS, variant)
