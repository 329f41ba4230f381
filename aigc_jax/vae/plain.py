"""Variational autoencoders with one group of latents, N(0, I) a priori.

Kingma & Welling 2014 (arXiv:1312.6114), and what is trained alike: beta-VAEs, importance-weighted
and denoising autoencoders, conditional ones, and the KL autoencoders of latent diffusion.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.checks import OneOf, kinds, section
from aigc_jax.errors import SettingError
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
from aigc_jax.gaussian import normal_kl
from aigc_jax.vae import figures, objectives, sections
from aigc_jax.vae.adversary import Adversary, balance
from aigc_jax.vae.base import Autoencoder
from aigc_jax.vae.likelihood import gaussian_log_prob, per_example
from aigc_jax.vae.noise import BINARISE, Noise
from aigc_jax.vae.objectives import Importance
from aigc_jax.vae.perceptual import Perceptual
from aigc_jax.vae.posterior import diagnose, reparameterised
from aigc_jax.vae.prior import Sampling, fit_mixture

# What the section `vae` holds.
OF_VAE = {
    "likelihood": Mapping,
    "binarise": Annotated[str, OneOf(BINARISE)],
    "conditional": bool,
    "kl": Mapping,
    "importance": Mapping,
    "noise": Mapping,
    "perceptual": Mapping,
    "adversary": Mapping,
}
Posterior = tuple[jax.Array, jax.Array]  # mean and log-variance, each [B, *latent_shape]


def build(config: Mapping[str, Any], spec: DataSpec) -> Family:
    """The family of an experiment, from the sections `network`, `vae` and `sampling`.

    Raises:
      ValueError: settings that are unknown or missing, or that cannot be.
    """
    settings = section("vae", config["vae"], OF_VAE)
    likelihood = sections.likelihood(settings["likelihood"], spec)
    conditions = sections.conditions(settings["conditional"], spec)
    network = sections.network(
        sections.AUTOENCODERS,
        config["network"],
        spec,
        likelihood.channels,
        num_classes=spec.classes if conditions else 0,
    )
    kl, shape = dict(settings["kl"]), tuple(spec.shape)
    importance = section("vae.importance", settings["importance"], kinds(Importance))
    kl_cost = sections.kl_cost(kl)
    if importance["samples"] > 1 and any(kl[k] != v for k, v in sections.PLAIN_KL.items()):
        raise SettingError(
            "vae.importance.samples above 1 weighs no KL: leave weight, beta and free_bits of "
            "vae.kl alone"
        )
    return VAE(
        network=network,
        shape=shape,
        likelihood=likelihood,
        conditions=conditions,
        has_bits=sections.has_bits(likelihood, spec, settings["binarise"]),
        kl_cost=kl_cost,
        binarise=settings["binarise"],
        importance=Importance(**importance),
        noise=Noise(**section("vae.noise", settings["noise"], kinds(Noise))),
        perceptual=sections.perceptual(settings["perceptual"], spec),
        adversary=sections.adversary(settings["adversary"], spec),
        sampling=Sampling(**section("sampling", config["sampling"], kinds(Sampling))),
    ).family()


@dataclass(frozen=True, eq=False, kw_only=True)
class VAE(Autoencoder):
    """A VAE as its parts; each method is a step of its papers.

    The network has `encode(x, label) -> (mean, logvar)`, `decode(z, label) -> outputs` and
    `latent_shape`, that of one code.

    Attributes:
      kl_cost: (kl [B, ...], step) -> what the KL costs in training, [B]. Not used where
        `importance.samples` is above 1.
      binarise: of the data: "none", "threshold" (at half), or "dynamic" (drawn anew each time).
      importance: how many samples of z the bounds have.
      noise: what the encoder is given instead of x in training, and in `evaluate`, whose bound is
        the one that training maximises; `importance_bound` and `encode` give it x itself.
      perceptual: a cost beside the bound, of reconstructions in the maps of a frozen network.
      adversary: a second player, who tells reconstructions from data.
      sampling: where samples' codes come from.
    """

    kl_cost: objectives.Cost
    binarise: str = "none"
    importance: Importance = field(default_factory=Importance)
    noise: Noise = field(default_factory=Noise)
    perceptual: Perceptual | None = None
    adversary: Adversary | None = None
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        samples = self.importance.samples
        if samples > 1 and (self.perceptual or self.adversary):
            raise SettingError(
                "vae.importance.samples above 1 takes no terms beside the bound (vae.perceptual, "
                "vae.adversary)"
            )
        if samples > 1 and self.likelihood.name == "gaussian_optimal":
            raise SettingError(
                "vae.importance.samples above 1 needs a likelihood: gaussian_optimal is none"
            )

    # --- The model -------------------------------------------------------------------------------

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Of one code."""
        return tuple(self.network.latent_shape)

    def init(self, key: jax.Array) -> tuple[Params, Extra]:
        """Parameters of each player, and no other state."""
        players = {"net": self.init_net(key)}
        if self.adversary:
            players[self.adversary.player] = self.adversary.init(jax.random.fold_in(key, 1))
        return players, {}

    def posterior(self, params: Params, x: jax.Array, label: jax.Array | None) -> Posterior:
        """Mean and log-variance of q(z|x), each [B, *latent_shape]."""
        mean, logvar = self.apply(params, self.network.encode, x, label)
        return mean, objectives.clip_logvar(logvar)

    def outputs(self, params: Params, z: jax.Array, label: jax.Array | None) -> jax.Array:
        """What the decoder says for z, [B, ..., likelihood.channels]."""
        return self.apply(params, self.network.decode, z, label)

    def mean_of(self, params: Params, z: jax.Array, label: jax.Array | None) -> jax.Array:
        """The mean example [B, ...] that codes z decode to."""
        return self.likelihood.mean(self.outputs(params, z, label))

    def forward(
        self, params: Params, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """x as binarised, what the decoder says of it from one z, and the KL [B, ...] in nats."""
        data_key, noise_key, z_key = jax.random.split(key, 3)
        x, label = self._binarised(data_key, batch["x"]), self.label_of(batch)
        mean, logvar = self.posterior(params, self.noise(noise_key, x), label)
        outputs = self.outputs(params, reparameterised(mean, logvar, z_key), label)
        return x, outputs, normal_kl(mean, logvar)

    def log_weight(
        self, params: Params, x: jax.Array, q: Posterior, label: jax.Array | None, key: jax.Array
    ) -> jax.Array:
        """log p(x, z) / q(z|x) in nats, [B], of one z drawn from the posterior q."""
        z = reparameterised(*q, key)
        ratio = gaussian_log_prob(z, 0.0, 0.0) - gaussian_log_prob(z, *q)
        return self.log_likelihood(params, self.outputs(params, z, label), x) + per_example(ratio)

    def _binarised(self, key: jax.Array, x: jax.Array) -> jax.Array:
        return BINARISE[self.binarise](key, x)

    def _as_known(self, x: jax.Array) -> jax.Array:
        """Examples as the model knows them, as far as that is not random."""
        return BINARISE["threshold"](None, x) if self.binarise == "threshold" else x

    # --- Training --------------------------------------------------------------------------------

    def loss(self, view: View, batch: Batch, key: jax.Array) -> LossValue:
        """-log p(x|z), the cost of the KL, and what the model costs beside the bound."""
        x, outputs, kl = self.forward(view.params, batch, key)
        log_p = self.log_likelihood(view.params, outputs, x)
        costs = {}
        if self.perceptual:
            costs["perceptual"] = self.perceptual_cost(view, x, outputs)
        if self.adversary:
            costs[self.adversary.player] = self.adversarial_cost(view, x, outputs)
        value = self.kl_cost(kl, view.step) - log_p + sum(costs.values())
        metrics = {"neg_elbo": -objectives.elbo(log_p, kl), "kl": per_example(kl)}
        means = {name: jnp.mean(each) for name, each in (metrics | costs).items()}
        return jnp.mean(value), (means, view.extra)

    def importance_loss(self, view: View, batch: Batch, key: jax.Array) -> LossValue:
        """Less the importance-weighted bound of `importance.samples` samples (eq. 8)."""
        data_key, noise_key, z_key = jax.random.split(key, 3)
        x, label = self._binarised(data_key, batch["x"]), self.label_of(batch)
        q = self.posterior(view.params, self.noise(noise_key, x), label)
        keys = jax.random.split(z_key, self.importance.samples)
        log_w = jax.vmap(lambda k: self.log_weight(view.params, x, q, label, k))(keys)
        value = -jnp.mean(objectives.iwae(log_w))
        return value, ({"neg_elbo": -jnp.mean(log_w)}, view.extra)

    def perceptual_cost(self, view: View, x: jax.Array, outputs: jax.Array) -> jax.Array:
        """What the distance of reconstructions in a frozen network's maps costs, nats [B]."""
        return self.perceptual(view.constants["perceptual"], x, self.likelihood.mean(outputs))

    def adversarial_cost(self, view: View, x: jax.Array, outputs: jax.Array) -> jax.Array:
        """What the adversary costs the autoencoder, [B], balanced with what x itself costs it."""

        def distortion(outputs: jax.Array) -> jax.Array:
            beside = self.perceptual_cost(view, x, outputs) if self.perceptual else 0.0
            return beside - self.log_likelihood(view.params, outputs, x)

        def cost(outputs: jax.Array) -> jax.Array:
            own = view.params[self.adversary.player]
            return self.adversary.generator_loss(own, self.likelihood.mean(outputs))

        weight = self.adversary.weight * (view.step >= self.adversary.start)
        return weight * balance(distortion, cost, outputs) * cost(outputs)

    def discriminator_loss(self, view: View, batch: Batch, key: jax.Array) -> LossValue:
        """The adversary's own loss, from the step on at which it joins."""
        x, outputs, _ = self.forward(view.params, batch, key)
        own, fake = view.params[self.adversary.player], self.likelihood.mean(outputs)
        value = jnp.mean(self.adversary.discriminator_loss(own, x, fake))
        return value * (view.step >= self.adversary.start), ({}, view.extra)

    def constants(self) -> dict[str, Any]:
        """{"perceptual": ...}, the frozen network that `perceptual` measures with."""
        return {"perceptual": self.perceptual.variables()}

    # --- Bounds on the likelihood ----------------------------------------------------------------

    def evaluate(self, variables: Variables, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        """`bounds`, from one z."""
        x, outputs, kl = self.forward(variables.params, batch, key)
        return self.bounds(self.log_likelihood(variables.params, outputs, x), kl)

    def importance_bound(
        self, variables: Variables, batch: Batch, key: jax.Array
    ) -> dict[str, jax.Array]:
        """{"neg_log_p_iwK": [B]}, nats: the estimate of -log p(x) by K = `test_samples` of z.

        The encoder sees x itself, also where it was trained on noisy examples.
        """
        data_key, key = jax.random.split(key)
        count, chunk = self.importance.test_samples, self.importance.chunk
        value = objectives.importance_log_likelihood(
            lambda keys: self._log_weights(variables.params, batch, data_key, keys),
            key,
            count,
            chunk,
        )
        return {f"neg_log_p_iw{count}": -value}

    @functools.cached_property
    def _log_weights(self) -> Callable[..., jax.Array]:
        """(params, batch, data_key, keys [k]) -> `log_weight` of a z a key, [k, B], compiled."""

        def run(params: Params, batch: Batch, data_key: jax.Array, keys: jax.Array) -> jax.Array:
            x, label = self._binarised(data_key, batch["x"]), self.label_of(batch)
            q = self.posterior(params, x, label)
            return jax.vmap(lambda k: self.log_weight(params, x, q, label, k))(keys)

        return jax.jit(run)

    # --- Codes -----------------------------------------------------------------------------------

    def encode(self, variables: Variables, batch: Batch) -> dict[str, jax.Array]:
        """{"mean", "logvar": [B, *latent_shape]} of the posterior."""
        x, label = self._as_known(batch["x"]), self.label_of(batch)
        mean, logvar = self.posterior(variables.params, x, label)
        return {"mean": mean, "logvar": logvar}

    def decode(self, variables: Variables, z: jax.Array, cond: Cond) -> jax.Array:
        """Mean examples [n, ...] of codes z [n, *latent_shape]."""
        return self.mean_of(variables.params, z, self.asked_label(cond))

    def reconstruct(
        self, variables: Variables, batch: Batch, key: jax.Array
    ) -> dict[str, tuple[jax.Array, jax.Array]]:
        """What the decoder makes of the mean code: of x, and of x with noise."""
        params, x, label = variables.params, self._as_known(batch["x"]), self.label_of(batch)

        def of(given: jax.Array) -> jax.Array:
            return self.mean_of(params, self.posterior(params, given, label)[0], label)

        pairs = {"reconstruction": (x, of(x))}
        if self.noise.kind != "none":
            given = self.noise(key, x)
            pairs[str(self.noise)] = (jnp.clip(given, -1.0, 1.0), of(given))
        return pairs

    # --- Samples ---------------------------------------------------------------------------------

    def prepare(
        self, variables: Variables, codes: Callable[[], Mapping[str, np.ndarray]]
    ) -> dict[str, Any]:
        """{"mixture": ...}, fitted to the codes of training data."""
        return {"mixture": fit_mixture(codes(), self.sampling.components)}

    def draw_prior(self, variables: Variables, key: jax.Array) -> jax.Array:
        """A code [*latent_shape] from the mixture that was fitted, or else from N(0, I)."""
        return self.sampling.draw(key, self.latent_shape, variables.prepared.get("mixture"))

    def start(self, variables: Variables, keys: jax.Array, cond: Cond) -> dict[str, Any]:
        """Codes of samples, and the labels that were asked for."""
        z = jax.vmap(lambda key: self.draw_prior(variables, key))(keys)
        return {"z": z, "label": self.asked_label(cond)}

    def between(
        self, begin: dict[str, Any], end: dict[str, Any], share: jax.Array
    ) -> dict[str, Any]:
        """Codes on the straight line from one sample's to another's."""
        return {**begin, "z": begin["z"] + share * (end["z"] - begin["z"])}

    def finish(self, variables: Variables, carry: dict[str, Any]) -> jax.Array:
        """The mean examples of the codes."""
        return self.mean_of(variables.params, carry["z"], carry["label"])

    def figures(self, variables: Variables, keys: jax.Array, cond: Cond) -> dict[str, jax.Array]:
        """See `figures.of_codes`; a conditional model's are all of the first key's label."""

        def decoded(z: jax.Array) -> jax.Array:
            label = jnp.full((len(z),), cond["label"][0]) if self.conditions else None
            return self.mean_of(variables.params, z, label)

        return figures.of_codes(decoded, self.draw_prior(variables, keys[0]))

    # --- The whole -------------------------------------------------------------------------------

    def family(self) -> Family:
        """The family that these parts make."""
        of_one = self.importance.samples == 1
        phases = [Phase("net", self.loss if of_one else self.importance_loss)]
        if self.adversary:
            phases.append(Phase(self.adversary.player, self.discriminator_loss))
        fitted = self.sampling.prior == "mixture"
        return Family(
            self.init,
            tuple(phases),
            self.evaluate,
            averaged=("net",),
            constants=self.constants if self.perceptual else None,
            drawing=Drawing(
                self.start,
                self.finish,
                conditions=self.conditions,
                prepare=self.prepare if fitted else None,
                prepared_as=f"mixture of {self.sampling.components}" if fitted else "",
                fitted=fitted,
                between=self.between,
            ),
            codec=Codec(self.encode, self.decode, diagnose),
            views=Views(self.reconstruct, self.figures),
            # The optimal sigma is of a batch, so it makes no weight of an example.
            bound=None if self.likelihood.name == "gaussian_optimal" else self.importance_bound,
        )
