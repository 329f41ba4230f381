"""Generative adversarial networks as a family: two players (Goodfellow et al. 2014)."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from aigc_jax import modalities
from aigc_jax.checks import Count, NonNegative, OneOf, Whole, arguments, kinds, section
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
from aigc_jax.gan import augment, figures, losses, players
from aigc_jax.gan.frozen import freeze, lower_layers
from aigc_jax.gan.latents import Latents
from aigc_jax.gan.statistics import in_training, of_one_batch, updated

STANDING = 512  # latents that the standing statistics of a generator are taken of


def build(config: Mapping[str, Any], spec: DataSpec) -> Family:
    """The GAN of an experiment, as a family. See `from_config`."""
    return from_config(config, spec).family()


def from_config(config: Mapping[str, Any], spec: DataSpec) -> "GAN":
    """The GAN of an experiment.

    Args:
      config: reads `network` (see `players.build`), `gan` and `sampling`.
      spec: of the data.

    Raises:
      ValueError: a setting that does not exist, or that these data or the others rule out.
    """
    networks = players.build(config["network"], spec)
    of_gan = {
        "loss": Annotated[str, OneOf(losses.LOSSES)],
        **kinds(Latents, only=("prior",)),
        **dict.fromkeys(("penalty", "augment", "classifier"), Mapping),
        **kinds(GAN, only=("decay_steps", "critics", "generator_batch", "frozen")),
    }
    settings = section("gan", config["gan"], of_gan)
    of_classifier = dict.fromkeys(("weight", "weight_generator"), NonNegative)
    classifier = section("gan.classifier", settings.pop("classifier"), of_classifier)
    sampling = section("sampling", config["sampling"], kinds(Latents, only=("truncation",)))
    penalty = arguments("gan.penalty", losses.Penalty, settings.pop("penalty"))
    augmentation = arguments("gan.augment", augment.Augmentation, settings.pop("augment"))
    return GAN(
        **networks,
        latents=Latents(
            networks["generator"].latent, settings.pop("prior"), sampling["truncation"]
        ),
        kind=spec.kind,
        game=losses.build(settings.pop("loss")),
        penalty=losses.Penalty(**penalty),
        augmentation=augment.Augmentation(**augmentation),
        class_weight=classifier["weight"],
        class_weight_generator=classifier["weight_generator"],
        **settings,
    )


@dataclass(frozen=True, eq=False)
class GAN:
    """A generator of z against a discriminator of examples; its methods are the papers' steps.

    Attributes:
      generator: module of (z, label, train=) -> examples, with `latent`, `num_classes`, `shape`.
      discriminator: module of (examples, label, train=) -> (logits, class logits or None).
      latents: the prior of z.
      kind: of the data, a name of `modalities`.
      game: what the two players minimise.
      penalty: what keeps the discriminator smooth.
      augmentation: of what the discriminator sees.
      decay_steps: over which the penalty's weight and the probability of augmentation go along a
        cosine to their ends, as in R3GAN (Huang et al. 2024, arXiv:2501.05441); 0: both are
        constant.
      critics: updates of the discriminator for one of the generator, each on its own batch.
      generator_batch: generated examples of the generator's update, in batches.
      class_weight, class_weight_generator: of the cross entropy of a discriminator that also
        classifies, in each player's loss (AC-GAN).
      frozen: layers of the discriminator, from the input, that do not learn: for fine-tuning (Mo
        et al. 2020, arXiv:2002.10964).
    """

    generator: Any
    discriminator: Any
    latents: Latents
    kind: str
    game: losses.Loss
    penalty: losses.Penalty
    augmentation: augment.Augmentation
    decay_steps: Whole = 0
    critics: Count = 1
    generator_batch: Count = 1
    class_weight: float = 1.0
    class_weight_generator: float = 0.1
    frozen: Whole = 0

    def __post_init__(self) -> None:
        if self.penalty.terms and getattr(self.discriminator, "norm", "") == "batch":
            raise SettingError(
                f"gan.penalty.name={self.penalty.name!r} is of each example's own gradient, which "
                "batch norm mixes with the others': set network.discriminator.norm to 'none' or "
                "'spectral'"
            )
        if self.generator_batch > 1 and self.game.relativistic:
            raise SettingError(
                "gan.loss='relativistic' pairs examples: gan.generator_batch must be 1"
            )
        if self.augmentation.policy and self.kind != "image":
            raise SettingError(f"gan.augment.policy changes images, not data of kind {self.kind!r}")
        if self.augmentation.adaptive and self.decay_steps:
            raise SettingError("gan.augment.target sets the probability: gan.decay_steps must be 0")

    @property
    def classes(self) -> int:
        """How many labels the generator takes; 0 for an unconditional one."""
        return self.generator.num_classes

    def family(self) -> Family:
        """All of this as the trainer and the driver of samples see it."""
        phases = [Phase("discriminator", self.critic_loss) for _ in range(self.critics)]
        if self.penalty.terms and self.penalty.every > 1:
            lazy = Phase("discriminator", self.penalty_loss, self.penalty.every, name="penalty")
            phases.append(lazy)
        _, extra = jax.eval_shape(self.init, jax.eval_shape(jax.random.key, 0))
        prepared = {}
        if "generator" in extra:
            name = f"standing statistics of {STANDING} latents"
            prepared = {"prepare": self.prepare, "prepared_as": name}
        return Family(
            init=self.init,
            phases=(*phases, Phase("generator", self.generator_loss)),
            evaluate=self.evaluate,
            averaged=("generator",),
            batches_per_step=self.critics,
            transferred=("generator", "discriminator"),
            drawing=Drawing(
                start=self.start,
                finish=self.finish,
                conditions={"label": Field("label", (), self.classes)} if self.classes else {},
                between=self.between,
                **prepared,
            ),
            views=Views(figures=self.figures),
        )

    def init(self, key: jax.Array) -> tuple[Params, Extra]:
        """Parameters of both players; their statistics, and an adaptive probability, as extra."""
        label = jnp.zeros((1,), jnp.int32) if self.classes else None
        inputs = {
            "generator": (self.generator, jnp.zeros((1, self.latents.size))),
            "discriminator": (self.discriminator, jnp.zeros((1, *self.generator.shape))),
        }
        params, extra = {}, {}
        for (player, (module, x)), k in zip(inputs.items(), jax.random.split(key), strict=True):
            variables = module.init(k, x, label)
            params[player] = dict(variables["params"])
            if "batch_stats" in variables:
                extra[player] = dict(variables["batch_stats"])
        if self.augmentation.adaptive:
            extra["augment_probability"] = jnp.float32(self.augmentation.probability)
        lower_layers(params["discriminator"], self.frozen)  # raises where it has fewer layers
        return params, extra

    # --- Training ------------------------------------------------------------------------------

    def critic_loss(self, view: View, batch: Batch, key: jax.Array) -> LossValue:
        """What the discriminator minimises on real and generated examples, with its penalty.

        A lazy penalty is left to `penalty_loss`.
        """
        z_key, real_key, fake_key, penalty_key = jax.random.split(key, 4)
        view = self.with_frozen(view)
        real, label = batch["x"], self.label_of(batch)
        fake, _ = self.generate(view, z_key, label, len(real))
        stats = view.extra.get("discriminator", {})
        shown = self.augmented(view, real, real_key)
        (on_real, real_classes), stats = self.discriminate(view, shown, label, stats)
        shown = self.augmented(view, fake, fake_key)
        (on_fake, fake_classes), stats = self.discriminate(view, shown, label, stats)
        value = self.game.discriminator(on_real, on_fake)
        metrics = {"logit_real": jnp.mean(on_real), "logit_fake": jnp.mean(on_fake)}
        if real_classes is not None:
            on_data = losses.class_loss(real_classes, label)
            value += self.class_weight * (on_data + losses.class_loss(fake_classes, label))
            metrics["class_loss"] = jnp.mean(on_data)
        if self.penalty.terms and self.penalty.every == 1:
            penalty = self.gradient_penalty(view, real, fake, label, penalty_key)
            value, metrics["penalty"] = value + penalty, jnp.mean(penalty)
        extra = updated(view.extra, "discriminator", stats)
        if self.augmentation.adaptive:
            extra["augment_probability"] = augment.adapted(
                extra["augment_probability"],
                on_real,
                target=self.augmentation.target,
                images=self.augmentation.images,
                batch_size=len(real),
            )
            metrics["augment_probability"] = extra["augment_probability"]
        elif self.augmentation.policy:
            metrics["augment_probability"] = jnp.float32(self.probability(view))
        return jnp.mean(value), (metrics, extra)

    def penalty_loss(self, view: View, batch: Batch, key: jax.Array) -> LossValue:
        """The penalty alone, times the number of steps for which it stands (lazy)."""
        z_key, key = jax.random.split(key)
        view = self.with_frozen(view)
        real, label = batch["x"], self.label_of(batch)
        fake, _ = self.generate(view, z_key, label, len(real))
        penalty = self.gradient_penalty(view, real, fake, label, key)
        return self.penalty.every * jnp.mean(penalty), ({}, view.extra)

    def generator_loss(self, view: View, batch: Batch, key: jax.Array) -> LossValue:
        """What the generator minimises on `generator_batch` batches of its examples."""
        z_key, real_key, fake_key = jax.random.split(key, 3)
        real, label = batch["x"], self.label_of(batch)
        if self.classes:
            label = jnp.tile(label, self.generator_batch)
        fake, stats = self.generate(view, z_key, label, self.generator_batch * len(real))
        own = view.extra.get("discriminator", {})  # the discriminator's statistics stay
        shown = self.augmented(view, fake, fake_key)
        (on_fake, classes), _ = self.discriminate(view, shown, label, own)
        on_real = on_fake  # not looked at, except by a relativistic game
        if self.game.relativistic:
            shown = self.augmented(view, real, real_key)
            (on_real, _), _ = self.discriminate(view, shown, label, own)
        value, metrics = self.game.generator(on_real, on_fake), {"logit_fake": jnp.mean(on_fake)}
        if classes is not None:
            class_loss = losses.class_loss(classes, label)
            value += self.class_weight_generator * class_loss
            metrics["class_loss"] = jnp.mean(class_loss)
        return jnp.mean(value), (metrics, updated(view.extra, "generator", stats))

    def gradient_penalty(
        self, view: View, real: jax.Array, fake: jax.Array, label: jax.Array | None, key: jax.Array
    ) -> jax.Array:
        """The penalty of each pair of a real and a generated example [B], with its weight.

        It is of the discriminator after augmentation, with respect to examples before it.
        """
        augment_key, *keys = jax.random.split(key, 1 + len(self.penalty.terms))

        stats = view.extra.get("discriminator", {})

        def logit(x: jax.Array) -> jax.Array:
            shown = self.augmented(view, x, augment_key)
            (logits, _), _ = self.discriminate(view, shown, label, stats)
            return logits

        terms = [
            losses.PENALTIES[name](logit, real, fake, k)
            for name, k in zip(self.penalty.terms, keys, strict=True)
        ]
        weight = self.scheduled(view.step, self.penalty.weight, self.penalty.weight_end)
        return self.penalty.factor * weight * sum(terms)

    def generate(
        self, view: View, key: jax.Array, label: jax.Array | None, n: int
    ) -> tuple[jax.Array, Any]:
        """n examples as in training, and the generator's batch statistics after them."""
        z = self.latents.draw(key, n)
        stats = view.extra.get("generator", {})
        return in_training(self.generator, view.params["generator"], stats, z, label)

    def discriminate(self, view: View, x: jax.Array, label: jax.Array | None, stats: Any) -> tuple:
        """((logits, class logits or None) of x [B, ...] as in training, statistics after it)."""
        return in_training(self.discriminator, view.params["discriminator"], stats, x, label)

    def augmented(self, view: View, x: jax.Array, key: jax.Array) -> jax.Array:
        """x [B, ...] as the discriminator sees it."""
        if not self.augmentation.policy:
            return x
        return augment.differentiable(key, x, self.augmentation.policy, self.probability(view))

    def probability(self, view: View) -> float | jax.Array:
        """Of each part of the augmentation, at this step."""
        if self.augmentation.adaptive:
            return view.extra["augment_probability"]
        start, end = self.augmentation.probability, self.augmentation.probability_end
        return self.scheduled(view.step, start, end)

    def scheduled(self, step: jax.Array, start: float, end: float) -> float | jax.Array:
        """A setting that goes from `start` to `end` along a cosine, at `step`."""
        if not self.decay_steps:
            return start
        left = (1 + jnp.cos(jnp.pi * jnp.minimum(step / self.decay_steps, 1.0))) / 2
        return end + (start - end) * left

    def with_frozen(self, view: View) -> View:
        """The view, with no gradient to the discriminator's frozen layers."""
        own = freeze(view.params["discriminator"], self.frozen)
        return view._replace(params={**view.params, "discriminator": own})

    def label_of(self, batch: Batch) -> jax.Array | None:
        """The labels of a batch; None for an unconditional model."""
        return batch["label"] if self.classes else None

    # --- Evaluation and samples ----------------------------------------------------------------

    def evaluate(self, variables: Variables, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        """{"logit_real", "logit_fake": [B]}: of examples that no discriminator was trained on.

        Real ones far below those of training: it has learned its examples by heart.
        """
        label = self.label_of(batch)
        z = self.latents.draw(key, len(batch["x"]))
        examples = {"logit_real": batch["x"], "logit_fake": self.decode(variables, z, label)}
        stats = variables.extra.get("discriminator", {})
        own = {"params": variables.params["discriminator"], "batch_stats": stats}
        return {
            name: losses.map_mean(self.discriminator.apply(own, x, label, train=False)[0])
            for name, x in examples.items()
        }

    def decode(self, variables: Variables, z: jax.Array, label: jax.Array | None) -> jax.Array:
        """Examples [n, ...] in the model's range of latents [n, d], each independent of the others.

        With the generator's standing statistics where they were prepared, else with those of
        training.
        """
        stats = variables.prepared.get("generator", variables.extra.get("generator", {}))
        own = {"params": variables.params["generator"], "batch_stats": stats}
        examples = self.generator.apply(own, z, label, train=False)
        return modalities.of(self.kind).clip(examples)  # a network without tanh can leave the range

    def prepare(self, variables: Variables, codes: Any) -> dict[str, Any]:
        """See `standing_statistics`, which takes no codes of data."""
        del codes
        return self._standing_statistics(variables)

    @cached_property
    def _standing_statistics(self) -> Any:
        """Compiled once for all checkpoints."""
        return jax.jit(self.standing_statistics)

    def standing_statistics(self, variables: Variables) -> dict[str, Any]:
        """{"generator": batch statistics} of the generator's parameters as they are.

        Those of training belong to the parameters of training, not to their average, which samples
        are drawn with. Of 512 latents, always the same.
        """
        label = jnp.arange(STANDING) % self.classes if self.classes else None
        z = self.latents.draw(jax.random.key(0), STANDING)
        own, stats = variables.params["generator"], variables.extra["generator"]
        return {"generator": of_one_batch(self.generator, own, stats, z, label)}

    def start(self, variables: Variables, keys: jax.Array, cond: Cond) -> dict[str, Any]:
        """Latents [n, d] of keys [n], and the labels that go with them."""
        label = cond.get("label") if self.classes else None
        return {"z": self.latents.sample(keys), "label": label}

    def between(self, a: dict[str, Any], b: dict[str, Any], share: jax.Array) -> dict[str, Any]:
        """A share of the way from latents to others; the labels stay those of `a`."""
        return {**a, "z": self.latents.way(a["z"], b["z"], share)}

    def finish(self, variables: Variables, carry: dict[str, Any]) -> jax.Array:
        """The samples [n, ...]."""
        return self.decode(variables, carry["z"], carry["label"])

    def figures(self, variables: Variables, keys: jax.Array, cond: Cond) -> Mapping[str, jax.Array]:
        """See `figures.of_latents`; those of a conditional model are all of the first label."""

        def decoded(z: jax.Array) -> jax.Array:
            label = jnp.full((len(z),), cond["label"][0]) if self.classes else None
            return self.decode(variables, z, label)

        # A label's rows of the kernel come after those of z.
        kernel = variables.params["generator"]["in"]["kernel"][: self.latents.size]
        return figures.of_latents(decoded, self.latents.sample(keys[:1])[0], kernel)
