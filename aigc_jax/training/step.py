"""One training step over a family's phases: differentiate, update, skip the non-finite, average.

Everything here is a plain function of arrays that a test can call without jit.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from aigc_jax import streams
from aigc_jax.family import Batch, Family, Phase, View
from aigc_jax.training.microbatches import value_and_grad


@flax.struct.dataclass
class TrainState:
    """All that a run is: saved whole, restored whole.

    Attributes:
      step: int32 scalar, steps done.
      key: typed PRNG key of the run; never changes, each step folds its number in.
      params, extra: as in `Family.init`.
      opt: {player: optimizer state}.
      ema: {player: averaged parameters} for the family's averaged players.
      averages: {name: the same by another average}; {} where a run keeps only one.
      skipped: int32 scalar, updates left out because something was not finite.
      skipped_in_row: int32 scalar, consecutive steps with such an update, or such an average.
    """

    step: jax.Array
    key: jax.Array
    params: Any
    extra: Any
    opt: Any
    ema: Any
    averages: Any
    skipped: jax.Array
    skipped_in_row: jax.Array


@flax.struct.dataclass
class Metrics:
    """What steps report, as one array, which costs the host one transfer.

    Attributes:
      values: float32 [steps, names].
      names: of its columns, in order.
    """

    values: jax.Array
    names: tuple[str, ...] = flax.struct.field(pytree_node=False)

    def rows(self) -> list[dict[str, float]]:
        """{name: value} of each step; waits for them."""
        return [dict(zip(self.names, row, strict=True)) for row in np.asarray(self.values).tolist()]


class Recipe(NamedTuple):
    """What stays the same over a run.

    Attributes:
      family: the family.
      optimizers: {player: optax transformation}.
      ema_decay: step (int32 scalar, steps done before this one) -> EMA decay of this step.
      averages: {name of a further average: step, as above -> share of the new parameters in it}.
      prepare: (batch as loaded, {domain: key}) -> batch as the losses see it: in the model's
        range, augmented. The domains are "x" and "other".
      microbatches: parts of a batch whose gradients are computed one after the other.
    """

    family: Family
    optimizers: Mapping[str, optax.GradientTransformation]
    ema_decay: Callable[[jax.Array], jax.Array]
    averages: Mapping[str, Callable[[jax.Array], jax.Array]]
    prepare: Callable[[Batch, Mapping[str, jax.Array]], Batch]
    microbatches: int = 1


def init_state(recipe: Recipe, init_key: jax.Array, run_key: jax.Array) -> TrainState:
    """State at step 0 from the two keys of `streams.init`."""
    params, extra = recipe.family.init(init_key)

    # Arrays of their own: a donated state must not hold one buffer twice.
    def copied() -> dict[str, Any]:
        return {p: jax.tree.map(jnp.copy, params[p]) for p in recipe.family.averaged}

    return TrainState(
        step=jnp.zeros((), jnp.int32),
        key=run_key,
        params=params,
        extra=extra,
        opt={player: tx.init(params[player]) for player, tx in recipe.optimizers.items()},
        ema=copied(),
        averages={name: copied() for name in recipe.averages},
        skipped=jnp.zeros((), jnp.int32),
        skipped_in_row=jnp.zeros((), jnp.int32),
    )


def active_phases(family: Family, step: int) -> tuple[int, ...]:
    """Indices of the phases that run at `step`: static, so each distinct set is traced once."""
    return tuple(i for i, phase in enumerate(family.phases) if step % phase.every == 0)


def update(
    phase: Phase,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    constants: Any,
    batch: Batch,
    key: jax.Array,
    parts: int = 1,
) -> tuple[TrainState, dict[str, jax.Array], jax.Array]:
    """Moves one player; returns state, metrics, and whether all that it computed was finite.

    That is the loss, the gradients, and what parameters and `extra` became. If one of them was not,
    the state comes back as it was.
    """
    player = phase.player

    def loss_of(own: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, tuple[dict, Any]]:
        params = {**state.params, player: own}
        view = View(params, state.ema, state.extra, constants, state.step)
        return phase.loss(view, batch, key)

    (loss, (metrics, extra)), grads = value_and_grad(
        loss_of, state.params[player], batch, key, parts
    )
    grad_norm = jax.named_scope("optimizer")(optax.tree.norm)(grads)
    params, opt = optimized(optimizer, grads, state.opt[player], state.params[player])
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & all_finite((params, extra))

    @jax.named_scope("optimizer")
    def keep(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

    state = state.replace(
        params={**state.params, player: keep(params, state.params[player])},
        extra=keep(extra, state.extra),
        opt={**state.opt, player: keep(opt, state.opt[player])},
    )
    prefix = phase.name or player
    metrics = {"loss": loss, "grad_norm": grad_norm} | metrics
    return state, {f"{prefix}/{name}": value for name, value in metrics.items()}, finite


@jax.named_scope("optimizer")  # by these names `kinds.py` knows what a step's time goes to
def optimized(
    optimizer: optax.GradientTransformation, grads: Any, opt: Any, params: Any
) -> tuple[Any, Any]:
    """Parameters after an update, and the optimizer's new state."""
    updates, opt = optimizer.update(grads, opt, params)
    return optax.apply_updates(params, updates), opt


