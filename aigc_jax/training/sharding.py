"""Devices: the one file that knows a mesh. `jit` over one axis, "data".

Batches are split over the axis; the state is replicated, or (FSDP, Rajbhandari et al. 2020) split
over the same axis. No loss and no network knows any of this, and no number depends on it.
"""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from aigc_jax import streams
from aigc_jax.checks import one_of
from aigc_jax.errors import SettingError
from aigc_jax.family import Phase, View
from aigc_jax.training.step import Recipe, TrainState, init_state, train_steps

MODES = ("replicated", "fsdp")
# Below this many elements a split saves less memory than its collectives cost.
MIN_SPLIT_SIZE = 2**14


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices (or those given) on one axis, "data", each process's side by side, in order.

    The loader and `sampling.batches` give process p the p-th part of a batch; `jax.make_mesh` would
    order the devices of a TPU by their links.
    """
    found = jax.devices() if devices is None else devices
    ordered = sorted(found, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(ordered), ("data",), axis_types=(AxisType.Auto,))


def check_batch(batch_size: int, mesh: Mesh, parts: int = 1) -> None:
    """Raises ValueError where the global batch, in its parts, does not divide over the devices."""
    n = mesh.size * parts
    if batch_size <= 0 or batch_size % n:
        lower = max(batch_size // n, 1) * n
        each = f" in {parts} parts each (train.microbatches)" if parts > 1 else ""
        raise SettingError(
            f"the global batch of {batch_size} does not divide over {mesh.size} devices{each}; "
            f"set train.batch_size to a multiple of {n}, such as {lower} or {lower + n}"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Array axis `axis` is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def state_sharding(mesh: Mesh, abstract: Any, mode: str = "replicated") -> Any:
    """Shardings of a tree of abstract arrays: replicated, or each big leaf split where it divides.

    Under "fsdp" a leaf's largest axis that the number of devices divides is split; parameters,
    optimizer state and EMA of one leaf have one shape, hence one layout.
    """
    one_of("train.sharding", mode, MODES)

    def of(leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        if mode == "replicated" or is_key or math.prod(leaf.shape) < MIN_SPLIT_SIZE:
            return replicated(mesh)
        axes = [a for a, size in enumerate(leaf.shape) if size % mesh.size == 0]
        return split(mesh, max(axes, key=lambda a: leaf.shape[a])) if axes else replicated(mesh)

    return jax.tree.map(of, abstract)


def abstract_state(recipe: Recipe, mesh: Mesh, mode: str) -> TrainState:
    """The state's shapes, dtypes and shardings, without computing it: what a restore aims at."""
    return laid_out(jax.eval_shape(partial(init_state, recipe), *streams.init(0)), mesh, mode)


def laid_out(abstract: Any, mesh: Mesh, mode: str = "replicated") -> Any:
    """A tree of abstract arrays with the shardings of `state_sharding`."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        state_sharding(mesh, abstract, mode),
    )


def place(tree: Any, mesh: Mesh, mode: str = "replicated") -> Any:
    """Host or device arrays on the devices of a mesh, laid out as a state's leaves are."""
    abstract = jax.eval_shape(lambda: tree)
    return jax.tree.map(jax.device_put, tree, state_sharding(mesh, abstract, mode))


def new_state(recipe: Recipe, target: TrainState, seed: int) -> TrainState:
    """State at step 0, laid out as `target`."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, target)
    return jax.jit(partial(init_state, recipe), out_shardings=shardings)(*streams.init(seed))


def compile_steps(recipe: Recipe, mesh: Mesh, target: TrainState, constants: Any) -> Callable:
    """(active, state, constants, resident, feed) -> (state, metrics): `train_steps`, jitted.

    The state is donated. `constants` and the columns of `resident` are on the devices, arguments of
    the program and no part of it.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, target)
    return jax.jit(
        partial(train_steps, gathering(recipe, target)),
        static_argnums=0,
        in_shardings=(
            shardings,
            jax.tree.map(lambda leaf: leaf.sharding, constants),
            replicated(mesh),
            split(mesh, 2),
        ),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=1,
    )


def gathering(recipe: Recipe, target: TrainState) -> Recipe:
    """The recipe whose losses see whole parameters where a state is split, as are their gradients.

    Without it the compiler splits convolutions as their kernels are, and passes pieces of maps
    around: of `ddpm_cifar` on 16 chips by some 6,000 messages a step. Gradients that are asked for
    in parts it computes in as many rounds, each of which reads the maps again.
    """

    def whole(x: jax.Array, laid_out: jax.ShapeDtypeStruct) -> jax.Array:
        own = laid_out.sharding
        if own.is_fully_replicated:
            return x
        return jax.lax.with_sharding_constraint(x, replicated(own.mesh))  # and so its gradient

    def seen(phase: Phase) -> Phase:
        def loss(view: View, batch: Any, key: jax.Array) -> Any:
            params = jax.tree.map(whole, view.params, target.params)
            ema = jax.tree.map(whole, view.ema, target.ema)
            return phase.loss(view._replace(params=params, ema=ema), batch, key)

        return phase._replace(loss=loss)

    phases = tuple(seen(phase) for phase in recipe.family.phases)
    return recipe._replace(family=recipe.family._replace(phases=phases))


