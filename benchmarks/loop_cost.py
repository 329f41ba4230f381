"""Microseconds that the training loop costs the host for each step, of one step a dispatch.

    PYTHONPATH=.:tests python benchmarks/loop_cost.py

A model of a few hundred parameters is trained by the whole loop (order of the data, their way to
the devices, the meter), and its compiled step is called again and again with one batch that lies on
the device, in turns. Nothing is evaluated, drawn or saved between. Of each the fastest stretch of a
thousand steps counts, since other work on the machine only slows it; the difference is the loop's.
"""

import argparse
import json
import pathlib
import tempfile
import time

import jax
import toys

from aigc_jax.data import feed as feeds
from aigc_jax.training import sharding
from aigc_jax.training.step import active_phases
from benchmarks import common

STRETCH = 1000  # steps
ROWS = 2048  # examples: 128 steps an epoch


def looped(settings: dict[str, object]) -> float:
    """Seconds a step of a whole run."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder) / "run"
        toys.train(workdir, "one", settings, toys.dataset(ROWS))
        rows = [json.loads(row) for row in (workdir / "metrics.jsonl").read_text().splitlines()]
    size = toys.config("one", settings)["train"]["batch_size"]
    return size / max(row["time/images_per_second"] for row in rows if "net/loss" in row)


def bare(settings: dict[str, object], stretches: int) -> float:
    """Seconds a step of its compiled program alone."""
    config, family = toys.config("one", settings), toys.FAMILIES["one"]()
    recipe, mesh = toys.recipe_of(family, config), sharding.make_mesh()
    target = sharding.abstract_state(recipe, mesh, "replicated")
    state, run = (
        sharding.new_state(recipe, target, 0),
        sharding.compile_steps(recipe, mesh, target, {}),
    )
    plan = {"batch_size": config["train"]["batch_size"], "seed": 0, "batches_per_step": 1}
    plan |= {"process_index": 0, "process_count": 1}
    columns, feed = feeds.opened(toys.dataset(ROWS).sources["train"], 0, **plan)
    resident = sharding.place(columns, mesh)
    given = sharding.put(mesh, feed.take(0, 1), axis=2)
    active, found = active_phases(family, 0), []
    for _ in range(stretches):
        began = time.perf_counter()
        for _ in range(STRETCH):
            state, metrics = run(active, state, {}, resident, given)
        jax.block_until_ready((state, metrics))
        found.append((time.perf_counter() - began) / STRETCH)
    return min(found)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stretches", type=int, default=5)
    options = parser.parse_args()
    settings = {
        "train.steps": STRETCH * options.stretches,
        "log": {"every": STRETCH, "eval_every": 0, "sample_every": 0, "samples": 4}
        | {"first_sample": 0},
        "checkpoint": {"every": 0, "keep": 1, "best": "", "best_mode": "min"},
    }
    print("| bare step, us | through the loop, us | the loop's own, us |\n|---|---|---|")
    for _ in range(options.rounds):
        step, whole = bare(settings, options.stretches) * 1e6, looped(settings) * 1e6
        print(f"| {step:.0f} | {whole:.0f} | {whole - step:.0f} |", flush=True)
    print(f"batches of {toys.config()['train']['batch_size']}; {common.machine()}")


if __name__ == "__main__":
    main()
