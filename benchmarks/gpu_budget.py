"""The best CIFAR-10 model of a few minutes on one big GPU: speed, distances, a grid with labels.

    PYTHONPATH=. python benchmarks/gpu_budget.py --data_dir=DIR --minutes=10 [--configs=ddpm,flow]
    PYTHONPATH=. python benchmarks/gpu_budget.py --data_dir=DIR --smoke      # on a CPU, seconds

Measures the images/s of each config's `budget` variant, in bfloat16 and with labels, over a short
run; trains the first minutes of each and goes on with the one whose samples are nearer; its
schedule fits the minutes. Prints distances of 2,000 samples against images seen, and of 10,000 at
the end by both feature networks, and where the grid lies, a column a class.
"""

import argparse
import pathlib
import tempfile
import time
from typing import Any

TRIAL = 0.2  # share of the minutes that each config gets to be compared
FINAL = {
    "fid": {"network": "resnet56"},
    "fid_vgg16": {"metric": "fid", "network": "vgg16"},
    "modes": {"network": "resnet56"},
}


def config_of(name: str, steps: int, options: argparse.Namespace) -> Any:
    """The config of a run of so many steps."""
    import importlib

    from ml_collections import ConfigDict

    module = importlib.import_module(f"configs.{name}_cifar")
    variant = "conditional+smoke" if options.smoke else "budget+bf16+conditional"
    config = module.get_config(variant)
    with config.unlocked():
        config.data.data_dir = options.data_dir
        config.train.steps = steps
        config.optimizer.warmup = min(config.optimizer.warmup, max(steps // 10, 1))
        every = max(steps // 5, 1)
        config.log.update({"every": every, "eval_every": every, "sample_every": every})
        config.checkpoint.every = every
        config.evaluations = ConfigDict(FINAL)
        config.evaluation.update({"network": "resnet56", "scheduled_count": 2000, "count": 10_000})
        if options.smoke:  # features of 10,000 real images take a minute of a CPU
            config.evaluations = ConfigDict({"fid": {"reference_split": "test"}})
            config.evaluation.update({"scheduled_count": 0, "count": 64})
    return config


def speed(name: str, options: argparse.Namespace) -> float:
    """Images/s of steps alone: a run's, less one of fewer steps, without evaluations."""
    from aigc_jax.commands import train

    seconds = []
    few, many = (2, 4) if options.smoke else (50, 250)
    for steps in (few, many):
        config = config_of(name, steps, options)
        with config.unlocked():
            config.log.update({"eval_every": 0, "sample_every": 0})
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            train.run(config, folder)
            seconds.append(time.perf_counter() - start)
    return (many - few) * config.train.batch_size / max(seconds[1] - seconds[0], 1e-6)


def fit(name: str, minutes: float, rate: float, folder: pathlib.Path, options: Any) -> list:
    """Trains for about so many minutes, prints distances, and returns the rows at the end."""
    from aigc_jax.commands import evaluate, train

    batch = config_of(name, 10, options).train.batch_size
    steps = 4 if options.smoke else max(int(minutes * 60 * rate / batch), 10)
    print(f"{name}: {rate:,.0f} images/s, {steps:,} steps, {steps * batch:,} images", flush=True)
    start = time.perf_counter()
    train.run(config_of(name, steps, options), folder)
    print(f"{name}: trained in {(time.perf_counter() - start) / 60:.1f} minutes", flush=True)
    return evaluate.run(folder, batch_size=64 if options.smoke else 1000)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--workdir", default="runs/gpu_budget")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--configs", default="ddpm,flow")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()

    from aigc_jax.commands import sample

    names, place = options.configs.split(","), pathlib.Path(options.workdir)
    rates = {name: speed(name, options) for name in names}
    distances = {}
    for name in names if len(names) > 1 else ():
        rows = fit(name, TRIAL * options.minutes, rates[name], place / f"{name}_trial", options)
        distances[name] = next(row.value for row in rows if row.metric == "fd_resnet56")
    best = min(distances, key=distances.get) if distances else names[0]
    print(f"first minutes: {distances}; going on with {best}", flush=True)
    fit(best, options.minutes * (1 - TRIAL * len(distances)), rates[best], place / best, options)
    print(sample.run(place / best, count=100, seed=1))


if __name__ == "__main__":
    main()
