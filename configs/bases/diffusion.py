"""What experiments with diffusion models share."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs.bases import base as bases

# Of any process.
SHARED = {
    "min_snr": {"diffusion.weighting": {"name": "min_snr", "gamma": 5.0}},
    "soft_min_snr": {"diffusion.weighting": {"name": "soft_min_snr", "gamma": 4.0}},
    "conditional": {"diffusion.conditional": True},
    "dpmpp": {"sampling.sampler": "dpmpp_2m", "sampling.steps": 20},
}
VARIANTS = SHARED | {
    "cosine": {"diffusion.process.schedule": "cosine"},
    "v": {"diffusion.prediction": "v"},
    "x0": {"diffusion.prediction": "x0"},
    "ddim50": {"sampling.sampler": "ddim", "sampling.steps": 50},
}
FLOW_VARIANTS = SHARED | {
    "logit_normal": {"diffusion.times": {"name": "logit_normal", "mean": 0.0, "std": 1.0}},
    "ot": {"diffusion.pairing": "optimal_transport"},
    "heun": {"sampling.sampler": "flow_heun", "sampling.steps": 25},
}
# The best distance within 25 minutes of one big GPU, by the curves of others (docs/results.md):
# large batches, a short ramp to a higher rate that then falls to 0, and an average over the last
# twentieth of the run. About 12 million images at 8,000 a second.
BUDGET = {
    "train.batch_size": 512,
    "train.steps": 23_000,
    "optimizer.learning_rate": 8e-4,
    "optimizer.warmup": 1000,
    "optimizer.schedule": "cosine",
    "ema.half_life": 500_000.0,
    "ema.ramp": 0.05,
    "network.dropout": 0.0,
    "log.eval_every": 2000,
    "log.sample_every": 2000,
    "checkpoint.every": 2000,
}
# Seconds on a CPU, of a process in continuous time.
SMOKE_CONTINUOUS = bases.SMOKE | {
    "network.width": 8,
    "network.multipliers": (1, 2),
    "network.blocks": 1,
    "network.attention": (),
    "sampling.steps": 4,
    "optimizer.warmup": 2,
}
SMOKE = SMOKE_CONTINUOUS | {"network.groups": 4, "diffusion.process.timesteps": 20}


def ddpm() -> ConfigDict:
    """A config with every key that a diffusion experiment has; numbers are Ho et al. 2020's."""
    config = bases.base()
    config.family = "diffusion"
    config.network = ConfigDict(
        {
            "name": "unet",
            "width": 128,
            "multipliers": (1, 2, 2, 2),
            "blocks": 2,
            "attention": (16,),
            "heads": 1,
            "groups": 32,
            "scale_shift": False,  # by the embedding, after the norm
            "dropout": 0.1,
        }
    )
    config.diffusion = ConfigDict(
        {
            "process": {
                "name": "discrete",
                "schedule": "linear",
                "timesteps": 1000,
                "beta_min": 1e-4,
                "beta_max": 0.02,
                "zero_terminal_snr": False,
            },
            "prediction": "eps",
            "sigma_data": 0.5,  # of prediction and weighting "edm"
            "times": {"name": "uniform", "shift": 1.0, "stratified": False},
            "weighting": {"name": "simple"},
            "pairing": "independent",  # of examples and noise
            "variance": "fixed",
            "bound_weight": 0.001,  # of variance "learned"
            "objective": "simple",  # "bound" minimises the variational bound itself
            "importance": False,  # whether times are drawn by the second moment of their losses
            "augment": 0.0,  # EDM's, of which the network is told
            "ends": "fixed",  # of the process; "learned" by the bound: "log_snr" alone
            "schedule": "linear",  # between learned ends; "monotone" is learned too
            "conditional": False,
            "label_dropout": 0.1,  # of conditional models
        }
    )
    config.sampling = ConfigDict(
        {
            "sampler": "ancestral",
            "steps": 1000,
            "spacing": "leading",
            "variance": "fixed_large",
            "eta": placeholder(float),  # noise of a step, of "ddim" and others; None: their own
            "clip": True,
            "dynamic_threshold": 0.0,
            "guidance": 1.0,  # weight of classifier-free guidance; 1: none
            "guidance_rescale": 0.0,
            "guidance_low": 0.0,  # sigma / alpha from which samples are guided
            "guidance_high": 0.0,  # and to which; 0: without end
            "autoguidance": 1.0,  # weight of guidance by a weaker version of the model; 1: none
            "weak": "",  # that version: RUN, or RUN@STEP for an earlier checkpoint
        }
    )
    config.train.steps = 800_000
    config.optimizer.update({"learning_rate": 2e-4, "warmup": 5000})
    config.ema.update({"half_life": bases.half_life(0.9999, 128), "ramp": 0.0})
    config.log.update({"eval_every": 10_000, "sample_every": 10_000})
    config.checkpoint.every = 5000
    return config


