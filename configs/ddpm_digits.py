"""DDPM on the embedded digits: a first run, minutes on two CPU cores, nothing downloaded.

    python launch.py --config=configs/ddpm_digits.py

scikit-learn's 1,797 handwritten digits, 8x8. Not published anywhere: it is here to be seen working.
"""

from ml_collections import ConfigDict

from configs.bases import diffusion
from configs.bases.base import finish
from configs.bases.digits import SMOKE, digits

VARIANTS = diffusion.VARIANTS | {"smoke": diffusion.SMOKE | SMOKE}


def get_config(variant: str = "") -> ConfigDict:
    """The config, or variants of it joined by "+"."""
    config = diffusion.ddpm()
    digits(config)
    config.diffusion.process.schedule = "cosine"
    config.sampling.update({"steps": 60, "variance": "fixed_small"})
    return finish(config, VARIANTS, variant)
