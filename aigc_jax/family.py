"""The contract between a model family and everything that trains, samples or evaluates it.

A family is to the trainer what a `GradientTransformation` is to optax: a NamedTuple of pure
functions. A list of phases removes the difference between one optimizer and several, so GANs, VAEs
and diffusion models run through one step and one loop.

Shapes below: B examples in a batch, n samples, images [B, H, W, C] float32 in [-1, 1].
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

Params = Mapping[str, Any]  # {player: tree of arrays}
Extra = Mapping[
    str, Any
]  # what is neither parameter nor optimizer state: BatchNorm statistics, ...
# {"image": [B, H, W, C], "label": int32 [B] if the data has them, "other": [B, H, W, C], images of
# a second domain if there is one}
Batch = Mapping[str, jax.Array]
Loss = Callable[[Params, Extra, Batch, jax.Array], tuple[jax.Array, tuple[dict, Extra]]]


class Phase(NamedTuple):
    """One player's move within a step.

    Attributes:
      player: whose parameters move: "net", or "generator" / "discriminator".
      loss: (params, extra, batch, key) -> (scalar, ({metric: scalar}, extra)). It is differentiated
        with respect to `params[player]` alone, so no loss needs a `stop_gradient` between players.
      every: the phase runs when step % every == 0 (lazy regularisation).
      name: prefix of its metrics; the player's name where empty.
    """

    player: str
    loss: Loss
    every: int = 1
    name: str = ""


class Family(NamedTuple):
    """A model family as pure functions.

    Attributes:
      init: key -> (params, extra).
      phases: in the order in which they run within a step.
      sample: (params, extra, keys [n], cond) -> images [n, H, W, C] in [-1, 1]. Image i depends on
        keys[i] and cond[i] only. `cond` is {} or {"label": int32 [n]}. Compiles what it needs
        itself: do not jit it (a host loop is the faster sampler on a CPU). None for a family that
        draws nothing from noise.
      evaluate: (params, extra, batch, key) -> {name: [B]}, a value per example.
      averaged: players whose EMA is kept, checkpointed and sampled from.
      fresh: batches drawn per step; phase i sees batch i % fresh (n_critic updates on fresh data).
      num_classes: labels that `sample` takes in `cond`; 0 for a family that takes none.
      trajectory: like `sample`, with the number of frames as last argument -> [frames, n, H, W, C],
        how a sample comes to be; None where a family has no such thing.
      restore: (params, extra, batch, key) -> {name: (given [B, H, W, C], restored [B, H, W, C])}
        images in [-1, 1]: what the model makes of damaged or encoded images, to be compared with
        batch["image"], or with a third image beside the two; None where a family has no such thing.
      likelihood: (params, extra, batch, key) -> {name: [B]}, like `evaluate`, but too dear for a
        schedule: a whole bound, an importance-weighted one. Compiles what it needs itself; None
        where a family has no such thing.
      codes: (params, extra, batch) -> {name: [B, ...]}, what the model keeps of each image, such as
        {"mean", "logvar"} of a posterior; None for a family without an encoder.
      decode: (params, extra, z [n, ...], label int [n] or None) -> images [n, H, W, C] in [-1, 1]
        of codes such as `codes` calls "mean".
      diagnose: {name: array [N, ...]}, the `codes` of N images -> ({metric: float}, a warning in
        words or ""): whether the codes are used.
      prior: {name: array [N, ...]}, the `codes` of N training images -> what `extra` then holds for
        `sample` to draw from them; None where samples need no such thing.
      settle: (params, extra) -> extra as `sample` is to be given it, such as with batch statistics
        of averaged parameters; None where what training keeps will do.
      pictures: (params, extra, keys [n], cond) -> {caption: images [rows, columns, H, W, C]}, what
        people look at to see how codes and images go together; None where there is no such thing.
      carried: what of `extra` belongs to the weights, and goes with them to a run that starts from
        this one: batch statistics, a codebook.
      translate: (params, extra, images [n, H, W, C], direction "a2b" or "b2a") -> images of the
        other domain, in [-1, 1]; None for a family of one domain.
    """

    init: Callable
    phases: tuple[Phase, ...]
    sample: Callable | None
    evaluate: Callable
    averaged: tuple[str, ...]
    fresh: int = 1
    num_classes: int = 0
    trajectory: Callable | None = None
    restore: Callable | None = None
    likelihood: Callable | None = None
    codes: Callable | None = None
    decode: Callable | None = None
    diagnose: Callable | None = None
    prior: Callable | None = None
    settle: Callable | None = None
    pictures: Callable | None = None
    carried: tuple[str, ...] = ()
    translate: Callable | None = None
