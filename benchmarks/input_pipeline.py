"""Images a second that the loader delivers by itself, for CIFAR-10 in memory and streamed.

python benchmarks/input_pipeline.py [--data_dir=DIR] [--batch_size=128] [--seconds=5]
"""

import argparse
import os
import pathlib
import platform
import time

from aigc_jax.data import datasets, loader


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


def machine() -> str:
    """The processor's name and how many of its cores this process may use."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {len(os.sched_getaffinity(0))} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", help="where TFDS keeps cifar10")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=5.0, help="to measure each row for")
    options = parser.parse_args()

    print(f"CIFAR-10, batches of {options.batch_size}, {machine()}")
    print(f"{'source':<12}{'threads':>8}{'images/s':>12}{'opened in':>12}")
    for title, in_memory in (("in memory", True), ("streamed", False)):
        began = time.perf_counter()
        dataset = datasets.load(
            "cifar10", data_dir=options.data_dir, in_memory=in_memory, splits=["train"]
        )
        opened = time.perf_counter() - began
        for num_threads in (1, 8):
            rate = images_per_second(
                dataset.sources["train"], options.batch_size, options.seconds, num_threads
            )
            print(f"{title:<12}{num_threads:>8}{rate:>12,.0f}{opened:>10.1f} s", flush=True)


if __name__ == "__main__":
    main()
