"""What the diffusion experiments on the embedded digits share: size, length and evaluations."""

from ml_collections import ConfigDict

from configs.bases.base import test_metric

# Beside a base's SMOKE: as many everywhere, batches of one size, compiled once.
SMOKE = {
    "evaluation.at_end": True,
    "evaluation.count": 40,
    "evaluation.scheduled_count": 40,
    "log.samples": 40,
}


def digits(config: ConfigDict) -> None:
    """Fits a diffusion config to 1,797 digits of 8x8: minutes on two CPU cores."""
    config.data.name = "digits"
    config.network.update(
        {
            "width": 24,
            "multipliers": (1, 2),
            "blocks": 1,
            "attention": (4,),
            "groups": 8,
            "dropout": 0.0,
        }
    )
    config.train.update({"batch_size": 64, "steps": 3000})
    config.optimizer.update({"learning_rate": 2e-3, "warmup": 100, "schedule": "cosine"})
    config.ema.update({"half_life": 20_000.0, "ramp": 0.1})
    config.log.update({"eval_every": 1500, "sample_every": 1500, "first_sample": 500})
    config.checkpoint.update({"every": 1500, "best": test_metric(config, "loss")})
    config.evaluation.likelihood_count = 64  # a bound is up to a thousand network calls each
    config.evaluation.update(
        {"network": "digits", "count": 500, "scheduled_count": 200, "at_end": True}
    )