def compile_replicas(
    recipe_of: Callable[[Mapping[str, jax.Array]], Recipe], mesh: Mesh
) -> Callable:
    """`train_steps` of several runs in one program, each on one device of the mesh.

    (active, states, numbers, constants, resident, feeds) -> (states, metrics): states, numbers and
    feeds, and the metrics' values, have a leading axis of runs, split over the devices. States are
    donated.

    recipe_of: {setting: number, of one run} -> its recipe.
    """

    def of_one(active: tuple[int, ...], constants: Any, resident: Any) -> Callable:
        def one(state: TrainState, numbers: Mapping[str, jax.Array], feed: Any) -> Any:
            return train_steps(recipe_of(numbers), active, state, constants, resident, feed)

        return one

    def run(active: Any, states: Any, numbers: Any, constants: Any, resident: Any, feeds: Any):
        runs, whole = PartitionSpec("data"), PartitionSpec()

        def here(states: Any, numbers: Any, feeds: Any, constants: Any, resident: Any) -> Any:
            return jax.vmap(of_one(active, constants, resident))(states, numbers, feeds)

        return jax.shard_map(
            here,
            mesh=mesh,
            in_specs=(runs, runs, runs, whole, whole),
            out_specs=runs,
            check_vma=False,
        )(states, numbers, feeds, constants, resident)

    return jax.jit(run, static_argnums=0, donate_argnums=1)


def stack(states: Sequence[TrainState], mesh: Mesh) -> TrainState:
    """States of as many runs as one, with a leading axis that is split over the devices."""
    sharding = split(mesh)
    return jax.tree.map(lambda *x: jax.device_put(jnp.stack(x), sharding), *states)


def new_states(recipe: Recipe, seeds: Sequence[int]) -> list[TrainState]:
    """States at step 0 of runs that differ in their seed, on the default device."""
    init = jax.jit(partial(init_state, recipe))
    return [init(*streams.init(seed)) for seed in seeds]


def put(mesh: Mesh, tree: Any, axis: int = 0) -> Any:
    """Host arrays of this process -> global arrays whose `axis` is split over all devices."""
    sharding = split(mesh, axis)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)  # one call for all of them
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree
    )


def fetch(tree: Any) -> Any:
    """Global arrays -> whole numpy arrays on every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def on_all(found: bool) -> bool:
    """Whether something was found on every process; called on all of them, free with one."""
    if jax.process_count() == 1:
        return found
    return bool(np.all(multihost_utils.process_allgather(np.array(found))))


def from_first(data: bytes) -> bytes:
    """Bytes of the first process on all of them, which have as many of their own."""
    if jax.process_count() == 1:
        return data
    own = np.frombuffer(data, np.uint8)
    return multihost_utils.broadcast_one_to_all(own).astype(np.uint8).tobytes()


def check_same(things: Mapping[str, Sequence[bytes | np.ndarray]]) -> None:
    """Raises SettingError where one of some things is not the same on every process.

    Args:
      things: {what to call it: what it is made of, on the host}; called on all processes.
    """
    if jax.process_count() == 1:
        return
    sums = np.zeros(len(things), np.uint32)
    for i, parts in enumerate(things.values()):
        for part in parts:
            part = part if isinstance(part, bytes) else np.ascontiguousarray(part)
            sums[i] = zlib.crc32(part, int(sums[i]))
    of_all = multihost_utils.process_allgather(sums)
    wrong = [name for name, column in zip(things, of_all.T, strict=True) if len(set(column)) > 1]
    if wrong:
        raise SettingError(
            f"the {jax.process_count()} processes of this run differ in {' and '.join(wrong)}: "
            "start the same command on each, with the same files"
        )


def check_on_first(check: Callable[[], None]) -> None:
    """Calls a check on the first process, which writes for all; every process raises what it found.

    Called on all of them, so that none waits for one that has stopped.

    Raises:
      ValueError: the check did.
    """
    _check(check, jax.process_index() == 0, "the first process says why nothing was done")


def check_on_all(check: Callable[[], None]) -> None:
    """Calls a check on every process, after all have come here; each raises what one has found.

    Raises:
      ValueError: the check did, on one of them.
    """
    on_all(True)
    _check(check, True, "another process says why nothing was done")


def _check(check: Callable[[], None], here: bool, elsewhere: str) -> None:
    found: ValueError | None = None
    if here:
        try:
            check()
        except ValueError as error:
            found = error
    fine = on_all(found is None)
    if found is not None:
        raise found
    if not fine:
        raise SettingError(elsewhere)
