"""Variational diffusion models (Kingma et al. 2021, arXiv:2107.00630), trained by their own bound.

What is learned of the schedule is where it ends: between its ends no schedule changes the bound in
continuous time. The process that a config names keeps the ends that samples are drawn by, and says
what a network is given for a level: 0 and 1000 at these ends, and beyond them as the map goes on.
So a level of noise means the same to the network wherever the learned ends lie.

What a schedule does change between its ends is the variance of the bound's estimate. Appendix H of
the paper learns a monotone network by it, as `monotone` does here: the gradient that reaches this
network is that of each example's squared diffusion term, whose mean is the variance and a square
that the network cannot change. It is the gradient of the bound, which is at hand, times twice the
term. Samples are drawn, and the bound is evaluated, at levels that are evenly spread in gamma.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from aigc_jax.diffusion import likelihood
from aigc_jax.diffusion.model import Diffusion
from aigc_jax.diffusion.model_likelihood import level_at
from aigc_jax.diffusion.process import diffuse
from aigc_jax.family import Batch, Extra, LossValue, Params, Variables, View

WIDTH = 1024  # of the monotone network, as published
REACH = 5.0  # a new one's first layer maps 0..1 to this on both sides of 0


@dataclass(frozen=True, eq=False)
class VDM(Diffusion):
    """A `Diffusion` over `process.LogSNR` whose loss is the bound, in bits per dimension.

    Its parameters are the network's, and beside them "ends", float32 [2]: what was learned of gamma
    at the least noisy level, and of the distance to the noisiest, added to those of the process;
    and "schedule", those of `share`. `weight` and `pair` have no part in the bound.

    Attributes:
      monotone: whether how gamma goes between its ends is learned too; else it is linear.
    """

    monotone: bool = False

    def init(self, key: jax.Array) -> tuple[Params, Extra]:
        """Parameters of the network and of the schedule, and no extra."""
        params, extra = super().init(key)
        own = {"ends": jnp.zeros(2)} | ({"schedule": schedule()} if self.monotone else {})
        return {"net": {**params["net"], **own}}, extra

    def gammas(self, params: Params) -> tuple[jax.Array, jax.Array]:
        """gamma = -ln(SNR) at both learned ends."""
        low, high = self.process.gamma_min, self.process.gamma_max
        shift = params["net"]["ends"]
        least = low + shift[0]
        return least, least + jnp.abs(high - low + shift[1])

    def ratios(self, params: Params) -> tuple[Any, Any]:
        """sigma / alpha at the learned ends."""
        low, high = self.gammas(params)
        return jnp.exp(low / 2), jnp.exp(high / 2)

    def integrand(
        self, params: Params, share: jax.Array, slope: jax.Array, given: tuple[Any, ...]
    ) -> jax.Array:
        """The diffusion term's integrand in t, bits/dim [B].

        Args:
          share, slope: as of `share`, [B].
          given: examples, labels, the key of the noise, and of dropout; see `bits`.
        """
        x0, label, key, drop_key = given
        kwargs = {} if drop_key is None else {"train": True, "rngs": {"dropout": drop_key}}
        low, high = self.gammas(params)
        level = level_at(self.process, jnp.exp((low + (high - low) * share) / 2))
        x_t = diffuse(x0, jax.random.normal(key, x0.shape), level)
        x0_hat = self.estimate(self.predict(params, x_t, level, label, **kwargs), x_t, level).x0
        return (high - low) * slope * likelihood.diffusion_rate(x0, x0_hat, level.ratio)

    def bits(
        self,
        params: Params,
        x0: jax.Array,
        label: jax.Array | None,
        t: jax.Array,
        key: jax.Array,
        drop_key: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """The parts of the bound in bits/dim, each [B], from one call of the network.

        Args:
          x0, label: examples [B, ...] and their labels.
          t: [B], times from 0, the least noisy, to 1.
          key: of the noise.
          drop_key: of dropout, in training.
        """
        t_key, end_key = jax.random.split(key)
        given = (x0, label, t_key, drop_key)
        if self.monotone:
            diffusion = of_square(self.integrand)(
                params, *share(params["net"]["schedule"], t), given
            )
        else:
            diffusion = self.integrand(params, t, jnp.ones_like(t), given)
        low, high = self.gammas(params)
        end_eps = jax.random.normal(end_key, x0.shape)
        last = level_at(self.process, jnp.exp(high / 2))
        return {
            "bits_prior": likelihood.prior(last, x0),
            "bits_reconstruction": likelihood.reconstruction(
                x0, end_eps, jnp.exp(low / 2), self.of_bytes
            ),
            "bits_diffusion": diffusion,
        }

    def loss(self, view: View, batch: Batch, key: jax.Array) -> LossValue:
        """The bound at the times that `times` draws, its parts and the ends as metrics."""
        time_key, noise_key, drop_key, label_key = jax.random.split(key, 4)
        x0 = batch["x"]
        label = self.drop_labels(self.label_of(batch), label_key)
        t = self.times.train(time_key, len(x0))
        found = self.bits(view.params, x0, label, t, noise_key, drop_key)
        metrics = {name: jnp.mean(bits) for name, bits in found.items()}
        low, high = self.gammas(view.params)
        return sum(metrics.values()), (metrics | {"gamma_low": low, "gamma_high": high}, view.extra)

    def evaluate(self, variables: Variables, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        """{"loss" and its parts: [B]}, bits/dim, times stratified over the batch."""
        time_key, noise_key, order_key = jax.random.split(key, 3)
        x0 = batch["x"]
        t = self.times.test(time_key, order_key, len(x0))
        found = self.bits(variables.params, x0, self.label_of(batch), t, noise_key)
        return {"loss": sum(found.values())} | found


def schedule() -> dict[str, jax.Array]:
    """Parameters of a new `share`, which is nearly t: its units are spread evenly over the way."""
    return {
        "kernel_1": jnp.asarray(2 * REACH),
        "bias_1": jnp.asarray(-REACH),
        "kernel_2": jnp.ones(WIDTH),
        "bias_2": jnp.linspace(-REACH, REACH, WIDTH),
        "kernel_3": jnp.full(WIDTH, 2 * REACH / WIDTH),
    }


def share(weights: Params, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """How much of the way in gamma lies behind times t [B], and its slope in t, [B] each.

    l1(t) + l3(sigmoid(l2(l1(t)))), shifted and scaled to go from 0 to 1 (Kingma et al. 2021,
    appendix H). Each weight counts by its size, so that it rises whatever was learned.
    """

    def raw(t: jax.Array) -> jax.Array:
        h = jnp.abs(weights["kernel_1"]) * t + weights["bias_1"]
        units = jax.nn.sigmoid(jnp.abs(weights["kernel_2"]) * h + weights["bias_2"])
        return h + jnp.sum(jnp.abs(weights["kernel_3"]) * units)

    first, last = raw(jnp.zeros(())), raw(jnp.ones(()))
    value, slope = jax.vmap(lambda t: jax.jvp(raw, (t,), (jnp.ones_like(t),)))(t)
    return (value - first) / (last - first), slope / (last - first)


# (parameters, share, slope [B], whatever else) -> [B]
Term = Callable[[Params, jax.Array, jax.Array, Any], jax.Array]


def of_square(term: Term) -> Term:
    """`term`, whose gradient in share and slope is that of its square.

    Tracers that it needs stand among its arguments: a function with a gradient of its own may not
    close over them.
    """

    @jax.custom_vjp
    def found(params: Params, share: jax.Array, slope: jax.Array, given: Any) -> jax.Array:
        return term(params, share, slope, given)

    def forward(
        params: Params, share: jax.Array, slope: jax.Array, given: Any
    ) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        value, back = jax.vjp(lambda *moved: term(*moved, given), params, share, slope)
        return value, (value, back)

    def backward(
        kept: tuple[jax.Array, Any], cotangent: jax.Array
    ) -> tuple[Params, jax.Array, jax.Array, None]:
        value, back = kept
        of_params, of_share, of_slope = back(cotangent)
        return of_params, 2 * value * of_share, 2 * value * of_slope, None

    found.defvjp(forward, backward)
    return found
