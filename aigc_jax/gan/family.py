"""Generative adversarial networks as a family: two players (Goodfellow et al. 2014)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from aigc_jax.family import Family, Phase
from aigc_jax.gan import augment as augmentation
from aigc_jax.gan import losses
from aigc_jax.gan.directions import slerp
from aigc_jax.gan.pictures import of_latents
from aigc_jax.networks import dcgan, gan_mlp, gan_resnet, r3gan
from aigc_jax.networks.gan_layers import MOMENTUM

NETWORKS = {"mlp": gan_mlp, "dcgan": dcgan, "resnet": gan_resnet, "r3gan": r3gan}
STANDING = 512  # latents of which the generator's batch statistics are taken, for its average
LOWER = ("down", "norm", "hidden")  # layers of a discriminator, numbered from the image


def build(config: Mapping[str, Any], spec: Any) -> Family:
    """The GAN of an experiment.

    Args:
      config: reads `network` ({"generator", "discriminator"}: name and keyword arguments), `gan`,
        `train.batch_size` and `sampling`.
      spec: the data's `DataSpec`.
    """
    settings, networks = dict(config["gan"]), {}
    conditioning = dict(config["network"]["discriminator"]).get("conditioning", "none")
    if conditioning != "none" and not spec.num_classes:
        raise ValueError(
            f"network.discriminator.conditioning={conditioning!r} needs data with labels; this "
            "data set has none"
        )
    for player in ("generator", "discriminator"):
        arguments = dict(config["network"][player])
        name = arguments.pop("name")
        if name not in NETWORKS:
            raise ValueError(f"network.{player}.name is one of {', '.join(NETWORKS)}, not {name!r}")
        networks[player] = getattr(NETWORKS[name], player.capitalize())(
            image_shape=spec.image_shape,
            num_classes=spec.num_classes if conditioning != "none" else 0,
            **arguments,
        )
    parts = {
        "penalty": losses.Penalty(
            *(settings.pop(f"penalty{key}") for key in ("", "_weight", "_every", "_weight_end"))
        ),
        "augment": augmentation.Augmentation(
            settings.pop("augment"),
            *(
                settings.pop(f"augment_{key}")
                for key in ("probability", "target", "images", "probability_end")
            ),
        ),
    }
    return gan(
        networks["generator"],
        networks["discriminator"],
        batch_size=config["train"]["batch_size"],
        truncation=config["sampling"]["truncation"],
        **parts,
        **settings,
    )


def gan(
    generator: Any,
    discriminator: Any,
    *,
    batch_size: int,
    truncation: float,
    loss: str,
    penalty: losses.Penalty,
    augment: augmentation.Augmentation,
    decay_steps: int,
    critics: int,
    generator_batch: int,
    prior: str,
    class_weight: float,
    class_weight_generator: float,
    frozen: int,
) -> Family:
    """A generator of z against a discriminator of images.

    Args:
      generator: module of (z, label, train=) -> images, with `latent`, `num_classes`,
        `image_shape`.
      discriminator: module of (images, label, train=) -> (logits, class logits or None).
      batch_size: of real images, from which adaptive augmentation takes its speed.
      truncation: samples draw z from the prior within +-truncation (Brock et al. 2019,
        arXiv:1809.11096, section 3.1); 0: from all of it.
      loss: of `losses.LOSSES`.
      decay_steps: over which the penalty's weight and the probability of augmentation go along a
        cosine to their ends, as in R3GAN (Huang et al. 2024, arXiv:2501.05441); 0: they stay.
      critics: updates of the discriminator for one of the generator, each on fresh real images.
      generator_batch: generated images of the generator's update, in batches.
      prior: of z: "normal", or "uniform" in [-1, 1].
      class_weight, class_weight_generator: of a "classifier" discriminator's cross entropy, for
        each player (AC-GAN).
      frozen: layers of the discriminator, from the image, that stay as they are: for fine-tuning
        (Mo et al. 2020, arXiv:2002.10964).
    """
    game = losses.build(loss)
    penalty.check()
    if penalty.name != "none" and getattr(discriminator, "norm", "") == "batch":
        raise ValueError(
            f"gan.penalty={penalty.name!r} is of each image's own gradient, which batch norm mixes "
            "with the others': set network.discriminator.norm to 'none' or 'spectral'"
        )
    if critics < 1 or generator_batch < 1:
        raise ValueError("gan.critics and gan.generator_batch are at least 1")
    if generator_batch > 1 and loss == "relativistic":
        raise ValueError("gan.loss='relativistic' pairs images: gan.generator_batch must be 1")
    if prior not in ("normal", "uniform"):
        raise ValueError(f"gan.prior is normal or uniform, not {prior!r}")
    if truncation < 0 or (truncation and prior != "normal"):
        raise ValueError("sampling.truncation is at least 0, and of gan.prior='normal' only")
    augment.check()
    num_classes, latent = generator.num_classes, generator.latent
    adaptive = bool(augment.policy and augment.target)
    if decay_steps < 0:
        raise ValueError(f"gan.decay_steps is at least 0, not {decay_steps}")
    if adaptive and decay_steps:
        raise ValueError("gan.augment_target sets the probability: gan.decay_steps must be 0")
    names, share = losses.COMPOSED[penalty.name]

    def init(key: jax.Array) -> tuple[dict, dict]:
        label = jnp.zeros((1,), jnp.int32) if num_classes else None
        inputs = {
            "generator": (generator, jnp.zeros((1, latent))),
            "discriminator": (discriminator, jnp.zeros((1, *generator.image_shape))),
        }
        params, extra = {}, {}
        for (player, (module, x)), k in zip(inputs.items(), jax.random.split(key), strict=True):
            variables = module.init(k, x, label)
            params[player] = dict(variables["params"])
            if "batch_stats" in variables:
                extra[player] = dict(variables["batch_stats"])
        if adaptive:
            extra["augment_probability"] = jnp.float32(augment.probability)
        if decay_steps:
            extra["step"] = jnp.int32(0)
        lower_layers(params["discriminator"], frozen)  # or says that there are none such
        return params, extra

    def run(module: Any, params: Any, stats: Any, *args: Any) -> tuple[Any, Any]:
        """Outputs with this batch's statistics, and the statistics to keep."""
        out, new = module.apply(
            {"params": params, "batch_stats": stats}, *args, train=True, mutable=["batch_stats"]
        )
        return out, new.get("batch_stats", {})

    def generate(params: Any, extra: Any, key: jax.Array, label: Any, n: int) -> tuple[Any, Any]:
        z = draw_z(key, (n, latent))
        return run(generator, params["generator"], extra.get("generator", {}), z, label)

    def draw_z(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        if prior == "uniform":
            return jax.random.uniform(key, shape, minval=-1.0)
        return jax.random.normal(key, shape)

    def label_of(batch: Any) -> Any:
        return batch["label"] if num_classes else None

    def now(extra: Any, start: float, end: float) -> float | jax.Array:
        """A setting that goes from `start` to `end`, where it is in a run."""
        if not decay_steps:
            return start
        left = (1 + jnp.cos(jnp.pi * jnp.minimum(extra["step"] / decay_steps, 1.0))) / 2
        return end + (start - end) * left

    def probability(extra: Any) -> float | jax.Array:
        if adaptive:
            return extra["augment_probability"]
        return now(extra, augment.probability, augment.probability_end)

    def seen(extra: Any, images: jax.Array, key: jax.Array) -> jax.Array:
        return augmentation.differentiable(key, images, augment.policy, probability(extra))

    def with_stats(extra: Any, player: str, stats: Any) -> dict:
        return {**extra, player: stats} if player in extra else dict(extra)

    def penalised(
        params: Any, extra: Any, real: jax.Array, fake: jax.Array, label: Any, key: jax.Array
    ) -> jax.Array:
        """The penalty of D after augmentation, with respect to the images before it, [B]."""
        seen_key, *keys = jax.random.split(key, 1 + len(names))

        def logit(images: jax.Array) -> jax.Array:
            stats = extra.get("discriminator", {})
            return run(
                discriminator, params["discriminator"], stats, seen(extra, images, seen_key), label
            )[0][0]

        found = [
            losses.PENALTIES[name](logit, real, fake, k)
            for name, k in zip(names, keys, strict=True)
        ]
        return share * now(extra, penalty.weight, penalty.weight_end) * sum(found)

    def critic(params: Any, extra: Any, batch: Any, key: jax.Array) -> tuple:
        z_key, real_key, fake_key, penalty_key = jax.random.split(key, 4)
        params = {**params, "discriminator": thawed(params["discriminator"], frozen)}
        real, label = batch["image"], label_of(batch)
        fake, _ = generate(params, extra, z_key, label, len(real))
        stats = extra.get("discriminator", {})
        own = params["discriminator"]
        (on_real, classes), stats = run(
            discriminator, own, stats, seen(extra, real, real_key), label
        )
        (on_fake, fake_classes), stats = run(
            discriminator, own, stats, seen(extra, fake, fake_key), label
        )
        value = game.discriminator(on_real, on_fake)
        metrics = {"logit_real": jnp.mean(on_real), "logit_fake": jnp.mean(on_fake)}
        if classes is not None:
            right = losses.class_loss(classes, label)
            value += class_weight * (right + losses.class_loss(fake_classes, label))
            metrics["class_loss"] = jnp.mean(right)
        if names and penalty.every == 1:
            paid = penalised(params, extra, real, fake, label, penalty_key)
            value, metrics["penalty"] = value + paid, jnp.mean(paid)
        extra = with_stats(extra, "discriminator", stats)
        if adaptive:
            extra["augment_probability"] = metrics["augment_probability"] = augmentation.adapted(
                extra["augment_probability"],
                on_real,
                target=augment.target,
                images=augment.images,
                batch_size=batch_size,
            )
        elif augment.policy:
            metrics["augment_probability"] = jnp.float32(probability(extra))
        return jnp.mean(value), (metrics, extra)

    def lazy_penalty(params: Any, extra: Any, batch: Any, key: jax.Array) -> tuple:
        z_key, key = jax.random.split(key)
        params = {**params, "discriminator": thawed(params["discriminator"], frozen)}
        real, label = batch["image"], label_of(batch)
        fake, _ = generate(params, extra, z_key, label, len(real))
        paid = penalised(params, extra, real, fake, label, key)
        return penalty.every * jnp.mean(paid), ({}, extra)

    def move(params: Any, extra: Any, batch: Any, key: jax.Array) -> tuple:
        z_key, real_key, fake_key = jax.random.split(key, 3)
        real, label = batch["image"], label_of(batch)
        if num_classes:
            label = jnp.tile(label, generator_batch)
        fake, stats = generate(params, extra, z_key, label, generator_batch * len(real))
        judge = (discriminator, params["discriminator"], extra.get("discriminator", {}))
        (on_fake, classes), _ = run(*judge, seen(extra, fake, fake_key), label)
        on_real = on_fake  # which only a relativistic generator looks at
        if loss == "relativistic":
            (on_real, _), _ = run(*judge, seen(extra, real, real_key), label)
        value, metrics = game.generator(on_real, on_fake), {"logit_fake": jnp.mean(on_fake)}
        if classes is not None:
            wrong = losses.class_loss(classes, label)
            value, metrics["class_loss"] = value + class_weight_generator * wrong, jnp.mean(wrong)
        extra = with_stats(extra, "generator", stats)
        if decay_steps:
            extra["step"] += 1
        return jnp.mean(value), (metrics, extra)

    def stored(module: Any, params: Any, extra: Any, player: str, *args: Any) -> Any:
        """Outputs with the statistics that were kept: an example does not depend on its batch."""
        return module.apply(
            {"params": params[player], "batch_stats": extra.get(player, {})}, *args, train=False
        )

    def images_of(params: Any, extra: Any, z: jax.Array, label: Any) -> jax.Array:
        images = stored(generator, params, extra, "generator", z, label)
        # Of a network without tanh; points of the plane have no range.
        return images if images.shape[1:3] == (1, 1) else jnp.clip(images, -1.0, 1.0)

    def evaluate(params: Any, extra: Any, batch: Any, key: jax.Array) -> dict[str, jax.Array]:
        """{"logit_real", "logit_fake": [B]}: of images that the discriminator was not trained on.

        Real ones far below those of training: it has learned its images by heart.
        """
        label = label_of(batch)
        fake = images_of(params, extra, draw_z(key, (len(batch["image"]), latent)), label)
        return {
            name: losses.map_mean(
                stored(discriminator, params, extra, "discriminator", images, label)[0]
            )
            for name, images in {"logit_real": batch["image"], "logit_fake": fake}.items()
        }

    @jax.jit
    def settle(params: Any, extra: Any) -> dict:
        """`extra` with the batch statistics of the generator as it is, of its average above all."""
        if "generator" not in extra:
            return dict(extra)
        empty = jax.tree.map(jnp.zeros_like, extra["generator"])
        label = jnp.arange(STANDING) % num_classes if num_classes else None
        z = draw_z(jax.random.key(0), (STANDING, latent))
        _, moved = run(generator, params["generator"], empty, z, label)
        return {**extra, "generator": jax.tree.map(lambda s: s / (1 - MOMENTUM), moved)}

    def draw_one(key: jax.Array) -> jax.Array:
        if truncation:
            return jax.random.truncated_normal(key, -truncation, truncation, (latent,))
        return draw_z(key, (latent,))

    def label_in(cond: Mapping[str, Any]) -> Any:
        return cond.get("label") if num_classes else None

    @jax.jit
    def sample(params: Any, extra: Any, keys: jax.Array, cond: Mapping[str, Any]) -> jax.Array:
        return images_of(params, extra, jax.vmap(draw_one)(keys), label_in(cond))

    def between(a: jax.Array, b: jax.Array, share: jax.Array) -> jax.Array:
        return slerp(a, b, share) if prior == "normal" else a + share * (b - a)

    def trajectory(
        params: Any, extra: Any, keys: jax.Array, cond: Mapping[str, Any], frames: int
    ) -> jax.Array:
        """From one sample to another, on the sphere where z is normal."""
        begin = jax.vmap(draw_one)(keys)
        end = jax.vmap(lambda key: draw_one(jax.random.fold_in(key, 1)))(keys)
        decode = jax.jit(lambda z: images_of(params, extra, z, label_in(cond)))
        shares = jnp.linspace(0.0, 1.0, frames)
        return jnp.stack([decode(between(begin, end, share)) for share in shares])

    @jax.jit
    def pictures(params: Any, extra: Any, keys: jax.Array, cond: Mapping[str, Any]) -> dict:
        """See `pictures.of_latents`; a conditional model's are all of the first key's label."""

        def decoded(z: jax.Array) -> jax.Array:
            label = jnp.full((len(z),), cond["label"][0]) if num_classes else None
            return images_of(params, extra, z, label)

        kernel = params["generator"]["in"]["kernel"][:latent]  # a label's rows come after
        return of_latents(decoded, jax.vmap(draw_one)(keys), kernel, between)

    moves = [Phase("discriminator", critic) for _ in range(critics)]
    if names and penalty.every > 1:
        moves.append(Phase("discriminator", lazy_penalty, every=penalty.every, name="penalty"))
    return Family(
        init,
        (*moves, Phase("generator", move)),
        sample,
        evaluate,
        averaged=("generator",),
        fresh=critics,
        num_classes=num_classes,
        trajectory=trajectory,
        settle=settle,
        carried=("generator", "discriminator"),
        pictures=pictures if generator.image_shape[:2] != (1, 1) else None,
    )


def lower_layers(params: Mapping[str, Any], count: int) -> list[str]:
    """Names of a discriminator's first `count` layers, from the image."""
    found = {name: name.rpartition("_") for name in params}
    numbered = {n: int(i) for n, (kind, _, i) in found.items() if kind in LOWER and i.isdigit()}
    most = max(numbered.values(), default=-1) + 1
    if not 0 <= count <= most:
        raise ValueError(f"gan.frozen lies in 0..{most} for this discriminator, not {count}")
    return [name for name, number in numbered.items() if number < count]


def thawed(params: Mapping[str, Any], frozen: int) -> dict[str, Any]:
    """The parameters, with no gradient to the lowest `frozen` layers."""
    kept = lower_layers(params, frozen)
    return {k: jax.lax.stop_gradient(v) if k in kept else v for k, v in params.items()}
