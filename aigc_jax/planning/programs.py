"""A training step and a batch of samples, lowered for devices that need not be there."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax import modalities, streams
from aigc_jax.family import Cond, DataSpec, Drawing, Family, Field, Variables
from aigc_jax.planning import cost, flops
from aigc_jax.planning.cost import Cost
from aigc_jax.training import sharding
from aigc_jax.training.step import Recipe, active_phases


class Part(NamedTuple):
    """A program before it is compiled, and how often it runs."""

    name: str
    lowered: Callable[[], Any]  # () -> `jax.stages.Lowered`
    flops: Callable[[], float]  # of all devices together
    often: float


def batch_of(family: Family, spec: DataSpec, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """What one step is fed, examples as stored: leaves [1, batches_per_step, B, ...]."""
    rows = (1, family.batches_per_step, size)
    batch = {
        name: jax.ShapeDtypeStruct((*rows, *field.shape), _stored(field))
        for name, field in spec.fields.items()
    }
    labels = {name: jax.ShapeDtypeStruct(rows, jnp.int32) for name in spec.conditions}
    return batch | labels


def _stored(field: Field) -> Any:
    """The dtype in which examples are fed."""
    return modalities.of(field.kind).to_stored(np.zeros((0, *field.shape), np.float32)).dtype


def training(
    recipe: Recipe, spec: DataSpec, mesh: Any, *, batch_size: int, mode: str
) -> list[Part]:
    """The programs of one training step: one for each set of phases that run together.

    Where phases are lazy, each program counts by its share of the steps.

    Args:
      batch_size: global.
      mode: "replicated" or "fsdp".
    """
    family = recipe.family
    target = sharding.abstract_state(recipe, mesh, mode)
    constants = jax.eval_shape(family.constants) if family.constants else {}
    constants = sharding.laid_out(constants, mesh, mode)
    step = sharding.compile_steps(recipe, mesh, target, constants)
    batch = batch_of(family, spec, batch_size)
    period = math.lcm(*(phase.every for phase in family.phases))
    shares = Counter(active_phases(family, i) for i in range(period))

    def part(active: tuple[int, ...]) -> Part:
        given = (active, target, constants, {}, batch)
        named = "+".join(family.phases[i].name or family.phases[i].player for i in active)
        return Part(
            named,
            lambda: step.lower(*given),
            lambda: flops.count(partial(step, active), *given[1:]),
            shares[active] / period,
        )

    return [part(active) for active in shares]


def sampling(family: Family, mesh: Any, *, count: int, mode: str) -> list[Part]:
    """The programs of one batch of samples: start, one step, finish.

    `Driver` loops over the step, on an accelerator within one program; counted outside of a loop,
    nothing depends on how a cost model counts loops.

    Args:
      count: samples at a time, a multiple of the devices.
    """
    drawing, given = family.drawing, abstract_variables(family, mesh, mode)
    keys = jax.eval_shape(streams.sample, streams.samples(0), jnp.zeros(count, jnp.uint32))
    keys = _split(keys, mesh)
    cond: Cond = {
        name: jax.ShapeDtypeStruct((count, *field.shape), jnp.int32, sharding=sharding.split(mesh))
        for name, field in drawing.conditions.items()
        if name == "label"
    }
    start = jax.jit(drawing.start).lower(given, keys, cond)
    parts = [_part("start", drawing.start, (given, keys, cond), 1)]
    carry = _carried(start, start.compile())
    if drawing.steps:
        index = jax.ShapeDtypeStruct((), jnp.int32)
        parts.append(_part("step", drawing.step, (given, carry, cond, index), drawing.steps))
    return [*parts, _part("finish", drawing.finish, (given, carry), 1)]


def _part(name: str, function: Callable[..., Any], given: tuple[Any, ...], often: float) -> Part:
    return Part(
        name,
        lambda: jax.jit(function).lower(*given),
        lambda: flops.count(function, *given),
        often,
    )


def abstract_variables(family: Family, mesh: Any, mode: str) -> Variables:
    """A trained model's variables as shapes: what a sampler takes."""
    params, extra = jax.eval_shape(family.init, streams.init(0)[0])
    variables = Variables(params, extra)
    if family.drawing.prepare and not family.drawing.fitted:
        prepared = jax.eval_shape(lambda known: family.drawing.prepare(known, None), variables)
        variables = variables._replace(prepared=prepared)
    return Variables(*(sharding.laid_out(part, mesh, mode) for part in variables))


def cannot_sample(drawing: Drawing | None) -> str:
    """Why a family's samples cannot be planned, in words; "" where they can."""
    if drawing is None:
        return "this family draws no samples"
    if drawing.prepare and drawing.fitted:
        return "what its samples start from is fitted to codes of its data"
    return ""


def compiled(part: Part, devices: int) -> Cost:
    """Compiles a program and reads what it costs each device."""
    return cost.of_compiled(part.lowered().compile(), part.flops(), devices)


def _split(tree: Any, mesh: Any) -> Any:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.split(mesh)), tree
    )


def _carried(lowered: Any, done: Any) -> Any:
    """What a program gives, as shapes that are laid out as it gives them."""
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        lowered.out_info,
        done.output_shardings,
    )


def parameters(family: Family) -> Mapping[str, int]:
    """{player: how many parameters}."""
    params, _ = jax.eval_shape(family.init, streams.init(0)[0])
    return {
        player: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
        for player, tree in params.items()
    }
