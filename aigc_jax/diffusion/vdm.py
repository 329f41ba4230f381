"""Variational diffusion models (Kingma et al. 2021, arXiv:2107.00630), trained by their own bound.

What is learned of the schedule is where it ends: between its ends no schedule changes the bound in
continuous time. The process that a config names keeps the ends that samples are drawn by, and says
what a network is given for a level: 0 and 1000 at these ends, and beyond them as the map goes on.
So a level of noise means the same to the network wherever the learned ends lie.
"""

from typing import Any

import jax
import jax.numpy as jnp

from aigc_jax.diffusion import likelihood
from aigc_jax.diffusion.model import Diffusion
from aigc_jax.diffusion.model_likelihood import level_at
from aigc_jax.diffusion.process import diffuse
from aigc_jax.family import Batch, Extra, LossValue, Params, Variables, View


class VDM(Diffusion):
    """A `Diffusion` over `process.LogSNR` whose loss is the bound, in bits per dimension.

    Its parameters are the network's, and beside them "ends", float32 [2]: what was learned of gamma
    at the least noisy level, and of the distance to the noisiest, added to those of the process.
    `weight` and `pair` have no part in the bound.
    """

    def init(self, key: jax.Array) -> tuple[Params, Extra]:
        """Parameters of the network and of the schedule's ends, and no extra."""
        params, extra = super().init(key)
        return {"net": {**params["net"], "ends": jnp.zeros(2)}}, extra

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

    def bits(
        self,
        params: Params,
        x0: jax.Array,
        label: jax.Array | None,
        t: jax.Array,
        key: jax.Array,
        **kwargs: Any,
    ) -> dict[str, jax.Array]:
        """The parts of the bound in bits/dim, each [B], from one call of the network.

        Args:
          x0, label: examples [B, ...] and their labels.
          t: [B], shares of the way in gamma from one end to the other.
          key: of the noise.
          kwargs: for the network.
        """
        t_key, end_key = jax.random.split(key)
        low, high = self.gammas(params)
        level = level_at(self.process, jnp.exp((low + (high - low) * t) / 2))
        x_t = diffuse(x0, jax.random.normal(t_key, x0.shape), level)
        x0_hat = self.estimate(self.predict(params, x_t, level, label, **kwargs), x_t, level).x0
        rate = likelihood.diffusion_rate(x0, x0_hat, level.ratio)
        end_eps = jax.random.normal(end_key, x0.shape)
        last = level_at(self.process, jnp.exp(high / 2))
        return {
            "bits_prior": likelihood.prior(last, x0),
            "bits_reconstruction": likelihood.reconstruction(
                x0, end_eps, jnp.exp(low / 2), self.of_bytes
            ),
            "bits_diffusion": (high - low) * rate,
        }

    def loss(self, view: View, batch: Batch, key: jax.Array) -> LossValue:
        """The bound at the times that `times` draws, its parts and the ends as metrics."""
        time_key, noise_key, drop_key, label_key = jax.random.split(key, 4)
        x0 = batch["x"]
        label = self.drop_labels(self.label_of(batch), label_key)
        t = self.times.train(time_key, len(x0))
        rngs = {"dropout": drop_key}
        found = self.bits(view.params, x0, label, t, noise_key, train=True, rngs=rngs)
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
