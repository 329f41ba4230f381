"""Denoising diffusion: one player, one phase (Ho et al. 2020, algorithms 1 and 2)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.checks import NonNegative, Probability
from aigc_jax.diffusion import objectives
from aigc_jax.diffusion.guidance import Denoise, auto, classifier_free, holds, within
from aigc_jax.diffusion.likelihood import Term
from aigc_jax.diffusion.model_likelihood import ModelLikelihood, ratios
from aigc_jax.diffusion.precondition import Prediction
from aigc_jax.diffusion.process import Level, Process, diffuse, expand, per_time
from aigc_jax.diffusion.solvers.base import Estimate, Solver, noise_like
from aigc_jax.diffusion.times import Times
from aigc_jax.errors import MissingError, SettingError
from aigc_jax.family import (
    Batch,
    Cond,
    Drawing,
    Extra,
    Family,
    Field,
    LossValue,
    Params,
    Phase,
    Variables,
    View,
    Views,
)
from aigc_jax.modalities.edm_augment import LABEL_DIM, augment_with_label

DAMAGE = (0.1, 0.3, 0.5)  # shares of T at which `reconstruct` shows one step of denoising
RATIOS = (0.3, 1.0, 3.0)  # sigma / alpha at which it does, of a process in continuous time
START = 2**32 - 1  # the salt of the noise that samples start from; steps count from 0


@dataclass(frozen=True, eq=False)
class Diffusion:
    """The parts of a diffusion model; its methods are what the papers do with them.

    Attributes:
      network: module with `init` and `apply(variables, x, t, label, train=)`; its `num_classes`
        is 0 or the number of labels, label `num_classes` then being "none".
      shape: of one example.
      process: how noise comes in.
      prediction: what the network is given and puts out.
      times: how a loss draws times.
      weight: levels [B] -> factor on the squared error at each.
      solver: how samples come out of noise.
      pair: (examples, noise [B, ...]) -> the noise in the order in which examples get it.
      term: the bound's term of one time of a discrete process, see `likelihood.terms`; else None.
      learned_variance: whether the second half of the network's channels says where the variance
        of a step lies (Nichol & Dhariwal 2021).
      bound_weight: of the bound, beside the simple loss, by which that half is trained.
      of_bound: whether the bound itself is minimised, the L_vlb of a discrete process, and `weight`
        has no part.
      augment: probability of each of EDM's moves of a training image, of which the network is told
        (Karras et al. 2022, arXiv:2206.00364, appendix F.2); 0 for none.
      of_bytes: whether examples are bytes in [-1, 1], and likelihoods those of bytes; else examples
        have a density.
      label_dropout: share of training labels replaced by "none", for classifier-free guidance.
      guidance: weight of classifier-free guidance of samples; 1 is none. `guidance_rescale` is its
        share of the way back to an estimate's own standard deviation, and `guidance_low` and
        `guidance_high` (0: no bound) are the sigma / alpha between which samples are guided.
      autoguidance: weight of guidance by a weaker model, whose parameters samples find in
        `Variables.constants["weak"]`, within the same interval; 1 is none. It starts from what
        classifier-free guidance has made: see `guidance.auto`.
      clip: whether estimates of x_0 are clipped to [-1, 1].
      dynamic_threshold: the share of an example's values within the range that its estimates are
        clipped to, and scaled back from (Saharia et al. 2022, arXiv:2205.11487, section 2.3), such
        as 0.995; 0 for none.
    """

    network: Any
    shape: tuple[int, ...]
    process: Process
    prediction: Prediction
    times: Times
    weight: Callable[[Level], jax.Array]
    solver: Solver
    pair: Callable[[jax.Array, jax.Array], jax.Array] = objectives.independent
    term: Term | None = None
    learned_variance: bool = False
    bound_weight: float = 0.001
    of_bound: bool = False
    augment: float = 0.0
    of_bytes: bool = True
    label_dropout: float = 0.0
    guidance: NonNegative = 1.0
    guidance_rescale: Probability = 0.0
    guidance_low: NonNegative = 0.0
    guidance_high: NonNegative = 0.0
    autoguidance: NonNegative = 1.0
    clip: bool = True
    dynamic_threshold: Probability = 0.0

    def __post_init__(self) -> None:
        if self.guidance_high and not self.guidance_low < self.guidance_high:
            raise SettingError(
                f"sampling.guidance_low={self.guidance_low} must lie below "
                f"sampling.guidance_high={self.guidance_high}, or that be 0, for no bound"
            )
        if self.augment and getattr(self.network, "augment_dim", 0) != LABEL_DIM:
            raise SettingError(
                "diffusion.augment above 0 needs a network that is told how images were moved: set "
                f"network.augment_dim={LABEL_DIM}"
            )
        if self.guidance != 1.0 and not self.classes:
            raise SettingError("sampling.guidance other than 1 needs diffusion.conditional=True")
        if self.guidance != 1.0 and not self.label_dropout:
            raise SettingError(
                "sampling.guidance other than 1 needs diffusion.label_dropout above 0, by which a "
                "network learns to do without labels"
            )

    @property
    def classes(self) -> int:
        """How many labels the network knows; 0 for an unconditional one."""
        return self.network.num_classes

    def family(self) -> Family:
        """All of this as the trainer and the driver of samples see it."""
        return Family(
            init=self.init,
            phases=(Phase("net", self.loss),),
            evaluate=self.evaluate,
            averaged=("net",),
            drawing=Drawing(
                start=self.start,
                finish=self.finish,
                step=self.step,
                steps=self.solver.calls,
                calls=self.calls(self.solver.table["at"]),
                conditions={"label": Field("label", (), self.classes)} if self.classes else {},
            ),
            views=Views(reconstruct=self.reconstruct),
            bound=self.likelihood.bound,
            density=self.likelihood.density,
        )

    def init(self, key: jax.Array) -> tuple[Params, Extra]:
        """Parameters of the network, and no extra."""
        x = jnp.zeros((1, *self.shape))
        return {"net": self.network.init(key, x, jnp.zeros((1,)), None)["params"]}, {}

    def predict(
        self, params: Params, x_t: jax.Array, level: Level, label: jax.Array | None, **kwargs: Any
    ) -> jax.Array:
        """The network's output [B, ...] for x_t [B, ...] at levels [B]."""
        given, t = self.prediction.given(x_t, level), self.process.clock(level)
        return self.network.apply({"params": params["net"]}, given, t, label, **kwargs)

    def noised(
        self, x0: jax.Array, level: Level, key: jax.Array, *, paired: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """x_t of examples [B, ...] at levels [B], and the noise in it, by `pair` if `paired`."""
        eps = jax.random.normal(key, x0.shape)
        eps = self.pair(x0, eps) if paired else eps
        return diffuse(x0, eps, level), eps

    def estimate(self, output: jax.Array, x_t: jax.Array, level: Level) -> Estimate:
        """What an output for x_t says of x_0, and of the step's variance if that is learned."""
        if not self.learned_variance:
            return Estimate(self.prediction.x0_of(output, x_t, level))
        mean, share = jnp.split(output, 2, axis=-1)
        return Estimate(self.prediction.x0_of(mean, x_t, level), (share + 1) / 2)

    def threshold(self, x0: jax.Array) -> jax.Array:
        """Estimates of x_0 [n, ...] brought to the range of examples, if they shall be."""
        if self.dynamic_threshold:
            size = jnp.abs(x0).reshape(len(x0), -1)
            limit = jnp.maximum(jnp.quantile(size, self.dynamic_threshold, axis=1), 1.0)
            limit = expand(limit, x0)
            return jnp.clip(x0, -limit, limit) / limit
        return jnp.clip(x0, -1.0, 1.0) if self.clip else x0

    def label_of(self, batch: Batch) -> jax.Array | None:
        """The labels of a batch; None for an unconditional model."""
        return batch["label"] if self.classes else None

    def drop_labels(self, label: jax.Array | None, key: jax.Array) -> jax.Array | None:
        """Labels [B] of which a share of `label_dropout` became "none"."""
        if label is None:
            return None
        dropped = jax.random.bernoulli(key, self.label_dropout, label.shape)
        return jnp.where(dropped, self.classes, label)

    def errors(
        self, x0: jax.Array, eps: jax.Array, output: jax.Array, x_t: jax.Array, level: Level
    ) -> jax.Array:
        """The objective of each example, [B]: the weighted error of the prediction, or the bound.

        With a learned variance the former is Nichol & Dhariwal 2021's L_hybrid, eq. 16, the simple
        loss and a share of the bound, which moves the variance alone. The bound is T L_t in
        bits/dim, whose mean over the times is L_vlb.
        """
        if self.of_bound:
            return self.process.total * self.bound_term(x0, output, x_t, level)
        weight = self.weight(level)
        if not self.learned_variance:
            return objectives.denoising(self.prediction, output, x0, eps, level, weight)
        mean, share = jnp.split(output, 2, axis=-1)
        simple = objectives.denoising(self.prediction, mean, x0, eps, level, weight)
        fixed = jnp.concatenate([jax.lax.stop_gradient(mean), share], axis=-1)
        bound = self.bound_term(x0, fixed, x_t, level)
        return simple + self.bound_weight * self.process.total * bound

    def bound_term(
        self, x0: jax.Array, output: jax.Array, x_t: jax.Array, level: Level
    ) -> jax.Array:
        """L_t of each example at its time, bits/dim [B]."""
        return self.term(x0, self.estimate(output, x_t, level), level.t.astype(jnp.int32))

    def objective(
        self,
        params: Params,
        x0: jax.Array,
        level: Level,
        label: jax.Array | None,
        key: jax.Array,
        *,
        step: jax.Array | None = None,
        **kwargs: Any,
    ) -> jax.Array:
        """What is minimised, of each example [B, ...] at its level [B]: float32 [B].

        Args:
          step: of training; None where a trained model is evaluated.
          kwargs: of the network.
        """
        # An example's value must not depend on those that it is tested beside.
        x_t, eps = self.noised(x0, level, key, paired=step is not None)
        return self.errors(x0, eps, self.predict(params, x_t, level, label, **kwargs), x_t, level)

    def loss(self, view: View, batch: Batch, key: jax.Array) -> LossValue:
        """Ho et al. 2020, algorithm 1: the mean objective at the times that `times` draws."""
        time_key, *keys = jax.random.split(key, 5)
        t = self.times.train(time_key, len(batch["x"]))
        return jnp.mean(self.losses(view, batch, t, keys)), ({}, view.extra)

    def losses(
        self, view: View, batch: Batch, t: jax.Array, keys: Sequence[jax.Array]
    ) -> jax.Array:
        """The objective of each example of a training batch at its time, [B].

        Args:
          t: [B].
          keys: of the noise, the dropout, the labels that are dropped, and the augmentation.
        """
        noise_key, drop_key, label_key, move_key = keys
        x0, told = batch["x"], {}
        if self.augment:
            x0, told["augment"] = augment_with_label(move_key, x0, self.augment)
        label = self.drop_labels(self.label_of(batch), label_key)
        kwargs = {"train": True, "rngs": {"dropout": drop_key}, **told}
        level = self.process.level(t)
        return self.objective(view.params, x0, level, label, noise_key, step=view.step, **kwargs)

    def evaluate(self, variables: Variables, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        """{"loss": [B]}: the objective, its times stratified over the batch."""
        time_key, noise_key, order_key = jax.random.split(key, 3)
        x0 = batch["x"]
        level = self.process.level(self.times.test(time_key, order_key, len(x0)))
        return {
            "loss": self.objective(variables.params, x0, level, self.label_of(batch), noise_key)
        }

    def ratios(self, params: Params) -> tuple[Any, Any]:
        """sigma / alpha at the ends of the bound in continuous time, and of the ODE."""
        del params
        return ratios(self.process)

    @cached_property
    def likelihood(self) -> ModelLikelihood:
        """Evaluators of the likelihood, compiled once."""
        return ModelLikelihood(self)

    def reconstruct(
        self, variables: Variables, batch: Batch, key: jax.Array
    ) -> dict[str, tuple[jax.Array, jax.Array]]:
        """{"t=100": (x_t / alpha_t, the estimate of x_0 from x_t), ...} at three levels of noise.

        x_t is divided by alpha_t for the example in it to have its own contrast; both are clipped
        to the range of bytes, where examples are bytes, to be shown.
        """
        x0, label = batch["x"], self.label_of(batch)
        if self.process.total:
            shown = np.round(np.array(DAMAGE) * self.process.total)
        else:
            shown = self.process.time(np.array(RATIOS))
        n, levels = len(x0), len(shown)
        # The levels of an example are neighbours, so that devices keep the rows that they hold.
        level = self.process.level(jnp.tile(jnp.asarray(shown, jnp.float32), n))
        x0 = jnp.repeat(x0, levels, axis=0)
        label = None if label is None else jnp.repeat(label, levels)
        x_t = diffuse(x0, jax.random.normal(key, x0.shape), level)
        output = self.predict(variables.params, x_t, level, label)
        estimate = self.threshold(self.estimate(output, x_t, level).x0)
        given, estimate = (
            (jnp.clip(x, -1.0, 1.0) if self.of_bytes else x).reshape(n, levels, *self.shape)
            for x in (x_t / expand(level.alpha, x_t), estimate)
        )
        return {f"t={t:.3g}": (given[:, i], estimate[:, i]) for i, t in enumerate(shown)}

    def denoise(
        self, variables: Variables, cond: Cond, x: jax.Array, level: Level, **kwargs: Any
    ) -> Estimate:
        """Estimate of x_0 [n, ...] from x [n, ...] at one level, guided by cond["label"].

        Args:
          kwargs: of `predict`.
        """

        def of(params: Params) -> Denoise:
            def plain(x: jax.Array, level: Level, label: jax.Array | None) -> Estimate:
                return self.estimate(self.predict(params, x, level, label, **kwargs), x, level)

            return plain

        if self.autoguidance != 1.0 and "weak" not in variables.constants:
            raise MissingError(
                "sampling.autoguidance other than 1 needs a weak model: sampling.weak"
            )
        guided = self.guided(of(variables.params), of(variables.constants.get("weak")))
        label = cond.get("label") if self.classes else None
        every = Level(*(jnp.full((len(x),), a) for a in level))
        estimate = guided(x, every, label)
        return estimate._replace(x0=self.threshold(estimate.x0))

    def guided(self, denoise: Denoise, weak: Denoise) -> Denoise:
        """Estimates of x_0 as samples take them, of those of the network and of a weaker one.

        `weak` is asked where `autoguidance` is not 1.
        """
        guided = classifier_free(
            denoise, self.guidance, none=self.classes, rescale=self.guidance_rescale
        )
        guided = auto(guided, weak, self.autoguidance)
        if guided is denoise or not (self.guidance_low or self.guidance_high):
            return guided
        return within(guided, denoise, self.guidance_low, self.guidance_high or np.inf)

    def calls(self, at: Level) -> int:
        """How often networks are asked about a sample at levels [calls]: where it is guided, once
        more for "none" and once more for the weak model, as far as each has a part."""
        more = (self.guidance != 1.0) + (self.autoguidance != 1.0)
        low, high = self.guidance_low, self.guidance_high or np.inf
        return len(at.t) + more * int(np.sum(holds(at, low, high)))

    def start(self, variables: Variables, keys: jax.Array, cond: Cond) -> dict[str, Any]:
        """What the steps carry: noise, and the keys of each step's noise."""
        x = self.solver.std * noise_like(keys, self.shape, START)
        return {"x": self.solver.start(x), "keys": keys}

    def step(
        self, variables: Variables, carry: dict[str, Any], cond: Cond, i: jax.Array, **kwargs: Any
    ) -> tuple[dict[str, Any], jax.Array]:
        """Network call i of the solver, and its estimate of x_0; `kwargs` go to `predict`."""
        row = jax.tree.map(lambda column: per_time(column, i), self.solver.table)
        noise = noise_like(carry["keys"], self.shape, i) if self.solver.stochastic else None
        denoise = partial(self.denoise, variables, cond, **kwargs)
        x, x0 = self.solver.step(denoise, carry["x"], row, noise)
        return {"x": x, "keys": carry["keys"]}, x0

    def finish(self, variables: Variables, carry: dict[str, Any]) -> jax.Array:
        """The samples [n, ...]."""
        return self.solver.finish(carry["x"])
