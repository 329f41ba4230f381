"""VQ-VAE: each vector of an encoder's map becomes the nearest of the K entries of a codebook.

van den Oord et al. 2017 (arXiv:1711.00937), eq. 3, with the codebook of its appendix A.1: it
follows the encoder by moving averages, in `extra`, and has no gradient.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.checks import INT32, BelowOne, NonNegative, OneOf, Positive, Range, kinds, section
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
from aigc_jax.vae import quantize, sections
from aigc_jax.vae.base import Autoencoder

PRIORS = ("frequency", "uniform")


class Codebook(NamedTuple):
    """How a codebook is kept.

    Attributes:
      size: K, how many entries it has.
      decay: of its moving averages, a step.
      commitment: what a unit of |z - z_q|^2 costs, in nats; both are summed over the example.
      restart: entries that are used less often than this in a batch, on average, start anew at a
        vector of the batch; 0 leaves them as they are.
    """

    size: Annotated[int, Range(2, INT32, below=True)] = 512
    decay: BelowOne = 0.99
    commitment: Positive = 0.25  # or nothing would hold the encoder near its entries
    restart: NonNegative = 1.0


def build(config: Mapping[str, Any], spec: DataSpec) -> Family:
    """The family of an experiment, from the sections `network`, `vae` and `sampling`.

    Raises:
      ValueError: settings that are unknown or missing, or that cannot be.
    """
    of_vae = {"likelihood": Mapping, "conditional": bool, "codebook": Mapping}
    settings = section("vae", config["vae"], of_vae)
    likelihood = sections.likelihood(settings["likelihood"], spec)
    conditions = sections.conditions(settings["conditional"], spec)
    network = sections.network(
        sections.AUTOENCODERS,
        config["network"],
        spec,
        likelihood.channels,
        num_classes=spec.classes if conditions else 0,
    )
    codebook = section("vae.codebook", settings["codebook"], kinds(Codebook))
    return VQVAE(
        network=network,
        shape=tuple(spec.shape),
        likelihood=likelihood,
        conditions=conditions,
        has_bits=sections.has_bits(likelihood, spec),
        codebook=Codebook(**codebook),
        **section("sampling", config["sampling"], kinds(VQVAE, only=("prior",))),
    ).family()


@dataclass(frozen=True, eq=False, kw_only=True)
class VQVAE(Autoencoder):
    """An autoencoder whose codes are maps of indices into a codebook.

    Samples decode indices drawn one by one, as if the places of a map had nothing to do with each
    other, and it shows. Good samples need a prior learned over whole maps, which is not here.

    The network has `encode(x, label) -> (z, unused)`, `decode(z_q, label) -> outputs` and
    `latent_shape`, which is (*places, width).

    Attributes:
      codebook: how it is kept.
      prior: of the indices of samples: "uniform", or "frequency", as often as in training.
    """

    codebook: Codebook = field(default_factory=Codebook)
    prior: Annotated[str, OneOf(PRIORS)] = "frequency"

    @property
    def places(self) -> tuple[int, ...]:
        """The shape of one example's map of indices."""
        return tuple(self.network.latent_shape[:-1])

    @property
    def rate(self) -> float:
        """Nats: the KL to the uniform prior over indices (section 3.2)."""
        return math.prod(self.places) * math.log(self.codebook.size)

    def init(self, key: jax.Array) -> tuple[Params, Extra]:
        """Parameters of the one player, and the codebook with its moving averages."""
        width = self.network.latent_shape[-1]
        codebook = quantize.init(jax.random.fold_in(key, 1), self.codebook.size, width)
        # A copy: a donated state must not hold one buffer twice.
        return {"net": self.init_net(key)}, jax.tree.map(jnp.copy, codebook)

    def quantize(
        self, params: Params, extra: Extra, batch: Batch
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """z and z_q [B, *places, width] and the index int [B, *places]."""
        z = self.apply(params, self.network.encode, batch["x"], self.label_of(batch))[0]
        return z, *quantize.quantize(z, extra["codebook"])

    def outputs(self, params: Params, z_q: jax.Array, label: jax.Array | None) -> jax.Array:
        """What the decoder says for z_q, [B, ..., likelihood.channels]."""
        return self.apply(params, self.network.decode, z_q, label)

    def terms(
        self, params: Params, batch: Batch, z: jax.Array, z_q: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """log p(x|z_q) in nats and |z - z_q|^2, each [B]."""
        outputs = self.outputs(params, z_q, self.label_of(batch))
        log_p = self.log_likelihood(params, outputs, batch["x"])
        return log_p, quantize.commitment(z, z_q)

    def loss(self, view: View, batch: Batch, key: jax.Array) -> LossValue:
        """-log p(x|z_q) and the commitment; `extra` comes back with the codebook one step on."""
        z, z_q, index = self.quantize(view.params, view.extra, batch)
        log_p, distance = self.terms(view.params, batch, z, z_q)
        metrics = {
            "distortion": -jnp.mean(log_p),
            "commitment": jnp.mean(distance),
            "perplexity": quantize.perplexity(quantize.usage(index, self.codebook.size)),
        }
        updated = quantize.update(view.extra, z, index, self.codebook.decay)
        updated = quantize.restart(updated, z, key, self.codebook.restart)
        return jnp.mean(self.codebook.commitment * distance - log_p), (metrics, updated)

    def evaluate(self, variables: Variables, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        """`bounds`, and |z - z_q|^2 as "commitment", [B].

        The bound is that of the uniform prior over indices, to which the KL is a constant; a
        learned one would lower it.
        """
        z, z_q, _ = self.quantize(variables.params, variables.extra, batch)
        log_p, distance = self.terms(variables.params, batch, z, z_q)
        kl = jnp.full_like(log_p, self.rate)
        return {**self.bounds(log_p, kl), "commitment": distance}

    def encode(self, variables: Variables, batch: Batch) -> dict[str, jax.Array]:
        """{"index": int [B, *places]}."""
        return {"index": self.quantize(variables.params, variables.extra, batch)[2]}

    def decode(self, variables: Variables, z: jax.Array, cond: Cond) -> jax.Array:
        """Mean examples of indices int [n, *places], or of vectors [n, *places, width].

        Vectors are decoded by the entries nearest to them.
        """
        if jnp.issubdtype(z.dtype, jnp.integer):
            z_q = variables.extra["codebook"][z]
        else:
            z_q, _ = quantize.quantize(z, variables.extra["codebook"])
        outputs = self.outputs(variables.params, z_q, self.asked_label(cond))
        return self.likelihood.mean(outputs)

    def reconstruct(
        self, variables: Variables, batch: Batch, key: jax.Array
    ) -> dict[str, tuple[jax.Array, jax.Array]]:
        """The mean example that x's own entries decode to."""
        _, z_q, _ = self.quantize(variables.params, variables.extra, batch)
        outputs = self.outputs(variables.params, z_q, self.label_of(batch))
        return {"reconstruction": (batch["x"], self.likelihood.mean(outputs))}

    def start(self, variables: Variables, keys: jax.Array, cond: Cond) -> dict[str, Any]:
        """Indices of samples, and the labels that were asked for."""
        uniform = self.prior == "uniform"
        counts = jnp.ones(self.codebook.size) if uniform else variables.extra["counts"]
        draw = partial(jax.random.categorical, logits=jnp.log(counts), shape=self.places)
        return {"index": jax.vmap(draw)(keys), "label": self.asked_label(cond)}

    def finish(self, variables: Variables, carry: Mapping[str, Any]) -> jax.Array:
        """The mean examples of the indices."""
        return self.decode(variables, carry["index"], {"label": carry["label"]})

    def family(self) -> Family:
        """The family that these parts make."""
        return Family(
            self.init,
            (Phase("net", self.loss),),
            self.evaluate,
            averaged=("net",),
            transferred=("codebook", "counts", "sums"),
            drawing=Drawing(self.start, self.finish, conditions=self.conditions),
            codec=Codec(
                self.encode, self.decode, partial(diagnose, size=self.codebook.size), code="index"
            ),
            views=Views(self.reconstruct),
        )


def diagnose(codes: Mapping[str, np.ndarray], size: int) -> tuple[dict[str, float], str]:
    """How many of `size` entries N examples' {"index": [N, ...]} use; see `Codec.diagnose`."""
    counts = np.bincount(np.asarray(codes["index"]).reshape(-1), minlength=size)
    used = int((counts > 0).sum())
    metrics = {
        "perplexity": float(quantize.perplexity(jnp.asarray(counts, jnp.float32))),
        "entries_used": float(used),
    }
    if used < 0.1 * size:
        return metrics, (
            f"Codebook collapse: {used} of {size} entries are used. Restart dead ones "
            "(vae.codebook.restart) or take fewer (vae.codebook.size)."
        )
    return metrics, ""
