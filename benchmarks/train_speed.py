"""Training steps here, in eager PyTorch and compiled by it, turn and turn about in one run.

    PYTHONPATH=. python benchmarks/train_speed.py [--configs=vae_mnist,ddpm_cifar:bf16@512,...]
        [--sides=ours,auto,eager,compiled] [--rounds=5] [--seconds=1] [--json=FILE] [--profile=DIR]

A config is NAME[:VARIANT][@BATCH]. Images are noise that lies on the device on all sides, so that
no data set is needed. A step is the whole of it: bytes to floats, augmentation, forward, backward,
clipping, the optimizer, an average of the weights; here the check that all is finite comes on top.
`ours` is one step a dispatch, `auto` as many as the loop chooses where that is more. On a CPU both
have the same cores, `--threads`, and ours is as many devices as a run would make of them; on a GPU
PyTorch has channels last and TF32, as XLA has. Times are medians of the rounds; a ratio is the
median of the rounds' own, to eager PyTorch. A side that cannot run says why, and the rest goes on.
`--profile` puts a trace of ten of our steps there, and prints what their time goes to.
"""

import argparse
import json
import math
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import launch
from benchmarks import common

# One or two of each family, for which a CPU takes less than a second a step.
ON_CPU = "vae_mnist,vae_mnist:conv,gan_digits,gan_mnist:non_saturating,ddpm_digits"
ON_GPU = (
    f"{ON_CPU},ddpm_cifar:bf16@512,dcgan_celeba64:bf16,r3gan_cifar,vqvae_cifar,hvae_cifar:small"
)
SIDES = ("ours", "auto", "eager", "compiled")


class Side(NamedTuple):
    """One that takes part: at least so many steps -> how many it made; waits for them."""

    run: Callable[[int], int]
    size: int
    finish: Callable[[], None] = lambda: None


def ours(config: Any, dispatch: int, folder: str | None) -> Side:
    """This package's training."""
    import jax

    from aigc_jax.training.profile import Profiler, Span

    profiler = Profiler(Span(sys.maxsize, sys.maxsize), pathlib.Path(folder)) if folder else None
    step, size = common.training(config, dispatch, profiler)
    i = 0

    def run(least: int) -> int:
        nonlocal i
        first, found = i, None
        while i - first < least:
            i, found = step(i)
        jax.block_until_ready(found)
        return i - first

    def finish() -> None:
        if profiler:
            profiler.wanted = Span(i + 1, i + 11)
            run(12)
            profiler.close()

    return Side(run, size, finish)


def theirs(config: Any, device: str, compiled: bool) -> Side:
    """PyTorch's."""
    import torch

    from benchmarks import peers

    torch.manual_seed(0)
    wrap = torch.compile if compiled else lambda call: call
    step, size = peers.peer(config, common.images_of(config), device, wrap)

    def run(least: int) -> int:
        for _ in range(least):
            step()
        if device == "cuda":
            torch.cuda.synchronize()
        return least

    return Side(run, size)


def made(name: str, config: Any, options: argparse.Namespace) -> Side:
    """A side that has made its first steps, and so has compiled."""
    if name in ("ours", "auto"):
        folder = options.profile if name == "ours" else None
        side = ours(config, 1 if name == "ours" else 0, folder)
    else:
        side = theirs(config, options.device, compiled=name == "compiled")
    side.run(max(lazy(config) + 1, 3))
    side.run(3)
    return side


def lazy(config: Any) -> int:
    """Steps after which a config's steps repeat."""
    return config.gan.penalty.every if "gan" in config and "penalty" in config.gan else 1


