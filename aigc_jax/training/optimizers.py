"""Optax chains from plain arguments."""

from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax

from aigc_jax.checks import (
    BelowOne,
    NonNegative,
    OneOf,
    Positive,
    Whole,
    arguments,
    kinds,
    one_of,
    section,
    value,
)
from aigc_jax.errors import SettingError

OPTIMIZERS = ("adam", "adamw", "radam", "sgd")
SCHEDULES = ("constant", "linear", "cosine")
# Settings of `learning_rate`, flat beside those of `optimizer`.
OF_SCHEDULE = ("schedule", "warmup", "decay_steps", "decay_start")


def learning_rate(
    peak: NonNegative,
    *,
    schedule: Annotated[str, OneOf(SCHEDULES)] = "constant",
    warmup: Whole = 0,
    decay_steps: Whole = 0,
    decay_start: Whole = 0,
    end: NonNegative = 0.0,
) -> optax.Schedule:
    """Step -> learning rate: a linear warm-up to `peak`, then constant, linear or cosine to `end`.

    Args:
      peak: the learning rate as used; no scaling by batch or devices happens anywhere.
      schedule: "constant", "linear" or "cosine".
      warmup: steps of the warm-up; step i of it has rate peak * i / warmup (Ho et al. 2020).
      decay_steps: step at which the rate reaches `end` (not used by "constant").
      decay_start: step until which it stays at `peak` (not used by "constant").
      end: the rate from `decay_steps` on (not used by "constant").
    """
    one_of("optimizer.schedule", schedule, SCHEDULES)
    begin = max(warmup, decay_start)
    if schedule != "constant" and decay_steps <= begin:
        name = "warmup" if begin == warmup else "decay_start"
        raise SettingError(
            f"optimizer.decay_steps ({decay_steps}) must exceed optimizer.{name} ({begin}) "
            f"for schedule {schedule!r}"
        )
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, end, decay_steps - begin),
        "cosine": lambda: _cosine(peak, decay_steps - begin, end),
    }[schedule]()
    if begin > warmup:
        constant = optax.constant_schedule(peak)
        after = optax.join_schedules([constant, after], [begin - warmup])
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def _cosine(peak: float, steps: int, end: float) -> optax.Schedule:
    """From `peak` by half a cosine to `end` (Loshchilov & Hutter 2017, eq. 5, without restarts)."""
    share = optax.cosine_decay_schedule(1.0, steps)
    return lambda count: end + (peak - end) * share(count)


def optimizer(
    *,
    name: Annotated[str, OneOf(OPTIMIZERS)] = "adam",
    learning_rate: NonNegative | optax.Schedule,
    b1: BelowOne = 0.9,
    b2: BelowOne | optax.Schedule = 0.999,
    eps: Positive = 1e-8,
    momentum: BelowOne = 0.0,
    weight_decay: NonNegative = 0.0,
    clip: NonNegative = 0.0,
    skip_above: NonNegative = 0.0,
) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2015), AdamW (Loshchilov & Hutter 2019), RAdam (Liu et al. 2020) or SGD.

    Args:
      clip: bound on the global gradient norm, applied first; 0 switches it off.
      skip_above: a step whose global gradient norm is above this moves nothing, as in VDVAE (Child
        2020, arXiv:2011.10650); 0 switches it off.
      momentum: of SGD; b1, b2, eps: of all but SGD, b2 a number or, of Adam, a schedule too;
        weight_decay: of AdamW.
    """
    one_of("optimizer.name", name, OPTIMIZERS)
    if name != "adamw" and weight_decay:
        raise SettingError(f"optimizer.weight_decay needs optimizer.name='adamw', not {name!r}")
    if callable(b2) and name != "adam":
        raise SettingError(f"optimizer.b2_end needs optimizer.name='adam', not {name!r}")
    adam = optax.inject_hyperparams(optax.adam) if callable(b2) else optax.adam
    rule = {
        "adam": lambda: adam(learning_rate, b1=b1, b2=b2, eps=eps),
        "adamw": lambda: optax.adamw(
            learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay
        ),
        "radam": lambda: optax.radam(learning_rate, b1=b1, b2=b2, eps=eps),
        "sgd": lambda: optax.sgd(learning_rate, momentum=momentum or None),
    }[name]()
    # A chain without clipping too, so that a run can go on from a checkpoint with or without it.
    rule = optax.chain(optax.clip_by_global_norm(clip) if clip else optax.identity(), rule)
    return skipping(rule, skip_above) if skip_above else rule


def skipping(rule: optax.GradientTransformation, limit: float) -> optax.GradientTransformation:
    """`rule`, but nothing moves, nor does its state, where the gradient norm is above `limit`."""

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        taken = optax.tree.norm(grads) <= limit
        updates, new = rule.update(grads, state, params)
        updates = jax.tree.map(lambda u: jnp.where(taken, u, 0.0), updates)
        return updates, jax.tree.map(lambda n, o: jnp.where(taken, n, o), new, state)

    return optax.GradientTransformation(rule.init, update)


def per_player(
    settings: Mapping[str, Any], updates: Mapping[str, float]
) -> dict[str, optax.GradientTransformation]:
    """{player: optimizer} from one setting for all players, or from {player: setting}.

    A setting holds the arguments of `optimizer` and, flat beside them, of `learning_rate`, whose
    `end` is "learning_rate_end"; "b2_end", where not 0, moves b2 there over the same steps.

    Args:
      updates: {player: its updates in a step of the run}, 5 of a critic that moves five times.
        Optax counts updates, a config's schedules count steps.
    """
    value("optimizer", settings, Mapping)
    ends = {"learning_rate_end": kinds(learning_rate)["end"], "b2_end": kinds(optimizer)["b2"]}
    beside = kinds(learning_rate, OF_SCHEDULE) | ends
    own = updates.keys() & settings.keys()
    if own and own != updates.keys():
        raise SettingError(f"optimizer names {sorted(own)} but not {sorted(updates.keys() - own)}")
    if own:
        section("optimizer", settings, dict.fromkeys(updates, Mapping))

    def build(player: str) -> optax.GradientTransformation:
        name, given = (f"optimizer.{player}", settings[player]) if own else ("optimizer", settings)
        setting = arguments(name, optimizer, given, beside=beside)
        schedule = {k: setting.pop(k) for k in OF_SCHEDULE if k in setting}
        ends = {k: setting.pop(f"{k}_end", 0.0) for k in ("learning_rate", "b2")}

        def of_updates(peak: float, **changes: Any) -> optax.Schedule:
            of_steps = learning_rate(peak, **schedule | changes)
            return lambda count: of_steps(count / updates[player])

        rate = of_updates(setting.pop("learning_rate"), end=ends["learning_rate"])
        if ends["b2"]:
            if "b2" not in setting or schedule.get("schedule", "constant") == "constant":
                raise SettingError(
                    f"{name}.b2_end needs {name}.b2, and a schedule linear or cosine"
                )
            setting["b2"] = of_updates(setting["b2"], warmup=0, end=ends["b2"])
        return optimizer(learning_rate=rate, **setting)

    return {player: build(player) for player in updates}