@jax.named_scope("ema")
def averaged(averages: Any, params: Any, share: jax.Array) -> dict[str, Any]:
    """{player: average} with a share of the new parameters of each averaged player."""
    return {
        player: optax.incremental_update(params[player], average, share)
        for player, average in averages.items()
    }


@jax.named_scope("optimizer")
def all_finite(tree: Any) -> jax.Array:
    """Whether all floating values of a tree are finite, and so is their squares' sum (bool scalar).

    A value above 1.8e19 in float32 is as lost as one that is infinite.
    """
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.isfinite(optax.tree.norm(leaves))


def train_step(
    recipe: Recipe, active: tuple[int, ...], state: TrainState, constants: Any, batch: Batch
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step: the active phases in order, then the averages.

    Args:
      recipe: what stays the same over the run (static).
      active: phase indices from `active_phases` (static).
      state: the state; its `step` and `key` fix all randomness of the step.
      constants: frozen networks, as in `View.constants`.
      batch: leaves [batches_per_step, B, ...] as loaded.
    """
    family = recipe.family
    key = streams.step(state.key, state.step)

    def prepared(j: int) -> Batch:
        own = {
            name: streams.augmentation(key, j, domain) for domain, name in enumerate(("x", "other"))
        }
        return recipe.prepare(jax.tree.map(lambda x: x[j], batch), own)

    batches = [prepared(j) for j in range(family.batches_per_step)]
    metrics, healthy, skipped = {}, jnp.bool_(True), state.skipped
    for i in active:
        phase = family.phases[i]
        state, phase_metrics, finite = update(
            phase,
            recipe.optimizers[phase.player],
            state,
            constants,
            batches[i % family.batches_per_step],
            streams.phase(key, i),
            recipe.microbatches,
        )
        metrics |= phase_metrics
        healthy &= finite
        skipped += 1 - finite.astype(jnp.int32)
    ema = averaged(state.ema, state.params, 1 - recipe.ema_decay(state.step))
    averages = {
        name: averaged(state.averages[name], state.params, share(state.step))
        for name, share in recipe.averages.items()
    }
    healthy &= all_finite((ema, averages))
    state = state.replace(
        step=state.step + 1,
        ema=ema,
        averages=averages,
        skipped=skipped,
        skipped_in_row=jnp.where(healthy, 0, state.skipped_in_row + 1),
    )
    return state, metrics | {
        "skipped": state.skipped,
        "skipped_in_row": state.skipped_in_row,
    }


def train_steps(
    recipe: Recipe,
    active: tuple[int, ...],
    state: TrainState,
    constants: Any,
    resident: Mapping[str, jax.Array],
    feed: Batch,
) -> tuple[TrainState, Metrics]:
    """Steps of the same phases, as many as the feed is long, one after the other in one program.

    Not for convolutions on a CPU: their gradients are tens of times slower in a loop, and their
    last bits are others (findings/xla_cpu_convolution_gradient_in_loop.sh).

    Args:
      recipe, active, state, constants: as of `train_step`.
      resident: columns [N, ...] of all training data; {} where the feed holds examples.
      feed: leaves [steps, batches_per_step, B, ...], examples as loaded; or int32
        [steps, batches_per_step, B], their rows in `resident`, by domain ("x", "other").
    """

    def one(state: TrainState, own: Batch) -> tuple[TrainState, Metrics]:
        batch = own
        if resident:  # labels go with the examples of their domain, "x"
            batch = {name: column[own.get(name, own["x"])] for name, column in resident.items()}
        state, found = train_step(recipe, active, state, constants, batch)
        names = tuple(sorted(found))
        return state, Metrics(jnp.stack([jnp.float32(found[name]) for name in names]), names)

    if len(jax.tree.leaves(feed)[0]) == 1:  # a loop of one step is as slow
        state, metrics = one(state, jax.tree.map(lambda x: x[0], feed))
        return state, metrics.replace(values=metrics.values[None])
    return jax.lax.scan(one, state, feed)
