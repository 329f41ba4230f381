"""The contract between a model family and everything that trains, samples or evaluates it.

A family is to the trainer what a `GradientTransformation` is to optax: a NamedTuple of pure
functions. A list of phases removes the difference between one optimizer and several, so GANs, VAEs
and diffusion models run through one step and one loop; what only some families can do (draw,
encode, translate) is a capability, a small typed tuple or None.

Shapes below: B examples in a batch, n samples, x [B, ...] in the model's range: images
[B, H, W, C] float32 in [-1, 1], points [B, 2] float32.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

Params = Mapping[str, Any]  # {player: tree of arrays}
# What is neither parameter nor optimizer state: batch statistics, spectral vectors, codebooks, ...
Extra = Mapping[str, Any]
# {"x": [B, ...], "label": int32 [B] where the data have labels, "other": [B, ...] of a second
# domain where there is one}
Batch = Mapping[str, jax.Array]
Cond = Mapping[str, jax.Array]  # what samples are asked for: {} or {"label": int32 [n]}


class Field(NamedTuple):
    """What one entry of a batch, or one condition of a sample, holds for each example.

    Attributes:
      kind: a name of `modalities`, "label", or of an edit "mask" or "share".
      shape: of one example; () for a label.
      classes: values are 0..classes-1, of a label; 0 where there is no such bound.
      names: of the classes; () where they have none but their numbers.
    """

    kind: str
    shape: tuple[int, ...]
    classes: int = 0
    names: tuple[str, ...] = ()


class DataSpec(NamedTuple):
    """All that a family sees of its data.

    Attributes:
      fields: {"x": Field} of what a model learns; "other" too where there is a second domain.
      conditions: {"label": Field} where examples have labels, else {}.
      sizes: {split: how many examples it holds}.
    """

    fields: Mapping[str, Field]
    conditions: Mapping[str, Field]
    sizes: Mapping[str, int]

    @property
    def kind(self) -> str:
        """The modality of the data."""
        return self.fields["x"].kind

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one example's x."""
        return self.fields["x"].shape

    @property
    def classes(self) -> int:
        """Of labels; 0 where there are none."""
        return self.conditions["label"].classes if "label" in self.conditions else 0

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of labels; () where they have none but their numbers."""
        return self.conditions["label"].names if "label" in self.conditions else ()


class View(NamedTuple):
    """All that a loss sees of a run.

    Attributes:
      params: {player: tree}; a step differentiates one player's.
      ema: {player: tree}, the averages as this step found them.
      extra: batch statistics, spectral vectors, pools, codebooks.
      constants: frozen networks, from `Family.constants`.
      step: int32 scalar, steps done before this one.
    """

    params: Params
    ema: Params
    extra: Extra
    constants: Any
    step: jax.Array


class Variables(NamedTuple):
    """All that a model computes with outside training.

    Attributes:
      params: {player: tree}, the averages where a player has one.
      extra: as in training.
      prepared: what `Drawing.prepare` made of these; {} until then.
      constants: {name: {player: tree}}, parameters of other models that samples are drawn with
        beside these, such as "weak" of autoguidance; {} for none.
    """

    params: Params
    extra: Extra
    prepared: Any = {}  # noqa: RUF012  (never written to; jit takes no read-only mapping)
    constants: Any = {}  # noqa: RUF012


LossValue = tuple[jax.Array, tuple[dict[str, jax.Array], Extra]]  # (scalar, (metrics, extra))
Loss = Callable[[View, Batch, jax.Array], LossValue]


class Phase(NamedTuple):
    """One player's move within a step.

    Attributes:
      player: whose parameters move: "net", or "generator" / "discriminator".
      loss: (view, batch, key) -> (scalar, ({metric: scalar}, extra)). It is differentiated with
        respect to `view.params[player]` alone, so no loss needs a `stop_gradient` between players.
      every: the phase runs when step % every == 0 (lazy regularisation).
      name: prefix of its metrics; the player's name where empty.
    """

    player: str
    loss: Loss
    every: int = 1
    name: str = ""


class Drawing(NamedTuple):
    """How a sample comes to be, as a machine with no loop in it; `sampling.driver` owns the loop.

    Sample i depends on keys[i] and cond[i] alone, whatever it is drawn beside.

    Attributes:
      start: (variables, keys [n], cond) -> carry: noise, or all that `finish` needs.
      finish: (variables, carry) -> samples [n, ...].
      step: (variables, carry, cond, i int32 scalar) -> (carry, preview [n, ...]); None with no
        steps. i counts 0..steps-1.
      steps: how often `step` is called; 0 for a GAN or a VAE.
      calls: how often a sample asks a network, NFE; 0 where nobody counts.
      conditions: {name: Field} of what `cond` may hold.
      prepare: (variables, codes) -> what `Variables.prepared` then holds, computed once for a
        checkpoint and stored with it: batch statistics of averages, a prior fitted to codes.
        None where samples need no such thing.
      prepared_as: names what `prepare` computes and its settings, such as "mixture of 10".
      fitted: whether `prepare` calls `codes`, () -> {name: [N, ...]}, the codes of training data;
        else it may be given None.
      between: (carry, carry, share scalar) -> carry, a share of the way from one sample to another:
        frames of a family without steps, and figures. None where there is no such way.
    """

    start: Callable
    finish: Callable
    step: Callable | None = None
    steps: int = 0
    calls: int = 0
    conditions: Mapping[str, Field] = {}
    prepare: Callable | None = None
    prepared_as: str = ""
    fitted: bool = False
    between: Callable | None = None


class Codec(NamedTuple):
    """An encoder, and what goes with it.

    Attributes:
      encode: (variables, batch) -> {name: [B, ...]}, what the model keeps of each example, such as
        {"mean", "logvar"} of a posterior.
      decode: (variables, z [n, ...], cond) -> samples [n, ...] of codes such as `encode` calls by
        the name `code`; None where codes cannot be decoded.
      diagnose: {name: array [N, ...]}, the codes of N examples -> ({metric: float}, a warning in
        words or ""): whether the codes are used.
      code: what of `encode`'s `decode` takes.
    """

    encode: Callable
    decode: Callable | None
    diagnose: Callable
    code: str = "mean"


class Views(NamedTuple):
    """What people look at beside samples.

    Attributes:
      reconstruct: (variables, batch, key) -> {name: (given [B, ...], reconstruction [B, ...])}:
        what the model makes of damaged or encoded examples, to be compared with batch["x"], or with
        a third array beside the two; None where a family has no such thing.
      figures: (variables, keys [n], cond) -> {caption: samples [rows, columns, ...]}: how codes and
        samples go together; None where there is no such thing.
    """

    reconstruct: Callable | None = None
    figures: Callable | None = None


class Family(NamedTuple):
    """A model family as pure functions.

    Attributes:
      init: key -> (params, extra).
      phases: in the order in which they run within a step.
      evaluate: (variables, batch, key) -> {name: [B]}, a value per example.
      averaged: players whose EMA is kept, checkpointed and sampled from.
      batches_per_step: batches drawn per step; phase i sees batch i % batches_per_step.
      transferred: names in `extra` that belong to the weights, and go with them to a run that
        starts from this one: batch statistics, a codebook.
      constants: () -> {name: tree of host arrays}, frozen networks that losses find in
        `View.constants`. Called where training starts, and by nothing that only draws.
      drawing, codec, views: capabilities; None where a family has none.
      translate: (variables, x [n, ...], direction "a2b" or "b2a") -> examples of the other domain.
      stride: `translate` takes images of any sides that are multiples of this, from twice it on; 0
        where it takes those of the data's shape alone.
      starts_from: families whose weights `config.init_from` may name beside this family's own; of
        the same process, since this family goes on from what they compute.
      needs_start: whether nothing can be learned without such weights: those of a teacher, who was
        trained on the same data.
      bound: (variables, batch, key) -> {name: [B]}, like `evaluate`, but too expensive for a
        schedule: a whole likelihood bound, an importance-weighted one. Compiles what it needs.
      density: (variables, batch, key, *, probes, tolerance) -> {name: [B]}: exact -log p of each
        example by an ODE, its divergence from that many random probes, 0 for all dimensions. None
        where a family has no such thing. Compiles what it needs.
      edits: {name: settings -> `Drawing`}, ways to edit images that are given: `cond` then holds
        what `Drawing.conditions` names, in the model's range. "vary" (strength), "inpaint"
        (resample) and "upscale" (factor) take "image", inpainting also "mask" [n, H, W, 1], 1
        where it is painted anew; "invert" () makes noise of "image", "reconstruct" () an image of
        such a "latent", "interpolate" () one of "latent", "other" and "share" [n]. A setting out of
        its range is a ValueError; {} where a family edits nothing.
    """

    init: Callable
    phases: tuple[Phase, ...]
    evaluate: Callable
    averaged: tuple[str, ...]
    batches_per_step: int = 1
    transferred: tuple[str, ...] = ()
    constants: Callable[[], Mapping[str, Any]] | None = None
    drawing: Drawing | None = None
    codec: Codec | None = None
    translate: Callable | None = None
    views: Views | None = None
    bound: Callable | None = None
    density: Callable | None = None
    stride: int = 0
    edits: Mapping[str, Callable[..., Drawing]] = {}
    starts_from: tuple[str, ...] = ()
    needs_start: bool = False
