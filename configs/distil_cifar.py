"""Progressive distillation on CIFAR-10: from 512 steps of DDIM to one, in nine stages of one run.

    python launch.py --config=configs/ddpm_cifar.py:cosine+v --workdir=runs/teacher
    python launch.py --config=configs/distil_cifar.py --config.init_from=runs/teacher
    python launch.py --config=configs/distil_cifar.py:four_steps --config.init_from=runs/teacher

Published: FID 8.34 in one step (Salimans & Ho 2022, arXiv:2202.00512, as locuslab/ect:README.md has
it) and 3.0 in four (its abstract), from 8,192 steps of a teacher twice as wide. 50,000 steps a
stage as there, whose last two have 100,000.
"""

from ml_collections import ConfigDict

from configs.bases import diffusion
from configs.bases.base import finish

VARIANTS = {
    "four_steps": {"diffusion.student_steps": 4, "train.steps": 350_000},
    "conditional": {"diffusion.conditional": True},
    "smoke": diffusion.SMOKE
    | {
        "diffusion.process.timesteps": 20,
        "diffusion.teacher_steps": 4,
        "diffusion.stage_steps": 2,
    },
}


def get_config(variant: str = "") -> ConfigDict:
    """The config, or variants of it joined by "+"."""
    config = diffusion.distillation()
    config.data.name = "cifar10"
    config.augment.flip = True
    config.diffusion.process.schedule = "cosine"
    config.diffusion.prediction = "v"
    config.train.steps = 550_000
    config.optimizer.update({"learning_rate": 1e-4, "warmup": 1000})
    config.evaluation.examples = 2048
    config.published = (("fid", 8.34, "Salimans & Ho 2022 in locuslab/ect:README.md, one step"),)
    return finish(config, VARIANTS, variant)
