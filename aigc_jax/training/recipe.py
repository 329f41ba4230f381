"""What stays the same over a run, from plain settings: optimizers, average, augmentation."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from aigc_jax import modalities
from aigc_jax.checks import arguments
from aigc_jax.errors import SettingError
from aigc_jax.family import Batch, DataSpec, Family
from aigc_jax.training import optimizers
from aigc_jax.training.ema import ema_decay, settings_of, shares
from aigc_jax.training.step import Recipe


def recipe(
    family: Family,
    spec: DataSpec,
    *,
    batch_size: int,
    optimizer: Mapping[str, Any],
    ema: Mapping[str, Any],
    augment: Mapping[str, Any],
    microbatches: int = 1,
) -> Recipe:
    """The recipe of a run.

    Args:
      family, spec: what is trained, and its data.
      batch_size: global.
      optimizer: of all players, or {player: settings}; see `optimizers.per_player`.
      ema: see `ema.Settings`.
      augment: settings of the modality's `augment`.
      microbatches: see `Recipe`.

    Raises:
      ValueError: an unknown key of these, or a value that cannot be; parts of a batch where they
        do not divide it, or where what a model learns is no mean over examples.
    """
    averages = settings_of(ema)
    if not family.averaged and (averages.others or averages.snapshot_every):
        raise SettingError(
            "this family keeps no averages: set ema.others=() and ema.snapshot_every=0"
        )
    for field in spec.fields.values():
        run = modalities.of(field.kind).augment
        settings = arguments("augment", run, augment, given=("key", "x"))
        x = jax.ShapeDtypeStruct((1, *field.shape), jnp.float32)
        jax.eval_shape(partial(run, **settings), jax.random.key(0), x)  # so that it fails here
    if microbatches > 1:
        check_parts(family, batch_size, microbatches)
    updates: dict[str, float] = {}  # of each player, a step
    for phase in family.phases:
        updates[phase.player] = updates.get(phase.player, 0.0) + 1 / phase.every

    def prepare(batch: Batch, keys: Mapping[str, jax.Array]) -> Batch:
        return modalities.augment_batch(spec, batch, keys, dict(augment))

    return Recipe(
        family=family,
        optimizers=optimizers.per_player(optimizer, updates),
        ema_decay=partial(
            ema_decay, batch_size=batch_size, half_life=averages.half_life, ramp=averages.ramp
        ),
        averages=shares(averages, batch_size),
        prepare=prepare,
        microbatches=microbatches,
    )


def check_parts(family: Family, batch_size: int, parts: int) -> None:
    """Raises SettingError where a batch cannot be trained on in parts with the same result."""
    if batch_size % parts:
        divisors = [n for n in range(1, batch_size + 1) if batch_size % n == 0]
        near = sorted(divisors, key=lambda n: abs(n - parts))[:2]
        raise SettingError(
            f"train.microbatches={parts} does not divide train.batch_size={batch_size}; take "
            f"{' or '.join(map(str, sorted(near)))}"
        )
    kept = jax.eval_shape(family.init, jax.random.key(0))[1]
    if jax.tree.leaves(kept):
        raise SettingError(
            f"train.microbatches={parts}: this model keeps {', '.join(sorted(kept))} of whole "
            "batches, such as the statistics of a batch norm, and its parts have others: set "
            "train.microbatches=1, or settings of the network that keep none"
        )
