"""CycleGAN as a family: two domains, a generator each way, a discriminator of each domain.

Zhu, Park, Isola & Efros, "Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial
Networks", 2017 (arXiv:1703.10593). Domain A is a batch's "image", domain B its "other".
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from aigc_jax.family import Family, Phase
from aigc_jax.gan import losses
from aigc_jax.gan import pool as pools
from aigc_jax.networks.cyclegan import Discriminator, Generator

DIRECTIONS = ("a2b", "b2a")


def build(config: Mapping[str, Any], spec: Any) -> Family:
    """The CycleGAN of an experiment.

    Args:
      config: reads `network` ({"generator", "discriminator"}: keyword arguments), `cyclegan`,
        `data` (its splits), and `train.batch_size`.
      spec: the data's `DataSpec`.
    """
    data, settings = config["data"], dict(config["cyclegan"])
    for key in ("train_split", "test_split"):
        if "+" not in data[key]:
            raise ValueError(
                f"cyclegan learns from two domains: data.{key} is such as trainA+trainB, not "
                f"{data[key]!r}"
            )
    shape, networks = spec.image_shape, config["network"]
    if networks["discriminator"]["norm"] == "batch":
        raise ValueError("cyclegan keeps no statistics: network.discriminator.norm is not 'batch'")
    generator = Generator(image_shape=shape, out_channels=shape[-1], **networks["generator"])
    discriminator = Discriminator(image_shape=shape, **networks["discriminator"])
    loss, size = losses.build(settings.pop("loss")), config["train"]["batch_size"]
    return cyclegan(generator, discriminator, shape, loss, batch_size=size, **settings)


def cyclegan(
    generator: Any,
    discriminator: Any,
    image_shape: tuple[int, int, int],
    loss: losses.Loss,
    *,
    batch_size: int,
    adversarial: float,
    cycle_a: float,
    cycle_b: float,
    identity: float,
    pool: int,
) -> Family:
    """CycleGAN of any networks.

    `extra` holds the pools, and what the discriminators are shown of them: as published, these
    learn from images that the generators made before their own update of the same step.

    Args:
      generator: module from images [B, H, W, C] to images, in [-1, 1].
      discriminator: module from images to (logits [B] or a map, None).
      image_shape: (H, W, C) of both domains.
      loss: the game of each generator with its discriminator.
      batch_size: images of each domain in a training batch.
      adversarial: weight of it in the generators' loss.
      cycle_a, cycle_b: lambda of |F(G(a)) - a| and of |G(F(b)) - b| (their eq. 3).
      identity: times these, weight of |F(a) - a| and |G(b) - b| (section 5.2); 0: none.
      pool: earlier images in a discriminator's pool; 0: it sees the newest alone.
    """
    if min(adversarial, cycle_a, cycle_b, identity, pool) < 0:
        raise ValueError("the weights and the pool of config.cyclegan are not negative")

    def init(key: jax.Array) -> tuple[dict, dict]:
        example, keys = jnp.zeros((1, *image_shape)), jax.random.split(key, 4)

        def of(module: Any, key: jax.Array) -> Any:
            return module.init(key, example)["params"]

        params = {
            "generator": {name: of(generator, keys[i]) for i, name in enumerate(DIRECTIONS)},
            "discriminator": {name: of(discriminator, keys[2 + i]) for i, name in enumerate("ab")},
        }
        extra = {"shown": {name: jnp.zeros((batch_size, *image_shape)) for name in "ab"}}
        if pool:  # a checkpoint takes no array without elements
            extra["pool"] = {name: pools.init(pool, image_shape) for name in "ab"}
        return params, extra

    def to(direction: str, params: Any, images: jax.Array) -> jax.Array:
        return generator.apply({"params": params["generator"][direction]}, images)

    def judge(domain: str, params: Any, images: jax.Array) -> jax.Array:
        return discriminator.apply({"params": params["discriminator"][domain]}, images)[0]

    def same(params: Any, a: jax.Array, b: jax.Array) -> dict[str, jax.Array]:
        """How far the generators change images that are of their target's domain already, [B]."""
        return {
            "identity_a": losses.cycle(a, to("b2a", params, a)),
            "identity_b": losses.cycle(b, to("a2b", params, b)),
        }

    def there_and_back(params: Any, a: jax.Array, b: jax.Array) -> tuple:
        """The translations, {"a", "b"} by the domain they are now in, and {"cycle_...": [B]}."""
        fake = {"a": to("b2a", params, b), "b": to("a2b", params, a)}
        cycles = {
            "cycle_a": losses.cycle(a, to("b2a", params, fake["b"])),
            "cycle_b": losses.cycle(b, to("a2b", params, fake["a"])),
        }
        return fake, cycles

    weights = {
        "adversarial_a": adversarial,
        "adversarial_b": adversarial,
        "cycle_a": cycle_a,
        "cycle_b": cycle_b,
        "identity_a": identity * cycle_a,
        "identity_b": identity * cycle_b,
    }

    def generator_loss(params: Any, extra: Any, batch: Any, key: jax.Array) -> tuple:
        real = {"a": batch["image"], "b": batch["other"]}
        fake, paid = there_and_back(params, **real)
        if identity:
            paid |= same(params, **real)
        for name in "ab":
            # Only a relativistic game looks at the first of these.
            logits = [judge(name, params, images[name]) for images in (real, fake)]
            paid[f"adversarial_{name}"] = loss.generator(*logits)
        value = sum(weights[name] * each for name, each in paid.items())
        extra = {**extra, "shown": jax.lax.stop_gradient(fake)}  # none flows through what is kept
        if pool:
            found = {
                name: pools.query(extra["pool"][name], new, jax.random.fold_in(key, i))
                for i, (name, new) in enumerate(extra["shown"].items())
            }
            extra["shown"], extra["pool"] = (
                {name: pair[i] for name, pair in found.items()} for i in range(2)
            )
        means = {name: jnp.mean(each) for name, each in paid.items()}
        return jnp.mean(value), (means, extra)

    def discriminator_loss(params: Any, extra: Any, batch: Any, key: jax.Array) -> tuple:
        value, metrics = 0.0, {}
        for name, images in (("a", batch["image"]), ("b", batch["other"])):
            real, fake = (judge(name, params, x) for x in (images, extra["shown"][name]))
            each = jnp.mean(loss.discriminator(real, fake))
            value += each
            metrics |= {f"loss_{name}": each}
            metrics |= {f"real_{name}": jnp.mean(real), f"fake_{name}": jnp.mean(fake)}
        return value, (metrics, extra)

    def evaluate(params: Any, extra: Any, batch: Any, key: jax.Array) -> dict[str, jax.Array]:
        """L1, the range of a pixel being 2 wide: of each cycle, and of what is in place already."""
        domains = batch["image"], batch["other"]
        return there_and_back(params, *domains)[1] | same(params, *domains)

    def restore(params: Any, extra: Any, batch: Any, key: jax.Array) -> dict[str, tuple]:
        """Each domain's translations, and what these become on the way back."""
        a, b = batch["image"], batch["other"]
        fake_a, fake_b = to("b2a", params, b), to("a2b", params, a)
        return {
            "cycle_a": (fake_b, to("b2a", params, fake_b)),
            "cycle_b": (fake_a, to("a2b", params, fake_a), b),
        }

    def translate(params: Any, extra: Any, images: jax.Array, direction: str) -> jax.Array:
        return to(direction, params, images)

    phases = (Phase("generator", generator_loss), Phase("discriminator", discriminator_loss))
    return Family(
        init,
        phases,
        None,
        evaluate,
        averaged=("generator",),
        restore=restore,
        translate=translate,
    )
