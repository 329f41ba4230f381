"""The training loop: evaluate, save, batch, step, log; killed at any point, it resumes there."""

import contextlib
import math
import pathlib
import signal
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from aigc_jax.data import augment, loader
from aigc_jax.data.datasets import Dataset
from aigc_jax.family import Family
from aigc_jax.training import environment, optimizers, rundir, sharding
from aigc_jax.training.checkpoint import Checkpoints
from aigc_jax.training.meter import Meter
from aigc_jax.training.observer import BETTER, Observer
from aigc_jax.training.step import Recipe, TrainState, active_phases, ema_decay
from aigc_jax.training.writers import Writer


def recipe(config: Mapping[str, Any], family: Family) -> Recipe:
    """What a config says about steps: optimizers, EMA, augmentation."""
    players = jax.eval_shape(family.init, jax.random.key(0))[0].keys()
    updates = {
        p: sum(1 / phase.every for phase in family.phases if phase.player == p) for p in players
    }
    batch_size = config["train"]["batch_size"]
    chosen = dict(config["augment"])

    def prepare(batch: Mapping[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        batch, keys = augment.floats(batch), (key, jax.random.fold_in(key, 1))
        for name, own in zip(augment.IMAGES, keys, strict=True):
            if name in batch:
                batch[name] = augment.augment(own, batch[name], **chosen)
        return batch

    return Recipe(
        family=family,
        optimizers=optimizers.per_player(config["optimizer"], updates),
        ema_decay=partial(ema_decay, batch_size=batch_size, **config["ema"]),
        prepare=prepare,
    )


def train(
    config: Mapping[str, Any],
    workdir: str | pathlib.Path,
    family: Family,
    dataset: Dataset,
    initial: Callable[[], tuple[Mapping[str, Any], Mapping[str, Any]]] | None = None,
    origin: Mapping[str, Any] | None = None,
) -> TrainState:
    """Trains until `train.steps`, resuming by itself what lies in `workdir`.

    Args:
      config: the experiment's config.
      workdir: folder of the run; gets config.json, spec.json, origin.json, metrics.jsonl,
        tensorboard/, samples/, restored/, evaluations/, checkpoints/ and best/.
      family: the built family.
      dataset: the open data set.
      initial: () -> ({player: parameters} to start from instead of random ones, {name: what of
        `extra` goes with them}), called by a new run only: one that resumes does not need what it
        once started from.
      origin: what origin.json shall say of the command, beside where and when it ran.

    Returns:
      The last state.

    Raises:
      RunMismatch: the folder holds a run with another config.
      NonFiniteError: see `train.max_skipped`.
      CheckpointError: a checkpoint could not be written, or none of those there could be read.
      ValueError: a setting that cannot work, found before anything is written.
    """
    workdir = pathlib.Path(workdir)
    settings, log, keep = config["train"], config["log"], config["checkpoint"]
    steps, batch_size = settings["steps"], settings["batch_size"]
    mesh = sharding.make_mesh()
    sharding.check_batch(batch_size, mesh)
    if log["sample_every"] and log["samples"] < 1:
        raise ValueError(f"log.samples is at least 1, not {log['samples']}; sample_every=0 is off")
    if keep["best_mode"] not in BETTER:
        raise ValueError(f"checkpoint.best_mode is min or max, not {keep['best_mode']!r}")
    plan = recipe(config, family)
    target = sharding.abstract_state(plan, mesh, settings["sharding"])
    run_step = sharding.compile_step(plan, mesh, target)
    parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(target.params))

    with contextlib.ExitStack() as stack:
        checkpoints = Checkpoints(workdir / "checkpoints", keep["keep"], clean=True)
        stack.callback(checkpoints.close)
        if checkpoints.steps():
            rundir.check_same(workdir, config)
        restored = checkpoints.restore(target)
        if restored and restored[1] >= steps:
            if jax.process_index() == 0:
                done = f"this run has done {restored[1]} of {steps} steps (train.steps)"
                print(f"{workdir}: nothing to do, {done}", flush=True)
            return restored[0]
        start = restored[1] if restored else 0
        batches = loader.batches(
            dataset.sources[config["data"]["train_split"]],
            batch_size=batch_size,
            seed=config["seed"],
            start=start,
            fresh=family.fresh,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        stack.callback(batches.close)
        given = initial() if initial and not restored else ({}, {})
        if jax.process_index() == 0:  # nothing can be wrong with the config any more
            rundir.write(workdir, "config.json", rundir.as_dict(config))
            rundir.write(workdir, "spec.json", dataset.spec._asdict())
            about = {**(origin or {}), "parameters": parameters}
            rundir.add_session(workdir, about, start, environment.describe())
        if restored:
            state = restored[0]
            checkpoints.set_aside_after(start)
        else:
            state = _from_weights(sharding.new_state(plan, target, config["seed"]), *given)

        writer = Writer(workdir, start, steps, batch_size)
        stack.callback(writer.close)
        writer.say(
            f"{workdir}: {'resuming at' if restored else 'starting at'} step {start} of {steps}, "
            f"{parameters:,} parameters, batch {batch_size} on {mesh.size} "
            f"{jax.default_backend()} device(s), {settings['sharding']}"
        )
        observer = Observer(config, workdir, family, dataset, mesh, writer)
        stack.callback(observer.close)
        meter = Meter(writer, batch_size, settings["max_skipped"], checkpoints)
        stopped = stack.enter_context(_stop_signal())

        def due(every: int, step: int) -> bool:
            # What was due at `start` was done before its checkpoint was written.
            return every > 0 and step > start and (step % every == 0 or step == steps)

        for step in range(start, steps + 1):
            stopping = stopped(step)
            if due(log["eval_every"], step):
                meter.flush(step)
                observer.keep_best(state, step, observer.evaluate(state, step))
            if due(log["sample_every"], step):
                meter.flush(step)
                observer.sample(state, step)
            if due(keep["every"], step) or (step > start and (step == steps or stopping)):
                meter.flush(step)
                checkpoints.save(step, state, {"config": rundir.as_dict(config)})
            if step == steps or stopping:
                break
            meter.lap()
            batch = sharding.put(mesh, next(batches), axis=1)
            meter.data_ready()
            with jax.transfer_guard("disallow"):
                state, metrics = run_step(active_phases(family, step), state, batch)
            meter.add(step + 1, metrics)
            writer.advance()
            if (step + 1) % log["every"] == 0:
                meter.flush(step + 1)
        checkpoints.wait()
        if step == steps:
            writer.say(f"done: step {step}, samples and checkpoints in {workdir}")
        else:
            writer.say(f"stopped by a signal at step {step}, saved; the same command resumes it")
    return state


def _from_weights(
    state: TrainState, initial: Mapping[str, Any], carried: Mapping[str, Any]
) -> TrainState:
    """The state with given parameters, their EMA the same, and what of `extra` goes with them."""

    def taken(own: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        def put(x: jax.Array, w: Any) -> jax.Array:
            return jax.device_put(np.asarray(w, x.dtype), x.sharding)

        new = {name: jax.tree.map(put, own[name], tree) for name, tree in given.items()}
        return {**own, **new}

    params, ema = taken(state.params, initial), dict(state.ema)
    for player in ema.keys() & initial.keys():
        ema[player] = jax.tree.map(lambda x: x + 0, params[player])  # buffers of its own
    return state.replace(params=params, ema=ema, extra=taken(state.extra, carried))


@contextlib.contextmanager
def _stop_signal() -> Iterator[Callable[[int], bool]]:
    """Yields step -> whether SIGTERM has come; with several processes, to any, agreed on by all."""
    if jax.process_count() > 1:  # jax.distributed watches for the signal itself
        yield multihost_utils.reached_preemption_sync_point
        return
    received = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append(True))
    try:
        yield lambda step: bool(received)
    finally:
        signal.signal(signal.SIGTERM, before)