def edm() -> ConfigDict:
    """`ddpm` with the process, the preconditioning and the solver of Karras et al. 2022, table 1.

    arXiv:2206.00364. The network stays.
    """
    config = ddpm()
    config.diffusion.process = ConfigDict({"name": "edm", "sigma_min": 0.002, "sigma_max": 80.0})
    config.diffusion.prediction = "edm"
    config.diffusion.times = ConfigDict(
        {"name": "log_normal", "mean": -1.2, "std": 1.2, "stratified": False}
    )
    config.diffusion.weighting = ConfigDict({"name": "edm"})
    config.sampling.update(
        {"sampler": "heun", "steps": 18, "spacing": "karras", "rho": 7.0, "clip": False}
    )
    config.sampling.update({"churn": 0.0, "churn_noise": 1.0})
    return config


def flow() -> ConfigDict:
    """`ddpm` with the straight path from data to noise, its velocity and Euler's method.

    Rectified flow (Liu et al. 2023, arXiv:2209.03003).
    """
    config = ddpm()
    config.diffusion.process = ConfigDict({"name": "flow"})
    config.diffusion.prediction = "velocity"
    config.sampling.update({"sampler": "euler", "steps": 50, "spacing": "", "clip": False})
    return config


def edm_unet(config: ConfigDict) -> None:
    """Gives a config EDM's DDPM++ network for CIFAR-10 (Karras et al. 2022, table 7)."""
    config.network = ConfigDict(
        {
            "name": "edm_unet",
            "width": 128,
            "multipliers": (2, 2, 2),
            "blocks": 4,
            "attention": (16,),
            "dropout": 0.13,
            "augment_dim": 0,
        }
    )


def meanflow() -> ConfigDict:
    """A config with every key of MeanFlow; numbers are Geng et al. 2025's (arXiv:2505.13447)."""
    config = ddpm()
    config.family = "meanflow"
    config.network.second_time = True
    config.diffusion = ConfigDict(
        {
            "times": {"name": "logit_normal", "mean": -2.0, "std": 2.0, "shift": 1.0},
            "end_times": {"name": "logit_normal", "mean": -2.0, "std": 2.0, "shift": 1.0},
            "ratio": 0.75,
            "tangent": "conditional",
            "norm_p": 0.75,
            "norm_eps": 1e-3,
            "conditional": False,
            "label_dropout": 0.1,  # of conditional models
            "guidance_weight": 1.0,  # of conditional models
        }
    )
    config.sampling = ConfigDict({"steps": 1, "clip": True})
    return config


def consistency() -> ConfigDict:
    """A config with every key of consistency models; numbers are of ECT (arXiv:2406.14548)."""
    config = ddpm()
    config.family = "consistency"
    config.diffusion = ConfigDict(
        {
            "process": {"name": "edm", "sigma_min": 0.002, "sigma_max": 80.0},
            "prediction": "edm",
            "sigma_data": 0.5,
            "times": {"name": "log_normal", "mean": -1.1, "std": 2.0},
            "weighting": {"name": "edm"},
            "consistency": {
                "name": "easy",
                "q": 256.0,
                "k": 8.0,
                "b": 1.0,
                "stage_steps": 0,
                "huber": 0.0,
            },
            "conditional": False,
            "label_dropout": 0.0,  # of conditional models
        }
    )
    config.sampling = ConfigDict({"steps": 2, "mid": 0.821, "clip": True})
    return config


def distillation() -> ConfigDict:
    """A config with every key of progressive distillation of a model that `ddpm` gives."""
    config = ddpm()
    config.family = "distillation"
    config.diffusion = ConfigDict(
        {
            "process": config.diffusion.process,
            "prediction": config.diffusion.prediction,
            "sigma_data": config.diffusion.sigma_data,
            "weighting": config.diffusion.weighting,
            "teacher_steps": 512,
            "student_steps": 1,
            "stage_steps": 50_000,
            "spacing": "",  # of the teacher's levels; trailing in a discrete process
            "conditional": False,
            "label_dropout": 0.1,  # of conditional models
        }
    )
    config.sampling = ConfigDict({"steps": 0, "clip": True})
    return config
