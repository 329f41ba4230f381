"""How likely a diffusion model finds examples: its variational bound, and its ODE's density."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp

from aigc_jax.diffusion import likelihood, ode
from aigc_jax.diffusion.process import Level, Process, diffuse, expand
from aigc_jax.family import Batch, Params, Variables

CALLS = 128  # of the network, for the integral of the bound in continuous time
# sigma / alpha beyond which no end lies: a process may have levels without noise, or of it alone.
# Bytes lie eight of the least apart; of the most a prior's KL is 5e-7 nats a number.
LEAST, MOST = 1e-3, 1e3


def ratios(process: Process) -> tuple[float, float]:
    """sigma / alpha at the ends of the bound in continuous time, and of the ODE."""
    low, high = process.ends.ratio
    return max(float(low), LEAST), min(float(high), MOST)


def last_std(process: Process, last: Level) -> Any:
    """Standard deviation of x_t, normal around 0, of the model at the noisiest level `last`.

    Where the process ends in noise alone, its own beyond `last`, it is that level's noise.
    """
    return last.sigma if process.ends.ratio[-1] > MOST else process.start_std


def level_at(process: Process, ratio: jax.Array) -> Level:
    """The levels at which sigma / alpha is `ratio` [...], inside a compiled program.

    Of a discrete process too, between its times; and beyond the ends of one that goes on there.
    """
    t = process.time(ratio)
    if not process.total:
        return process.level(t)
    alpha = jax.lax.rsqrt(1 + ratio**2)
    return Level(t, alpha, alpha * ratio)


@dataclass(frozen=True, eq=False)
class ModelLikelihood:
    """Evaluators of a `Diffusion` model.

    Without guidance: they are of the model given the label.

    Attributes:
      model: the `Diffusion`.
    """

    model: Any

    def bound(self, variables: Variables, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        """The bound on -log p of each example, {name: [B]}.

        "bits_per_dim" is the sum of its parts "bits_prior", "bits_reconstruction" and
        "bits_diffusion"; of data that are no bytes "neg_elbo" is the same in nats an example.

        In T steps it is of ancestral sampling over all of them, a network call each, whatever
        solver draws samples. In continuous time the integral is of `CALLS` times of each example,
        evenly spread over ln(SNR). Estimates of x_0 are clipped where samples have them clipped, as
        Ho et al. 2020 do. A single time in place of all is no estimate worth its name: the first
        few of T hold most of the bound (Nichol & Dhariwal 2021, arXiv:2102.09672, figure 2).
        """
        model, x0 = self.model, batch["x"]
        total = model.process.total
        diffusion = jnp.zeros(len(x0))
        if total:
            prior = self._discrete_prior(x0)
            reconstruction = self._add_term(variables, batch, key, 0, diffusion)
            for i in range(1, total):
                diffusion = self._add_term(variables, batch, key, i, diffusion)
        else:
            prior, reconstruction = self._ends(variables.params, batch, key)
            for i in range(CALLS):
                diffusion = self._add_share(variables, batch, key, i, diffusion)
        bits = prior + reconstruction + diffusion
        return self._told(bits, "bits_per_dim", "neg_elbo") | {
            "bits_prior": prior,
            "bits_reconstruction": reconstruction,
            "bits_diffusion": diffusion,
        }

    def density(
        self,
        variables: Variables,
        batch: Batch,
        key: jax.Array,
        *,
        probes: int = 1,
        tolerance: float = 1e-5,
    ) -> dict[str, jax.Array]:
        """-log p of each example by the probability-flow ODE, {name: [B]}.

        "bits_per_dim_ode", of bytes with uniform noise of their bins added, whose mean is an upper
        bound on the bits of the bytes themselves (Theis et al. 2016, arXiv:1511.01844); of other
        data also "nll_ode", nats an example. "nfe" is how often the network was called. Estimates
        of x_0 are not clipped: the density is of the ODE that the network itself defines.

        Args: see `ode.log_density`.
        """
        return self._density(variables, batch, key, probes=probes, tolerance=tolerance)

    def add_term(
        self, variables: Variables, batch: Batch, key: jax.Array, i: jax.Array, total: jax.Array
    ) -> jax.Array:
        """`total` [B] and the term of time number i of a discrete process, from one x_t."""
        model, x0 = self.model, batch["x"]
        index = jnp.full((len(x0),), i)
        level = model.process.level(index.astype(jnp.float32))
        estimate = self._estimate(variables, batch, key, i, level)
        return total + model.term(x0, estimate, index)

    def add_share(
        self, variables: Variables, batch: Batch, key: jax.Array, i: jax.Array, total: jax.Array
    ) -> jax.Array:
        """`total` [B] and the i-th of `CALLS` parts of the diffusion term in continuous time.

        The times of an example are equally far apart, and those of a batch lie evenly among them.
        """
        model, x0 = self.model, batch["x"]
        shift_key, order_key = jax.random.split(jax.random.fold_in(key, CALLS))
        place = jax.random.permutation(order_key, jnp.arange(len(x0)))
        place = (place + jax.random.uniform(shift_key)) / len(x0)
        low, high = (2 * jnp.log(r) for r in model.ratios(variables.params))
        ratio = jnp.exp((low + (high - low) * (i + place) / CALLS) / 2)
        level = level_at(model.process, ratio)
        estimate = self._estimate(variables, batch, key, i, level)
        rate = likelihood.diffusion_rate(x0, estimate.x0, ratio)
        return total + (high - low) / CALLS * rate

    def ends(self, params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The prior and the reconstruction term in continuous time, bits/dim [B] each."""
        model, x0 = self.model, batch["x"]
        low, high = model.ratios(params)
        last = level_at(model.process, jnp.asarray(high, x0.dtype))
        eps = jax.random.normal(jax.random.fold_in(key, CALLS + 1), x0.shape)
        return (
            likelihood.prior(last, x0, last_std(model.process, last)),
            likelihood.reconstruction(x0, eps, jnp.asarray(low, x0.dtype), model.of_bytes),
        )

    def _estimate(
        self, variables: Variables, batch: Batch, key: jax.Array, i: jax.Array, level: Level
    ) -> Any:
        """The estimate from x_t at levels [B], as samples have it; noise i of the key is in x_t."""
        model, x0 = self.model, batch["x"]
        eps = jax.random.normal(jax.random.fold_in(key, i), x0.shape)
        x_t = diffuse(x0, eps, level)
        output = model.predict(variables.params, x_t, level, model.label_of(batch))
        estimate = model.estimate(output, x_t, level)
        return estimate._replace(x0=model.threshold(estimate.x0))

    def _told(self, bits: jax.Array, name: str, in_nats: str) -> dict[str, jax.Array]:
        """Bits/dim [B], and where data are no bytes also nats an example."""
        if self.model.of_bytes:
            return {name: bits}
        return {name: bits, in_nats: bits * math.prod(self.model.shape) * math.log(2)}

    def of_ode(
        self, variables: Variables, batch: Batch, key: jax.Array, *, probes: int, tolerance: float
    ) -> Mapping[str, jax.Array]:
        """`density`, each example by steps of its own: its value does not depend on others."""
        model, params = self.model, variables.params
        low, high = model.ratios(params)
        last = level_at(model.process, jnp.asarray(high, jnp.float32))

        def one(x0: jax.Array, label: jax.Array | None, key: jax.Array) -> ode.Density:
            noise_key, probe_key = jax.random.split(key)
            if model.of_bytes:
                half = likelihood.HALF_BIN
                x0 = x0 + jax.random.uniform(noise_key, x0.shape, minval=-half, maxval=half)

            def estimate(x: jax.Array, ratio: jax.Array) -> jax.Array:
                level = level_at(model.process, ratio[None])
                x_t = expand(level.alpha, x[None]) * x[None]
                output = model.predict(params, x_t, level, None if label is None else label[None])
                return model.estimate(output, x_t, level).x0[0]

            return ode.log_density(
                estimate,
                x0,
                probe_key,
                ratios=(low, high),
                std=last_std(model.process, last) / last.alpha,
                probes=probes,
                tolerance=tolerance,
            )

        x0 = batch["x"]
        found = jax.vmap(one)(x0, model.label_of(batch), jax.random.split(key, len(x0)))
        bits = -found.log_p / (math.prod(model.shape) * math.log(2))
        if model.of_bytes:  # of a bin, whose width is 2 / 255
            bits = bits - math.log2(2 * likelihood.HALF_BIN)
        told = self._told(bits, "bits_per_dim_ode", "nll_ode")
        return told | {"nfe": found.calls.astype(jnp.float32)}

    @cached_property
    def _add_term(self) -> Any:
        """Compiled once for all times and all calls of `bound`, as is `_add_share`."""
        return jax.jit(self.add_term)

    @cached_property
    def _add_share(self) -> Any:
        return jax.jit(self.add_share)

    @cached_property
    def _ends(self) -> Any:
        return jax.jit(self.ends)

    @cached_property
    def _discrete_prior(self) -> Any:
        process = self.model.process
        return jax.jit(partial(likelihood.prior, process.level(process.high)))

    @cached_property
    def _density(self) -> Any:
        return jax.jit(self.of_ode, static_argnames=("probes", "tolerance"))
