"""What benchmarks share: the machine, configs without their data, a training step as it is run.

Nothing here imports jax before it is called: threads and platform are chosen before XLA starts.
"""

import ast
import functools
import importlib
import os
import pathlib
import platform
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def machine() -> str:
    """The processor's name and how many of its cores this process may use."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {len(os.sched_getaffinity(0))} cores"


SHAPES = {
    "digits": (8, 8, 1),
    "mnist": (28, 28, 1),
    "cifar10": (32, 32, 3),
    "celeb_a": (64, 64, 3),
    "folder": (64, 64, 3),
}
CLASSES = 10


def config_of(name: str, settings: Sequence[str] = ()) -> Any:
    """The config NAME[:VARIANT][@BATCH], with KEY=VALUE settings of which those that it has count.

    Whatever its data set, so that none is needed.
    """
    name, _, batch = name.partition("@")
    name, _, variant = name.partition(":")
    config = importlib.import_module(f"configs.{name}").get_config(variant)
    with config.unlocked():
        for key, _, value in (item.partition("=") for item in settings):
            *path, last = key.split(".")
            section = functools.reduce(lambda c, part: c.get(part, {}), path, config)
            if last in section:
                section[last] = ast.literal_eval(value)
        if batch:
            config.train.batch_size = int(batch)
    return config


def images_of(config: Any) -> np.ndarray:
    """A batch of noise in the shape of a config's images, bytes [B, H, W, C]."""
    shape = (config.train.batch_size, *SHAPES[config.data.name])
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def family_of(config: Any) -> tuple[Any, Any]:
    """(family, spec of images with labels) of a config."""
    from aigc_jax import build
    from aigc_jax.family import DataSpec, Field

    label = Field("label", (), CLASSES)
    spec = DataSpec({"x": Field("image", SHAPES[config.data.name])}, {"label": label}, {})
    return build.build(config, spec), spec


def training(
    config: Any, dispatch: int = 1, profiler: Any = None
) -> tuple[Callable[[int], tuple[int, Any]], int]:
    """Training on one batch of noise again and again, as the loop does with data in memory.

    Args:
      config: of an experiment with images.
      dispatch: steps of a program, 0 as many as the loop chooses.
      profiler: a `training.profile.Profiler` to run the steps.

    Returns:
      (number of a step -> a dispatch from it on: the number after it, and what is there then, to
      be waited for; number of parameters).
    """
    import jax

    from aigc_jax.commands import common, train
    from aigc_jax.training import loop, sharding
    from aigc_jax.training.step import active_phases

    family, spec = family_of(config)
    with config.unlocked():
        config.train.steps_per_dispatch = dispatch
    schedule = loop.dispatched(train.schedule(config), family, jax.default_backend())
    recipe, mesh = common.recipe_of(config, family, spec), sharding.make_mesh()
    target = sharding.abstract_state(recipe, mesh, config.train.sharding)
    state = sharding.new_state(recipe, target, 0)
    run = sharding.compile_steps(recipe, mesh, target, {})
    images, size = images_of(config), config.train.batch_size
    labels = np.arange(size, dtype=np.int32) % CLASSES
    resident = sharding.place({"x": images, "label": labels}, mesh)

    def plan(i: int) -> tuple[tuple[int, ...], int]:
        return active_phases(family, i), schedule.until_due(i)

    def step(i: int) -> tuple[int, Any]:
        nonlocal state
        active, count = plan(i)
        rows = np.broadcast_to(
            np.arange(size, dtype=np.int32), (count, family.batches_per_step, size)
        )
        feed = sharding.put(mesh, {"x": np.ascontiguousarray(rows)}, axis=2)
        if profiler:
            state, metrics = profiler.run(run, plan, i, state, {}, resident, feed)
        else:
            state, metrics = run(active, state, {}, resident, feed)
        return i + count, (state.params, metrics)

    return step, sum(x.size for x in jax.tree.leaves(target.params))
