"""Hierarchical variational autoencoders: groups of latents, each given those above.

Child 2020 (arXiv:2011.10650), sec. 2: log p(x) >= E log p(x|z) - sum_j KL(q(z_j|z_<j, x) ||
p(z_j|z_<j)), each KL in closed form given the z_<j that were drawn. J groups, the first at the top.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.checks import NonNegative, kinds, section
from aigc_jax.family import (
    Batch,
    Codec,
    Cond,
    DataSpec,
    Drawing,
    Extra,
    Family,
    LossValue,
    Params,
    Phase,
    Variables,
    View,
    Views,
)
from aigc_jax.networks.vae.ladder import Ladder, ladder_blocks, parse
from aigc_jax.vae import objectives, sections
from aigc_jax.vae.base import Autoencoder
from aigc_jax.vae.likelihood import per_example

NETWORKS = {"ladder": Ladder}
# Temperature of the groups that the prior fills in below given ones (openai/vdvae:train.py).
FILL_TEMPERATURE = 0.1
ACTIVE = 0.01  # nats of KL of a group that is used


def build(config: Mapping[str, Any], spec: DataSpec) -> Family:
    """The family of an experiment, from the sections `network`, `vae` and `sampling`.

    Raises:
      ValueError: settings that are unknown or missing, or that cannot be.
    """
    settings = section("vae", config["vae"], dict.fromkeys(("likelihood", "kl"), Mapping))
    likelihood = sections.likelihood(settings["likelihood"], spec)
    network = sections.network(NETWORKS, config["network"], spec, likelihood.channels)
    ladder_blocks(spec.shape[0], network.encoder, network.decoder)  # raises where they do not fit
    return HierarchicalVAE(
        network=network,
        shape=tuple(spec.shape),
        likelihood=likelihood,
        has_bits=sections.has_bits(likelihood, spec),
        kl_cost=sections.kl_cost(settings["kl"]),
        **section("sampling", config["sampling"], kinds(HierarchicalVAE, only=("temperature",))),
    ).family()


@dataclass(frozen=True, eq=False, kw_only=True)
class HierarchicalVAE(Autoencoder):
    """A VAE with as many groups of latents as `network.decoder` spells blocks.

    Attributes:
      kl_cost: (kl [B, J], step) -> what the KL costs in training, [B]. What is called a dimension
        there is a group.
      temperature: of the prior's deviations in samples.
    """

    kl_cost: objectives.Cost
    temperature: NonNegative = 1.0

    @property
    def groups(self) -> int:
        """J, how many groups of latents there are."""
        return len(parse(self.network.decoder))

    def init(self, key: jax.Array) -> tuple[Params, Extra]:
        """Parameters of the one player, and no other state."""
        return {"net": self.init_net(key, jax.random.split(key, 1))}, {}

    def elbo_terms(
        self, params: Params, x: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """log p(x|z) [B] and the KL [B, J] in nats, from one z."""
        keys = jax.random.split(key, len(x))
        outputs, kl = self.apply(params, self.network.__call__, x, keys)
        return self.log_likelihood(params, outputs, x), kl.T

    def loss(self, view: View, batch: Batch, key: jax.Array) -> LossValue:
        """-log p(x|z) and the cost of the KL."""
        log_p, kl = self.elbo_terms(view.params, batch["x"], key)
        value = jnp.mean(self.kl_cost(kl, view.step) - log_p)
        metrics = {
            "neg_elbo": -jnp.mean(objectives.elbo(log_p, kl)),
            "kl": jnp.mean(per_example(kl)),
        }
        return value, (metrics, view.extra)

    def evaluate(self, variables: Variables, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        """`bounds`, from one z."""
        return self.bounds(*self.elbo_terms(variables.params, batch["x"], key))

    def encode(self, variables: Variables, batch: Batch) -> dict[str, jax.Array]:
        """{"kl": [B, J]} nats, from one z: always the same one of an example at that place."""
        return {"kl": self.elbo_terms(variables.params, batch["x"], jax.random.key(0))[1]}

    def reconstruct(
        self, variables: Variables, batch: Batch, key: jax.Array
    ) -> dict[str, tuple[jax.Array, jax.Array]]:
        """The mean example of a z of all groups, and of the upper quarter of them.

        What these leave open the prior fills in, near its means.
        """
        x, few = batch["x"], max(1, self.groups // 4)
        keys = jax.random.split(key, len(x))

        def of(groups: int) -> jax.Array:
            outputs = self.apply(
                variables.params, self.network.reconstruct, x, keys, groups, FILL_TEMPERATURE
            )
            return self.likelihood.mean(outputs)

        return {"reconstruction": (x, of(self.groups)), f"groups={few}": (x, of(few))}

    def start(self, variables: Variables, keys: jax.Array, cond: Cond) -> dict[str, jax.Array]:
        """Two keys a sample: one draws its latents, one draws it from p(x|z)."""
        latent_keys, x_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        return {"latent_keys": latent_keys, "x_keys": x_keys}

    def finish(self, variables: Variables, carry: Mapping[str, jax.Array]) -> jax.Array:
        """Samples of p(x|z), as in VDVAE: the mean of a mixture is a colour that none of it has."""
        outputs = self.apply(
            variables.params, self.network.generate, carry["latent_keys"], self.temperature
        )
        draw = partial(self.likelihood.sample, **self.scalars(variables.params))
        return jax.vmap(draw)(outputs, carry["x_keys"])

    def family(self) -> Family:
        """The family that these parts make."""
        return Family(
            self.init,
            (Phase("net", self.loss),),
            self.evaluate,
            averaged=("net",),
            drawing=Drawing(self.start, self.finish),
            codec=Codec(self.encode, None, diagnose),
            views=Views(self.reconstruct),
        )


def diagnose(codes: Mapping[str, np.ndarray]) -> tuple[dict[str, float], str]:
    """Which groups are used, of N examples' {"kl": [N, J]}; see `Codec.diagnose`.

    A group counts as active where the mean of its KL is above 0.01 nats.
    """
    kl = np.asarray(codes["kl"], np.float64).mean(0)
    n, total = int((kl > ACTIVE).sum()), float(kl.sum())
    metrics = {
        "active_groups": float(n),
        "largest_kl": float(kl.max()),
        "largest_kl_group": float(kl.argmax()),  # 0 is the top
        "top_kl": float(kl[0]),
    }
    cure = "Lower beta, anneal it from 0, or give free bits."
    if not np.isfinite(total):
        return metrics, "The KL is not finite: a log deviation or a mean has run away."
    if n == 0:
        return metrics, (
            f"Posterior collapse: none of {len(kl)} groups of latents is active and the KL is "
            f"{total:.3g} nats, so the decoder ignores them all. {cure}"
        )
    if n < 0.5 * len(kl):
        return metrics, f"Only {n} of {len(kl)} groups of latents are active. {cure}"
    return metrics, ""
