"""Flow matching on CIFAR-10, as published by Tong et al. 2024 (arXiv:2302.00482).

    python launch.py --config=configs/flow_cifar.py
    python launch.py --config=configs/flow_cifar.py:ot        # minibatch optimal transport
    python launch.py --config=configs/flow_cifar.py:budget+bf16   # 25 minutes of one big GPU

Published: FID 3.5 (OT-CFM, dopri5 with tolerance 1e-5; atong01/conditional-flow-matching,
examples/images/cifar10), others get 3.7 to 3.8, without averages about 7.5; 400,000 steps of 128
images, 19 hours on an RTX 4090. Their UNet has four heads of 64 channels. Not trained to the end
here.
"""

from ml_collections import ConfigDict

from configs.bases import diffusion
from configs.bases.base import finish

VARIANTS = diffusion.FLOW_VARIANTS | {
    "budget": diffusion.BUDGET
    | {"diffusion.times": {"name": "logit_normal", "mean": 0.0, "std": 1.0}},
    "smoke": diffusion.SMOKE_CONTINUOUS | {"network.groups": 4, "network.head_dim": 0},
}


def get_config(variant: str = "") -> ConfigDict:
    """The config, or variants of it joined by "+"."""
    config = diffusion.flow()
    config.data.name = "cifar10"
    config.augment.flip = True
    config.network.head_dim = 64
    config.sampling.update({"sampler": "flow_heun", "steps": 50})
    config.train.steps = 400_000
    config.evaluation.examples = 2048
    config.published = (("fid", 3.5, "atong01/conditional-flow-matching, OT-CFM, dopri5"),)
    return finish(config, VARIANTS, variant)
