"""What benchmarks share: threads, PyTorch beside us, a training step as it is run, the machine.

Nothing here imports jax before it is called: threads and platform are chosen before XLA starts.
"""

import argparse
import os
import pathlib
import platform
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


def machine() -> str:
    """The processor's name and how many of its cores this process may use."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {len(os.sched_getaffinity(0))} cores"


def parse_against_torch(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options, with --threads for each side, after both sides were held to these on the CPU."""
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, default=cores, help="of each side")
    options = parser.parse_args()
    if not 1 <= options.threads <= cores:
        parser.error(f"--threads lies in 1..{cores}, the cores that this process may use")
    # XLA sizes its pool of threads by the cores it may use, and has no option: so for both sides.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    os.environ["JAX_PLATFORMS"] = "cpu"
    try:
        import torch
    except ImportError:
        parser.error("needs PyTorch to compare with: pip install -r requirements-test.txt")
    torch.set_num_threads(options.threads)
    return options


def training(
    config: Any, images: np.ndarray, conditions: Mapping[str, Any]
) -> tuple[Callable[[int], Any], int]:
    """Training on one batch again and again, and how many parameters it moves.

    Args:
      config: of an experiment; its batch size becomes that of `images`.
      images: bytes [B, H, W, C].
      conditions: of the data; see `DataSpec`.

    Returns:
      (number of a step -> what is there after it, to be waited for; number of parameters).
    """
    import jax

    from aigc_jax import build
    from aigc_jax.commands import common
    from aigc_jax.family import DataSpec, Field
    from aigc_jax.training import sharding
    from aigc_jax.training.step import active_phases

    with config.unlocked():
        config.train.batch_size = len(images)
    spec = DataSpec({"x": Field("image", images.shape[1:])}, conditions, {})
    family = build.build(config, spec)
    plan, mesh = common.recipe_of(config, family, spec), sharding.make_mesh()
    target = sharding.abstract_state(plan, mesh, "replicated")
    state = sharding.new_state(plan, target, 0)
    run = sharding.compile_steps(plan, mesh, target, {})
    batch = {"x": np.repeat(images[None], family.batches_per_step, axis=0)[None]}

    def step(i: int) -> Any:
        nonlocal state
        placed = sharding.put(mesh, batch, axis=2)
        state, metrics = run(active_phases(family, i), state, {}, {}, placed)
        return state.params, metrics

    return step, sum(x.size for x in jax.tree.leaves(target.params))
