"""CycleGAN as a family: two domains, a generator each way, a discriminator of each domain.

Zhu, Park, Isola & Efros, "Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial
Networks", 2017 (arXiv:1703.10593). Domain A is a batch's "x", domain B its "other".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from aigc_jax.checks import NonNegative, OneOf, Whole, arguments, kinds, section
from aigc_jax.errors import SettingError
from aigc_jax.family import (
    Batch,
    DataSpec,
    Extra,
    Family,
    LossValue,
    Params,
    Phase,
    Variables,
    View,
    Views,
)
from aigc_jax.gan import losses
from aigc_jax.gan import pool as pools
from aigc_jax.networks.gan.cyclegan import Discriminator, Generator

DIRECTIONS = ("a2b", "b2a")
DOMAINS = ("a", "b")
PLAYERS = ("generator", "discriminator")


def build(config: Mapping[str, Any], spec: DataSpec) -> Family:
    """The CycleGAN of an experiment, as a family. See `from_config`."""
    return from_config(config, spec).family()


def from_config(config: Mapping[str, Any], spec: DataSpec) -> "CycleGAN":
    """The CycleGAN of an experiment.

    Args:
      config: reads `network` ({"generator", "discriminator"}: keyword arguments), `cyclegan`,
        `data` (its splits), and `train.batch_size`.
      spec: of the data.

    Raises:
      ValueError: a setting that does not exist, or that these data or the others rule out.
    """
    for key in ("train_split", "test_split"):
        if "+" not in config["data"][key]:
            raise SettingError(
                f"cyclegan learns from two domains: data.{key} is such as trainA+trainB, not "
                f"{config['data'][key]!r}"
            )
    if spec.kind != "image":
        raise SettingError(f"cyclegan takes images; these data are of kind {spec.kind!r}")
    of_network = dict.fromkeys(PLAYERS, Mapping)
    shape, networks = spec.shape, section("network", config["network"], of_network)
    given = {"image_shape": shape, "out_channels": shape[-1]}
    generator = arguments("network.generator", Generator, networks["generator"], given)
    discriminator = arguments(
        "network.discriminator", Discriminator, networks["discriminator"], ["image_shape"]
    )
    weights = ("adversarial", "cycle_a", "cycle_b", "identity", "pool")
    of_cyclegan = {"loss": Annotated[str, OneOf(losses.LOSSES)], **kinds(CycleGAN, only=weights)}
    settings = section("cyclegan", config["cyclegan"], of_cyclegan)
    section("sampling", config["sampling"], {})  # nothing is drawn from noise
    return CycleGAN(
        generator=Generator(**given, **generator),
        discriminator=Discriminator(image_shape=shape, **discriminator),
        image_shape=shape,
        game=losses.build(settings.pop("loss"), "cyclegan.loss"),
        batch_size=config["train"]["batch_size"],
        **settings,
    )


@dataclass(frozen=True, eq=False)
class CycleGAN:
    """CycleGAN of any networks; its methods are the losses of the paper.

    `extra` holds the pools, and "shown", the translations that the discriminators see next: as
    published, they learn from images that the generators made before their own update of the same
    step.

    Attributes:
      generator: module from images [B, H, W, C] to images, in [-1, 1]; its `stride` is as
        `Family.stride`.
      discriminator: module from images to (logits [B] or a map, None).
      image_shape: (H, W, C) of both domains.
      game: of each generator with its discriminator.
      batch_size: images of each domain in a training batch.
      adversarial: weight of the game in the generators' loss.
      cycle_a, cycle_b: lambda of |F(G(a)) - a| and of |G(F(b)) - b| (their eq. 3).
      identity: times these, weight of |F(a) - a| and |G(b) - b| (section 5.2); 0: none.
      pool: earlier images in a discriminator's pool; 0: it sees the newest alone.
    """

    generator: Any
    discriminator: Any
    image_shape: tuple[int, int, int]
    game: losses.Loss
    batch_size: int
    adversarial: NonNegative
    cycle_a: NonNegative
    cycle_b: NonNegative
    identity: NonNegative
    pool: Whole

    @property
    def weights(self) -> dict[str, float]:
        """Of each term of the generators' loss."""
        return {
            "adversarial_a": self.adversarial,
            "adversarial_b": self.adversarial,
            "cycle_a": self.cycle_a,
            "cycle_b": self.cycle_b,
            "identity_a": self.identity * self.cycle_a,
            "identity_b": self.identity * self.cycle_b,
        }

    def family(self) -> Family:
        """All of this as the trainer and the commands see it."""
        return Family(
            init=self.init,
            phases=(
                Phase("generator", self.generator_loss),
                Phase("discriminator", self.discriminator_loss),
            ),
            evaluate=self.evaluate,
            averaged=("generator",),
            translate=self.translate,
            stride=self.generator.stride,
            views=Views(reconstruct=self.reconstruct),
        )

    def init(self, key: jax.Array) -> tuple[Params, Extra]:
        """Parameters of both generators and both discriminators; empty pools as extra."""
        example, keys = jnp.zeros((1, *self.image_shape)), jax.random.split(key, 4)

        def of(module: Any, key: jax.Array) -> Any:
            return module.init(key, example)["params"]

        params = {
            "generator": {d: of(self.generator, keys[i]) for i, d in enumerate(DIRECTIONS)},
            "discriminator": {
                d: of(self.discriminator, keys[2 + i]) for i, d in enumerate(DOMAINS)
            },
        }
        shape = (self.batch_size, *self.image_shape)
        extra = {"shown": {domain: jnp.zeros(shape) for domain in DOMAINS}}
        if self.pool:  # a checkpoint takes no array without elements
            extra["pool"] = {domain: pools.init(self.pool, self.image_shape) for domain in DOMAINS}
        return params, extra

    def generate(self, params: Params, direction: str, images: jax.Array) -> jax.Array:
        """Images [B, H, W, C] taken to the other domain by the generator of a direction."""
        return self.generator.apply({"params": params["generator"][direction]}, images)

    def discriminate(self, params: Params, domain: str, images: jax.Array) -> jax.Array:
        """The logits that the discriminator of a domain gives images, [B] or a map."""
        return self.discriminator.apply({"params": params["discriminator"][domain]}, images)[0]

    def cycle_losses(
        self, params: Params, a: jax.Array, b: jax.Array
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Eq. 2 for each domain: what is lost on the way to the other domain and back.

        Returns:
          ({"a", "b"}: translations by the domain that they are in now, {"cycle_a", "cycle_b"}:
          [B]).
        """
        fake = {"a": self.generate(params, "b2a", b), "b": self.generate(params, "a2b", a)}
        return fake, {
            "cycle_a": losses.l1(a, self.generate(params, "b2a", fake["b"])),
            "cycle_b": losses.l1(b, self.generate(params, "a2b", fake["a"])),
        }

    def identity_losses(self, params: Params, a: jax.Array, b: jax.Array) -> dict[str, jax.Array]:
        """{"identity_a", "identity_b": [B]}: how far generators change images of their target."""
        return {
            "identity_a": losses.l1(a, self.generate(params, "b2a", a)),
            "identity_b": losses.l1(b, self.generate(params, "a2b", b)),
        }

    def generator_loss(self, view: View, batch: Batch, key: jax.Array) -> LossValue:
        """What both generators minimise together (their eq. 3, with the identity losses)."""
        params, real = view.params, {"a": batch["x"], "b": batch["other"]}
        fake, terms = self.cycle_losses(params, **real)
        if self.identity:
            terms |= self.identity_losses(params, **real)
        for domain in DOMAINS:
            # The logits of real images matter to a relativistic game only; else XLA drops them.
            logits = [self.discriminate(params, domain, images[domain]) for images in (real, fake)]
            terms[f"adversarial_{domain}"] = self.game.generator(*logits)
        value = sum(self.weights[name] * term for name, term in terms.items())
        extra = {**view.extra, **self.shown_next(view.extra, fake, key)}
        return jnp.mean(value), ({name: jnp.mean(term) for name, term in terms.items()}, extra)

    def shown_next(
        self, extra: Extra, fake: Mapping[str, jax.Array], key: jax.Array
    ) -> dict[str, Any]:
        """{"shown", and "pool" where there is one}: what of `extra` new translations change."""
        shown = jax.lax.stop_gradient(dict(fake))  # no gradient goes through what is kept
        if not self.pool:
            return {"shown": shown}
        pool = {}
        for i, domain in enumerate(DOMAINS):
            own_key = jax.random.fold_in(key, i)
            found = pools.query(extra["pool"][domain], shown[domain], own_key)
            shown[domain], pool[domain] = found
        return {"shown": shown, "pool": pool}

    def discriminator_loss(self, view: View, batch: Batch, key: jax.Array) -> LossValue:
        """What both discriminators minimise, on real images and on translations of "shown"."""
        value, metrics = 0.0, {}
        for domain, images in zip(DOMAINS, (batch["x"], batch["other"]), strict=True):
            real = self.discriminate(view.params, domain, images)
            fake = self.discriminate(view.params, domain, view.extra["shown"][domain])
            own = jnp.mean(self.game.discriminator(real, fake))
            value += own
            metrics[f"loss_{domain}"] = own
            metrics[f"real_{domain}"], metrics[f"fake_{domain}"] = jnp.mean(real), jnp.mean(fake)
        return value, (metrics, view.extra)

    def evaluate(self, variables: Variables, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        """{"cycle_a", "cycle_b", "identity_a", "identity_b": [B]}: L1, a pixel's range being 2."""
        domains = batch["x"], batch["other"]
        _, cycles = self.cycle_losses(variables.params, *domains)
        return cycles | self.identity_losses(variables.params, *domains)

    def reconstruct(
        self, variables: Variables, batch: Batch, key: jax.Array
    ) -> dict[str, tuple[jax.Array, ...]]:
        """Each domain's translations, and what these become on the way back."""
        params, a, b = variables.params, batch["x"], batch["other"]
        fake_a, fake_b = self.generate(params, "b2a", b), self.generate(params, "a2b", a)
        return {
            "cycle_a": (fake_b, self.generate(params, "b2a", fake_b)),
            "cycle_b": (fake_a, self.generate(params, "a2b", fake_a), b),
        }

    def translate(self, variables: Variables, x: jax.Array, direction: str) -> jax.Array:
        """Images [n, H, W, C] as the other domain has them; `direction` is "a2b" or "b2a"."""
        return self.generate(variables.params, direction, x)
