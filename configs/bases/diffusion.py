"""What experiments with diffusion models share."""

from ml_collections import ConfigDict

from configs.bases import base as bases

VARIANTS = {
    "cosine": {"diffusion.process.schedule": "cosine"},
    "v": {"diffusion.prediction": "v"},
    "x0": {"diffusion.prediction": "x0"},
    "min_snr": {"diffusion.weighting": {"name": "min_snr", "gamma": 5.0}},
    "conditional": {"diffusion.conditional": True},
    "ddim50": {"sampling.sampler": "ddim", "sampling.steps": 50},
    "bf16": {"network.dtype": "bfloat16"},
    "fsdp": {"train.sharding": "fsdp"},
}
SMALL = bases.SMOKE | {
    "network.width": 8,
    "network.multipliers": (1, 2),
    "network.blocks": 1,
    "network.attention": (),
    "network.groups": 4,
    "optimizer.warmup": 2,
}
SMOKE = SMALL | {"diffusion.process.timesteps": 20, "sampling.steps": 4}
EDM_NETWORK = {"multipliers": (2, 2, 2), "blocks": 4}  # 55.7 million parameters at width 128


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
            "dropout": 0.1,
            "dtype": "float32",
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
            "sigma_data": 0.5,  # of prediction "edm"
            "times": {"name": "uniform", "shift": 1.0, "stratified": False},
            "weighting": {"name": "simple"},
            "pairing": "independent",  # of examples and noise
            "variance": "fixed",
            "bound_weight": 0.001,  # of variance "learned"
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
            "eta": 0.0,  # of sampler "ddim"
            "clip": True,
            "dynamic_threshold": 0.0,
            "guidance": 1.0,
        }
    )
    config.train.steps = 800_000
    config.optimizer.update({"learning_rate": 2e-4, "warmup": 5000})
    config.ema.update({"half_life": bases.half_life(0.9999, 128), "ramp": 0.0})
    config.log.update({"eval_every": 10_000, "sample_every": 10_000})
    config.checkpoint.every = 5000
    return config


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
            "weighting": {"name": "edm", "sigma_data": 0.5},
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
            "spacing": "trailing",
            "conditional": False,
            "label_dropout": 0.1,  # of conditional models
        }
    )
    config.sampling = ConfigDict({"steps": 0, "clip": True})
    return config
