"""MeanFlow on the embedded digits: samples in one network call, an hour on a CPU core.

    python launch.py --config=configs/meanflow_digits.py

Like ddpm_digits, whose samples take 60 calls: nothing downloaded, not published anywhere. One call
has to do what many do there: the network is wider, and sees 448,000 images instead of 192,000.
"""

from ml_collections import ConfigDict

from configs.bases import diffusion
from configs.bases.base import finish
from configs.bases.digits import SMOKE, digits

VARIANTS = {
    "published": {"diffusion.tangent": "conditional"},
    "conditional": {"diffusion.conditional": True},
    "smoke": diffusion.SMOKE_CONTINUOUS | SMOKE | {"network.groups": 4, "sampling.steps": 1},
}


def get_config(variant: str = "") -> ConfigDict:
    """The config, or variants of it joined by "+"."""
    config = diffusion.meanflow()
    digits(config)
    # A sample in one call is the mean velocity from t = 1 to 0, times that a logit-normal rarely
    # draws: with evenly drawn ones 1,000 steps do what took it 6,000 (docs/results.md).
    config.diffusion.times = ConfigDict({"name": "uniform", "shift": 1.0})
    config.diffusion.end_times = ConfigDict({"name": "uniform", "shift": 1.0})
    # An example's error by its own size makes the velocity a median of those that lead here, and
    # not their mean; in 64 dimensions the two are apart, and samples by any number of calls worse.
    config.diffusion.update({"ratio": 0.5, "tangent": "predicted", "norm_p": 0.0})
    config.network.scale_shift = True  # of two times, which a shift before a norm hardly tells
    config.network.width = 40
    config.train.steps = 7000
    return finish(config, VARIANTS, variant)
