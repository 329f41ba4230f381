"""A diffusion transformer on CIFAR-10's pixels: DiT-S/2 by default, flow matching.

    python launch.py --config=configs/dit_cifar.py:bf16
    python launch.py --config=configs/dit_cifar.py:base        # DiT-B/2
    python launch.py --config=configs/dit_cifar.py:modern      # RoPE, RMS norms of q and k, SwiGLU

Peebles & Xie 2022 (arXiv:2212.09748), AdamW at 1e-4 without decay and an EMA of 0.9999 as theirs.
They publish ImageNet in latents (DiT-XL/2 FID 2.27) and nothing on CIFAR-10: there is no number to
compare with. Not trained to the end here.
"""

from ml_collections import ConfigDict

from configs.bases import base, diffusion
from configs.bases.base import finish

VARIANTS = diffusion.FLOW_VARIANTS | {
    "base": {"network.size": "B"},
    "modern": {"network.position": "rope", "network.qk_norm": True, "network.swiglu": True},
    "smoke": base.SMOKE
    | {
        "network.size": "",
        "network.depth": 2,
        "network.width": 16,
        "network.heads": 2,
        "network.patch": 8,
        "sampling.steps": 4,
    },
}


def get_config(variant: str = "") -> ConfigDict:
    """The config, or variants of it joined by "+"."""
    config = diffusion.flow()
    config.data.name = "cifar10"
    config.augment.flip = True
    config.network = ConfigDict(
        {
            "name": "dit",
            "size": "S",
            "depth": 0,
            "width": 0,
            "heads": 0,
            "patch": 2,
            "position": "sincos",
            "qk_norm": False,
            "swiglu": False,
        }
    )
    config.diffusion.conditional = True
    config.diffusion.times = ConfigDict(
        {"name": "logit_normal", "mean": 0.0, "std": 1.0, "shift": 1.0, "stratified": False}
    )
    config.train.update({"batch_size": 256, "steps": 400_000})
    config.optimizer.update({"learning_rate": 1e-4, "warmup": 0})
    config.ema.update({"half_life": base.half_life(0.9999, 256), "ramp": 0.05})
    config.evaluation.examples = 2048
    return finish(config, VARIANTS, variant)
