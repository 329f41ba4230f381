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
SMOKE = bases.SMOKE | {
    "network.width": 8,
    "network.multipliers": (1, 2),
    "network.blocks": 1,
    "network.attention": (),
    "network.groups": 4,
    "diffusion.process.timesteps": 20,
    "sampling.steps": 4,
    "optimizer.warmup": 2,
}


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
            "ends": "fixed",  # of the process; "learned" by the bound: "log_snr" alone
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
            "guidance": 1.0,  # weight of classifier-free guidance; 1: none
            "guidance_rescale": 0.0,
            "guidance_low": 0.0,  # sigma / alpha from which samples are guided
            "guidance_high": 0.0,  # and to which; 0: without end
        }
    )
    config.train.steps = 800_000
    config.optimizer.update({"learning_rate": 2e-4, "warmup": 5000})
    config.ema.update({"half_life": bases.half_life(0.9999, 128), "ramp": 0.0})
    config.log.update({"eval_every": 10_000, "sample_every": 10_000})
    config.checkpoint.every = 5000
    return config