def measured(config: Any, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields {"parameters", "ms": {side: ms of a step in each round, or why there are none}}.

    Of all sides but `compiled` first, since its compilation may outlast the time that there is, and
    then of all of them anew.
    """
    asked = options.sides.split(",")
    stages = [[name for name in asked if name != "compiled"], ["compiled"] * ("compiled" in asked)]
    sides: dict[str, Side] = {}
    notes: dict[str, str] = {}
    for stage in filter(None, stages):
        for name in stage:
            if name == "auto" and options.device == "cpu":
                notes[name] = "on a CPU the loop makes one step a dispatch: see ours"
                continue
            try:
                sides[name] = made(name, config, options)
            except Exception as error:  # of any library: the other sides go on
                notes[name] = f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]
        sizes = {name: side.size for name, side in sides.items()}
        if len(set(sizes.values())) > 1:
            raise SystemExit(f"not the same networks: {sizes} parameters")
        ms = interleaved(sides, lazy(config), options)
        order = {name: ms.get(name, notes.get(name)) for name in asked if name in {*ms, *notes}}
        yield {"parameters": next(iter(sizes.values()), 0), "ms": order}
        if stage is stages[0]:
            for side in sides.values():
                side.finish()


def interleaved(
    sides: dict[str, Side], cycle: int, options: argparse.Namespace
) -> dict[str, list[float]]:
    """{side: ms of a step in each round}, rounds being whole cycles."""
    counts = {}
    for name, side in sides.items():
        start = time.perf_counter()
        steps = side.run(cycle)
        each = (time.perf_counter() - start) / steps
        counts[name] = max(round(options.seconds / each / cycle), 1) * cycle
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            steps = side.run(counts[name])
            found[name].append(1e3 * (time.perf_counter() - start) / steps)
    return found


def rows(name: str, batch: int, ms: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each side, with its ratio to eager PyTorch."""
    out = []
    base = ms.get("eager")
    for side, times in ms.items():
        row: dict[str, Any] = {"config": name, "batch": batch, "side": side}
        if isinstance(times, str):
            out.append(row | {"note": times})
            continue
        middle = statistics.median(times)
        row |= {"ms": middle, "images_per_second": 1e3 * batch / middle, "rounds_ms": times}
        if isinstance(base, list):
            ratios = [b / t for b, t in zip(base, times, strict=True)]
            row |= {"times_eager": statistics.median(ratios), "range": [min(ratios), max(ratios)]}
        out.append(row)
    return out


def line(row: dict[str, Any]) -> str:
    """Of the table."""
    head = f"| {row['config']} | {row['batch']} | {row['side']} |"
    if "note" in row:
        return f"{head} – | – | {row['note']} |"
    ratio = "–"
    if "times_eager" in row:
        low, high = row["range"]
        ratio = f"{row['times_eager']:.2f} ({low:.2f} to {high:.2f})"
    return f"{head} {row['ms']:.3f} | {row['images_per_second']:,.0f} | {ratio} |"


def prepared(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options, once threads are chosen, which both libraries read when they start."""
    cores = sorted(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configs", default="")
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="a round of each side")
    parser.add_argument("--threads", type=int, default=len(cores), help="of each side, on a CPU")
    parser.add_argument(
        "--set", action="append", default=[], help="KEY=VALUE of configs that have it"
    )
    parser.add_argument("--json", default="", help="file for all of it")
    parser.add_argument("--profile", default=None, help="folder for traces of our steps")
    options = parser.parse_args(arguments)
    if not 1 <= options.threads <= len(cores):
        parser.error(f"--threads lies in 1..{len(cores)}, the cores that this process may use")
    # XLA takes as many threads as there are cores, and has no option: so for both sides.
    os.sched_setaffinity(0, cores[: options.threads])
    names = (options.configs or ON_CPU).split(",")
    batches = [common.config_of(name, options.set).train.batch_size for name in names]
    devices = launch.cpu_devices(math.gcd(*batches))  # as a run would have
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(devices))
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs room beside it
    import jax

    options.device = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    try:
        import torch
    except ImportError:
        return options  # its sides say so
    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    return options


def main() -> None:
    """Measures and prints a table, config by config."""
    options = prepared()
    import jax

    versions = {"jax": jax.__version__}
    if "torch" in sys.modules:
        versions["torch"] = sys.modules["torch"].__version__
    device = jax.devices()[0].device_kind
    about = {"machine": common.machine(), "device": device, "threads": options.threads}
    result: dict[str, Any] = about | versions | {"rows": []}
    print(f"{about['machine']}; {device}; {options.threads} threads a side; {versions}\n")
    print("| config | batch | side | ms a step | images/s | times eager PyTorch |")
    print("|---|---|---|---|---|---|", flush=True)
    names = options.configs or (ON_CPU if options.device == "cpu" else ON_GPU)
    for name in names.split(","):
        config = common.config_of(name, options.set)
        before, new = result["rows"], []
        for found in measured(config, options):
            new = rows(name, config.train.batch_size, found["ms"])
            result["rows"] = before + [row | {"parameters": found["parameters"]} for row in new]
            if options.json:
                pathlib.Path(options.json).write_text(json.dumps(result, indent=1))
        print(*map(line, new), sep="\n", flush=True)


if __name__ == "__main__":
    main()
