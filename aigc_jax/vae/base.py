"""What the three families of autoencoders share: a network, a likelihood, labels."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from aigc_jax.family import Batch, Cond, Field, Params
from aigc_jax.vae import objectives
from aigc_jax.vae.likelihood import Likelihood, per_example


@dataclass(frozen=True, eq=False, kw_only=True)
class Autoencoder:
    """A network with parameters `params["net"]["network"]`, and what its outputs say of an example.

    The likelihood's own learned scalars, such as a deviation, lie beside the network's parameters,
    in `params["net"]`.

    Attributes:
      network: a Linen module of `networks.vae`, or what has its methods.
      shape: of an example.
      likelihood: what the network's outputs say of an example.
      conditions: {"label": Field} of a model that is conditional on labels, else {}.
      has_bits: whether the bound is one on the probability of an image's bytes; see
        `sections.has_bits`.
    """

    network: Any
    shape: tuple[int, ...]
    likelihood: Likelihood
    conditions: Mapping[str, Field] = field(default_factory=dict)
    has_bits: bool = True

    @property
    def dims(self) -> int:
        """How many numbers an example has."""
        return math.prod(self.shape)

    def init_net(self, key: jax.Array, *args: Any) -> dict[str, Any]:
        """Parameters of the player "net". `args`: what the network is called with beside x."""
        params = dict(self.network.init(key, jnp.zeros((1, *self.shape)), *args)["params"])
        scalars = {name: jnp.float32(value) for name, value in self.likelihood.parameters.items()}
        return {"network": params, **scalars}

    def apply(self, params: Params, method: Callable, *args: Any) -> Any:
        """One of the network's methods, with the parameters of the player "net"."""
        return self.network.apply({"params": params["net"]["network"]}, *args, method=method)

    def scalars(self, params: Params) -> dict[str, jax.Array]:
        """The likelihood's own parameters, by their names."""
        return {name: params["net"][name] for name in self.likelihood.parameters}

    def log_likelihood(self, params: Params, outputs: jax.Array, x: jax.Array) -> jax.Array:
        """log p(x|z) in nats, [B], from the network's outputs for z."""
        return self.likelihood.log_prob(outputs, x, **self.scalars(params))

    def bounds(self, log_p: jax.Array, kl: jax.Array) -> dict[str, jax.Array]:
        """{"neg_elbo", "kl", "distortion": [B]} in nats, of log p(x|z) [B] and the KL [B, ...].

        With `has_bits` also "bits_per_dim" of the first.
        """
        elbo = objectives.elbo(log_p, kl)
        found = {"neg_elbo": -elbo, "kl": per_example(kl), "distortion": -log_p}
        if self.has_bits:
            unit = self.likelihood.bytes_per_unit
            found["bits_per_dim"] = objectives.bits_per_dim(elbo, self.dims, unit)
        return found

    def label_of(self, batch: Batch) -> jax.Array | None:
        """The labels of a batch as the network takes them: None where it takes none."""
        return batch["label"] if self.conditions else None

    def asked_label(self, cond: Cond) -> jax.Array | None:
        """The labels that samples are asked for: None where none are, or where there are none.

        To a conditional network no label is one that belongs to no class.
        """
        return cond.get("label") if self.conditions else None
