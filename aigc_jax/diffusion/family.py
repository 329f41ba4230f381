"""Denoising diffusion as a family: one player, one phase (Ho et al. 2020, algorithms 1 and 2)."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.checks import (
    BelowOne,
    Count,
    NonNegative,
    OneOf,
    Positive,
    Range,
    arguments,
    choice,
    kinds,
    section,
)
from aigc_jax.diffusion import likelihood, objectives, precondition, solvers, times
from aigc_jax.diffusion.guidance import classifier_free
from aigc_jax.diffusion.process import (
    SCHEDULES,
    Process,
    betas,
    diffuse,
    expand,
    per_time,
    variance_preserving,
)
from aigc_jax.diffusion.solvers.base import Solver, noise_like
from aigc_jax.errors import SettingError
from aigc_jax.family import (
    Batch,
    Cond,
    DataSpec,
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
from aigc_jax.networks.unet import UNet

NETWORKS = {"unet": UNet}
Beta = Annotated[float, Range(0, 1, above=True, below=True)]
DAMAGE = (0.1, 0.3, 0.5)  # shares of T at which `reconstruct` shows one step of denoising


def build(config: Mapping[str, Any], spec: DataSpec) -> Family:
    """The diffusion family of an experiment.

    Args:
      config: reads `network` (name and keyword arguments), `diffusion` and `sampling`.
      spec: of the data.

    Raises:
      ValueError: a setting that does not exist, or that these data or the others rule out.
    """
    of_diffusion = kinds(diffusion, given=("network", "shape", "sampling"))
    settings = section("diffusion", config["diffusion"], {"conditional": bool, **of_diffusion})
    conditional = settings.pop("conditional")
    if conditional and not spec.classes:
        raise SettingError("diffusion.conditional needs data with labels; this data set has none")
    name, of_network = choice("network", config["network"], NETWORKS)
    if spec.kind != "image":
        raise SettingError(f"network {name!r} takes images; these data are of kind {spec.kind!r}")
    of_data = {
        "out_channels": spec.shape[-1],
        "num_classes": spec.classes if conditional else 0,
    }
    of_network = arguments("network", NETWORKS[name], of_network, of_data)
    of_sampling = kinds(solvers.build, given=("process", "settings"))
    of_sampling |= kinds(Diffusion, only=("clip", "guidance"))
    sampling = section("sampling", config["sampling"], of_sampling, kinds(solvers.Settings))
    network = NETWORKS[name](**of_data, **of_network)
    return diffusion(network, spec.shape, **settings, sampling=sampling).family()


def diffusion(
    network: Any,
    shape: tuple[int, ...],
    *,
    schedule: Annotated[str, OneOf(SCHEDULES)],
    timesteps: Count,
    prediction: Annotated[str, OneOf(precondition.PREDICTIONS)],
    weighting: Annotated[str, OneOf(times.WEIGHTINGS)],
    sampling: Mapping[str, Any],
    beta_min: Beta = 1e-4,
    beta_max: Beta = 0.02,
    gamma: Positive = 5.0,
    label_dropout: BelowOne = 0.0,
) -> "Diffusion":
    """Discrete-time variance-preserving diffusion, from the settings of its parts.

    Args:
      network, shape, prediction, label_dropout: see `Diffusion`.
      schedule, timesteps, beta_min, beta_max: see `process.betas`.
      weighting, gamma: see `times.weight`.
      sampling: `clip` and `guidance` (see `Diffusion`), `sampler`, `steps`, `spacing`, `variance`
        and `eta` (see `solvers.build`); the bound is that of steps with this `variance` too.

    Raises:
      ValueError: a setting that does not exist, or that others rule out.
    """
    process = variance_preserving(betas(schedule, timesteps, beta_min, beta_max))
    sampling = dict(sampling)
    clip, guidance = sampling.pop("clip"), sampling.pop("guidance")
    return Diffusion(
        network=network,
        shape=tuple(shape),
        process=process,
        prediction=prediction,
        weight=times.weight(weighting, prediction, process.alpha, process.sigma, gamma),
        solver=solvers.build(process, **sampling),
        term=likelihood.terms(process, sampling.get("variance", solvers.Settings().variance)),
        label_dropout=label_dropout,
        guidance=guidance,
        clip=clip,
    )


@dataclass(frozen=True, eq=False)
class Diffusion:
    """The parts of a diffusion model; its methods are what the papers do with them.

    Attributes:
      network: module with `init` and `apply(variables, x, t, label, train=)`; its `num_classes`
        is 0 or the number of labels, label `num_classes` then being "none".
      shape: of one example.
      process: how noise comes in.
      prediction: what the network puts out, a name of `precondition.PREDICTIONS`.
      weight: float64 [T], factor on the squared error at each time.
      solver: how samples come out of noise.
      term: the bound's term of one time; see `likelihood.terms`.
      label_dropout: share of training labels replaced by "none", for classifier-free guidance.
      guidance: weight of classifier-free guidance of samples; 1 is none.
      clip: whether estimates of x_0 are clipped to [-1, 1].
    """

    network: Any
    shape: tuple[int, ...]
    process: Process
    prediction: str
    weight: np.ndarray
    solver: Solver
    term: likelihood.Term
    label_dropout: float = 0.0
    guidance: NonNegative = 1.0
    clip: bool = True

    def __post_init__(self) -> None:
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

    @property
    def total(self) -> int:
        """How many times the process has, T."""
        return len(self.process.times)

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
                steps=len(self.solver.table["index"]),
                conditions={"label": Field("label", (), self.classes)} if self.classes else {},
            ),
            views=Views(reconstruct=self.reconstruct),
            bound=self.bound,
        )

    def init(self, key: jax.Array) -> tuple[Params, Extra]:
        """Parameters of the network, and no extra."""
        x = jnp.zeros((1, *self.shape))
        return {"net": self.network.init(key, x, jnp.zeros((1,)), None)["params"]}, {}

    def predict(
        self, params: Params, x: jax.Array, t: jax.Array, label: jax.Array | None, **kwargs: Any
    ) -> jax.Array:
        """The network's output [B, ...] for x_t [B, ...] at times [B]."""
        return self.network.apply({"params": params["net"]}, x, t, label, **kwargs)

    def predict_noised(
        self,
        params: Params,
        x0: jax.Array,
        index: jax.Array,
        label: jax.Array | None,
        key: jax.Array,
        **kwargs: Any,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """x_t of examples at time numbers `index` [B], the noise in it, the network's output."""
        eps = jax.random.normal(key, x0.shape)
        x_t = diffuse(x0, eps, *self.process.coefficients(index))
        t = per_time(self.process.times, index)
        return x_t, eps, self.predict(params, x_t, t, label, **kwargs)

    def estimate(self, output: jax.Array, x_t: jax.Array, index: jax.Array) -> jax.Array:
        """What an output for x_t says of x_0, clipped if `clip`."""
        alpha, sigma = self.process.coefficients(index)
        x0 = precondition.to_x0(self.prediction, output, x_t, alpha, sigma)
        return jnp.clip(x0, -1.0, 1.0) if self.clip else x0

    def errors(
        self, x0: jax.Array, eps: jax.Array, output: jax.Array, index: jax.Array
    ) -> jax.Array:
        """The objective of each example, [B]."""
        alpha, sigma = self.process.coefficients(index)
        weight = per_time(self.weight, index)
        return objectives.denoising(self.prediction, output, x0, eps, alpha, sigma, weight)

    def label_of(self, batch: Batch) -> jax.Array | None:
        """The labels of a batch; None for an unconditional model."""
        return batch["label"] if self.classes else None

    def drop_labels(self, label: jax.Array | None, key: jax.Array) -> jax.Array | None:
        """Labels [B] of which a share of `label_dropout` became "none"."""
        if label is None:
            return None
        dropped = jax.random.bernoulli(key, self.label_dropout, label.shape)
        return jnp.where(dropped, self.classes, label)

    def loss(self, view: View, batch: Batch, key: jax.Array) -> LossValue:
        """Ho et al. 2020, algorithm 1: the mean objective at times drawn uniformly."""
        time_key, noise_key, drop_key, label_key = jax.random.split(key, 4)
        x0 = batch["x"]
        index = times.uniform(time_key, len(x0), self.total)
        label = self.drop_labels(self.label_of(batch), label_key)
        _, eps, output = self.predict_noised(
            view.params, x0, index, label, noise_key, train=True, rngs={"dropout": drop_key}
        )
        return jnp.mean(self.errors(x0, eps, output, index)), ({}, view.extra)

    def evaluate(self, variables: Variables, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        """{"loss": [B]}: the objective, its times stratified over the batch.

        They come in random order: padding lies at a batch's end, and without it a last, short batch
        would see the least noisy times alone.
        """
        time_key, noise_key, order_key = jax.random.split(key, 3)
        x0 = batch["x"]
        index = times.stratified(time_key, len(x0), self.total)
        index = jax.random.permutation(order_key, index)
        label = self.label_of(batch)
        _, eps, output = self.predict_noised(variables.params, x0, index, label, noise_key)
        return {"loss": self.errors(x0, eps, output, index)}

    def bound(self, variables: Variables, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        """{"bits_per_dim": [B]}: the whole bound on -log p of an image, a network call for each t.

        The bound is of ancestral sampling over all T times, whatever `solver` draws samples with:
        with estimates of x_0 clipped where samples have them clipped, as Ho et al. 2020 do, and
        without guidance. A single time in place of all T is no estimate worth its name: the first
        few hold most of the bound (Nichol & Dhariwal 2021, arXiv:2102.09672, figure 2).
        """
        total = self._prior(batch["x"])
        for i in range(self.total):
            total = self._add_term(variables, batch, key, i, total)
        return {"bits_per_dim": total}

    def add_term(
        self, variables: Variables, batch: Batch, key: jax.Array, i: jax.Array, total: jax.Array
    ) -> jax.Array:
        """`total` [B] and the bound's term of time number i, from one draw of x_t."""
        x0 = batch["x"]
        index = jnp.full((len(x0),), i)
        x_t, _, output = self.predict_noised(
            variables.params, x0, index, self.label_of(batch), jax.random.fold_in(key, i)
        )
        return total + self.term(x0, self.estimate(output, x_t, index), index)

    @cached_property
    def _add_term(self) -> Any:
        """Compiled once for all times and all calls of `bound`."""
        return jax.jit(self.add_term)

    @cached_property
    def _prior(self) -> Any:
        return jax.jit(partial(likelihood.prior, self.process))

    def reconstruct(
        self, variables: Variables, batch: Batch, key: jax.Array
    ) -> dict[str, tuple[jax.Array, jax.Array]]:
        """{"t=100": (x_t / alpha_t, the estimate of x_0 from x_t), ...} at 0.1, 0.3 and 0.5 T.

        x_t is divided by alpha_t for the example in it to have its own contrast; both are clipped
        to [-1, 1], to be shown.
        """
        x0, label = batch["x"], self.label_of(batch)
        n, levels = len(x0), len(DAMAGE)
        shown = [round(share * self.total) for share in DAMAGE]
        # The levels of an example are neighbours, so that devices keep the rows that they hold.
        index = jnp.tile(jnp.asarray(shown), n)
        x0 = jnp.repeat(x0, levels, axis=0)
        label = None if label is None else jnp.repeat(label, levels)
        x_t, _, output = self.predict_noised(variables.params, x0, index, label, key)
        alpha, _ = self.process.coefficients(index)
        given, estimate = (
            jnp.clip(x, -1.0, 1.0).reshape(n, levels, *self.shape)
            for x in (x_t / expand(alpha, x_t), self.estimate(output, x_t, index))
        )
        return {f"t={t}": (given[:, i], estimate[:, i]) for i, t in enumerate(shown)}

    def denoise(
        self, variables: Variables, cond: Cond, x: jax.Array, index: jax.Array
    ) -> jax.Array:
        """Estimate of x_0 [n, ...] from x [n, ...] at one time number, guided by cond["label"]."""
        predict = classifier_free(
            partial(self.predict, variables.params), self.guidance, none=self.classes
        )
        label = cond.get("label") if self.classes else None
        index = jnp.full((len(x),), index, jnp.int32)
        t = per_time(self.process.times, index)
        return self.estimate(predict(x, t, label), x, index)

    def start(self, variables: Variables, keys: jax.Array, cond: Cond) -> dict[str, Any]:
        """What the steps carry: noise x_T, and the keys of each step's noise."""
        # Steps take their numbers as salts, at most T of them: x_T has a salt of its own.
        x = noise_like(keys, self.shape, self.total)
        return {"x": self.solver.start(x), "keys": keys}

    def step(
        self, variables: Variables, carry: dict[str, Any], cond: Cond, i: jax.Array
    ) -> tuple[dict[str, Any], jax.Array]:
        """Step i of the solver, and its estimate of x_0."""
        row = {name: per_time(col, i) for name, col in self.solver.table.items()}
        noise = noise_like(carry["keys"], self.shape, i) if self.solver.stochastic else None
        denoise = partial(self.denoise, variables, cond)
        x, x0 = self.solver.step(denoise, carry["x"], row, noise)
        return {"x": x, "keys": carry["keys"]}, x0

    def finish(self, variables: Variables, carry: dict[str, Any]) -> jax.Array:
        """The samples [n, ...]."""
        return self.solver.finish(carry["x"])
