"""What data cost: the loader's images a second by itself, and the training loop's share of waiting.

    PYTHONPATH=. python benchmarks/input_pipeline.py [--data_dir=DIR] [--seconds=5] [--width=16]

CIFAR-10, in memory and streamed. The loop is that of configs/ddpm_cifar.py with a UNet of `width`:
the paper's 128 hides any loader on a CPU, so a narrow one is the harder question. Needs no options
where TFDS has cifar10 prepared.
"""

import argparse
import json
import pathlib
import tempfile
import time

from aigc_jax import build
from aigc_jax.commands import train
from aigc_jax.data import datasets, loader
from aigc_jax.runs.examples import RealData
from benchmarks import common
from configs import ddpm_cifar


def images_per_second(
    source: datasets.Source, batch_size: int, seconds: float, num_threads: int
) -> float:
    """What `loader.batches` sustains with nobody else at work."""
    iterator = loader.batches(source, batch_size=batch_size, seed=0, num_threads=num_threads)
    for _ in range(32):  # what was prefetched before the clock started
        next(iterator)
    began, steps = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        next(iterator)
        steps += 1
    rate = steps * batch_size / (time.perf_counter() - began)
    iterator.close()
    return rate


def share_waiting(dataset: datasets.Dataset, width: int, batch_size: int) -> tuple[float, float]:
    """Share of the loop's time spent waiting for batches, and its images a second."""
    config = ddpm_cifar.get_config()
    quiet = {"eval_every": 0, "sample_every": 0, "every": 10}
    with config.unlocked():
        config.network.width, config.network.dropout = width, 0.0
        config.network.groups = 8
        config.log.update(quiet)
        config.train.update({"batch_size": batch_size, "steps": 30})
    family = build.build(config, dataset.spec)
    with tempfile.TemporaryDirectory() as folder:
        data = RealData("cifar10", dataset, "train", "test", batch_size)
        train.fit(config, pathlib.Path(folder), family, data, ())
        rows = (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines()
    last = json.loads(rows[-1])  # compilation fell into the first row
    return last["time/data_wait"], last["time/images_per_second"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", help="where TFDS keeps cifar10")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=5.0, help="to measure each row for")
    parser.add_argument("--width", type=int, default=16, help="of the loop's UNet")
    options = parser.parse_args()

    rows = []
    for title, in_memory in (("in memory", True), ("streamed", False)):
        began = time.perf_counter()
        dataset = datasets.load("cifar10", data_dir=options.data_dir, in_memory=in_memory)
        opened = time.perf_counter() - began
        rates = [
            images_per_second(dataset.sources["train"], options.batch_size, options.seconds, n)
            for n in (1, 8)
        ]
        rows.append(
            (title, opened, rates, share_waiting(dataset, options.width, options.batch_size))
        )

    print(f"CIFAR-10, batches of {options.batch_size}, UNet of width {options.width}")
    print(common.machine())
    print(f"{'':<12}{'loader alone, images/s':>26}{'training loop':>26}{'opened in':>12}")
    print(f"{'source':<12}{'1 thread':>13}{'8 threads':>13}{'images/s':>13}{'waiting':>13}")
    for title, opened, rates, (waiting, rate) in rows:
        loader_rates = "".join(f"{r:>13,.0f}" for r in rates)
        print(f"{title:<12}{loader_rates}{rate:>13,.0f}{waiting:>13.2%}{opened:>10.1f} s")


if __name__ == "__main__":
    main()
