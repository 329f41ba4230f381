"""Training steps of ddpm_digits where the CPU is one device and where it is one for each core.

    PYTHONPATH=. python benchmarks/cpu_devices.py [--seconds=5] [--rounds=3]

One process for each, since JAX fixes its devices when it starts; they take turns within one run.
Speeds are medians of the rounds; a ratio is the median of the rounds' own.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

import launch
from benchmarks import common
from configs import ddpm_digits


def serve(seconds: float) -> None:
    """Prints images a second over `seconds` for each line that comes in."""
    import jax

    config = ddpm_digits.get_config()
    step, _ = common.training(config)
    done, found = step(0)
    jax.block_until_ready(found)
    for _ in sys.stdin:
        first, start = done, time.monotonic()
        while time.monotonic() - start < seconds:
            done, found = step(done)
            jax.block_until_ready(found)
        images = (done - first) * config.train.batch_size
        print(images / (time.monotonic() - start), flush=True)


def main() -> None:
    """Prints a row for each number of devices."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.seconds)
        return
    counts = (1, launch.cpu_devices(ddpm_digits.get_config().train.batch_size))
    command = [sys.executable, __file__, "--serve", f"--seconds={options.seconds}"]
    children = {
        n: subprocess.Popen(
            command,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(n)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in counts
    }
    found: dict[int, list[float]] = {n: [] for n in counts}
    for i in range(options.rounds + 1):
        for n, child in children.items():
            print("go", file=child.stdin, flush=True)
            speed = float(child.stdout.readline())
            if i:  # the first round waits for compilation, of both
                found[n].append(speed)
    for child in children.values():
        child.stdin.close()
        child.wait()
    print(f"ddpm_digits on {common.machine()}")
    for n, speeds in found.items():
        ratios = [a / b for a, b in zip(speeds, found[1], strict=True)]
        speed, ratio = statistics.median(speeds), statistics.median(ratios)
        print(f"  {n} device(s): {speed:6.0f} images/s, {ratio:.2f} times one device")


if __name__ == "__main__":
    main()
