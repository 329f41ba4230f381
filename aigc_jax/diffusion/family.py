"""Denoising diffusion as a family: one player, one phase (Ho et al. 2020, algorithm 1)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from aigc_jax.diffusion import process as gaussian
from aigc_jax.diffusion import samplers
from aigc_jax.family import Family, Phase
from aigc_jax.networks.unet import UNet

NETWORKS = {"unet": UNet}


def build(config: Mapping[str, Any], spec: Any) -> Family:
    """The diffusion family of an experiment.

    Args:
      config: reads `network` (name and keyword arguments), `diffusion` and `sampling`.
      spec: the data's `DataSpec`.
    """
    settings = dict(config["diffusion"])
    conditional = settings.pop("conditional")
    if conditional and not spec.num_classes:
        raise ValueError("diffusion.conditional needs data with labels; this data set has none")
    arguments = dict(config["network"])
    name = arguments.pop("name")
    if name not in NETWORKS:
        raise ValueError(f"network.name is one of {', '.join(NETWORKS)}, not {name!r}")
    network = NETWORKS[name](
        out_channels=spec.image_shape[-1],
        num_classes=spec.num_classes if conditional else 0,
        **arguments,
    )
    return diffusion(network, spec.image_shape, **settings, sampling=config["sampling"])


def diffusion(
    network: Any,
    image_shape: tuple[int, int, int],
    *,
    schedule: str,
    timesteps: int,
    prediction: str,
    weighting: str,
    sampling: Mapping[str, Any],
    beta_min: float = 1e-4,
    beta_max: float = 0.02,
    gamma: float = 5.0,
    label_dropout: float = 0.0,
) -> Family:
    """Discrete-time variance-preserving diffusion with a network of (x_t, t, label).

    Args:
      network: module with `init` and `apply(variables, x, t, label, train=)`; its `num_classes`
        is 0 or the number of labels, label `num_classes` then being "none".
      image_shape: (H, W, C).
      schedule, timesteps, beta_min, beta_max: see `process.betas`.
      prediction: what the network puts out: "eps", "x0" or "v".
      weighting, gamma: see `process.weight`.
      sampling: `sampler`, `steps`, `spacing`, `variance`, `eta` (see `samplers.build`), `clip`
        (estimates of x_0 are clipped to [-1, 1]) and `guidance` (see `denoise` below).
      label_dropout: share of training labels replaced by "none", for classifier-free guidance.
    """
    process = gaussian.variance_preserving(gaussian.betas(schedule, timesteps, beta_min, beta_max))
    alpha_of, sigma_of = gaussian.per_time(process.alpha), gaussian.per_time(process.sigma)
    time_of = gaussian.per_time(process.times)
    weight_of = gaussian.per_time(
        gaussian.weight(weighting, prediction, process.alpha, process.sigma, gamma)
    )
    num_classes = network.num_classes
    sampling = dict(sampling)
    clip, guidance = sampling.pop("clip"), sampling.pop("guidance")
    if guidance != 1.0 and not num_classes:
        raise ValueError("sampling.guidance other than 1 needs diffusion.conditional=True")
    sampler = samplers.build(process, **sampling)

    def init(key: jax.Array) -> tuple[dict, dict]:
        x = jnp.zeros((1, *image_shape))
        return {"net": network.init(key, x, jnp.zeros((1,)), None)["params"]}, {}

    def output(params: Any, x: jax.Array, t: jax.Array, label: Any, **kwargs: Any) -> jax.Array:
        return network.apply({"params": params["net"]}, x, t, label, **kwargs)

    def errors(
        params: Any, batch: Any, index: jax.Array, label: Any, key: jax.Array, **kwargs: Any
    ) -> jax.Array:
        """Weighted squared error of each example at time number `index` [B], mean over pixels."""
        x0 = batch["image"]
        alpha, sigma = alpha_of(index), sigma_of(index)
        eps = jax.random.normal(key, x0.shape)
        x_t = gaussian.diffuse(x0, eps, alpha, sigma)
        pred = output(params, x_t, time_of(index), label, **kwargs)
        target = gaussian.target(prediction, x0, eps, alpha, sigma)
        return weight_of(index) * jnp.mean((pred - target) ** 2, axis=(1, 2, 3))

    def loss(params: Any, extra: Any, batch: Any, key: jax.Array) -> tuple:
        time_key, noise_key, drop_key, label_key = jax.random.split(key, 4)
        n = len(batch["image"])
        index = jax.random.randint(time_key, (n,), 0, timesteps)
        label = None
        if num_classes:
            dropped = jax.random.bernoulli(label_key, label_dropout, (n,))
            label = jnp.where(dropped, num_classes, batch["label"])
        error = errors(
            params, batch, index, label, noise_key, train=True, rngs={"dropout": drop_key}
        )
        return jnp.mean(error), ({}, extra)

    def evaluate(params: Any, extra: Any, batch: Any, key: jax.Array) -> dict[str, jax.Array]:
        """{"loss": [B]}: the training loss, its times stratified over the batch."""
        time_key, noise_key = jax.random.split(key)
        n = len(batch["image"])
        u = (jnp.arange(n) + jax.random.uniform(time_key, (n,))) / n
        index = jnp.minimum((u * timesteps).astype(jnp.int32), timesteps - 1)
        label = batch["label"] if num_classes else None
        return {"loss": errors(params, batch, index, label, noise_key)}

    def denoise(params: Any, cond: Mapping[str, Any], x: jax.Array, t: jax.Array) -> jax.Array:
        """Estimate of x_0, guided (Ho & Salimans 2022) as x_0(none) + w (x_0(label) - x_0(none)).

        w = `guidance`: 0 ignores the label, 1 is the conditional model, above 1 exaggerates it.
        """
        n = len(x)
        times = jnp.full((n,), t)
        index = times.astype(jnp.int32)
        alpha, sigma = alpha_of(index), sigma_of(index)
        label = cond.get("label") if num_classes else None
        if label is None or guidance == 1.0:
            x0 = gaussian.to_x0(prediction, output(params, x, times, label), x, alpha, sigma)
        else:
            none = jnp.full((n,), num_classes, label.dtype)
            both = output(
                params,
                jnp.concatenate([x, x]),
                jnp.concatenate([times, times]),
                jnp.concatenate([label, none]),
            )
            with_label, without = jnp.split(both, 2)
            guided = without + guidance * (with_label - without)
            x0 = gaussian.to_x0(prediction, guided, x, alpha, sigma)
        return jnp.clip(x0, -1.0, 1.0) if clip else x0

    def advance(context: Any, carry: Any, row: Any, i: jax.Array) -> tuple:
        params, keys, cond = context
        noise = samplers.noise_like(keys, image_shape, i) if sampler.stochastic else None
        return sampler.step(lambda x, t: denoise(params, cond, x, t), carry, row, noise)

    run = samplers.compiled(sampler, advance)
    start = jax.jit(lambda keys: samplers.noise_like(keys, image_shape, len(process.times)))

    def sample(params: Any, extra: Any, keys: jax.Array, cond: Mapping[str, Any]) -> jax.Array:
        carry, _ = run((params, keys, cond), sampler.init(start(keys)))
        return sampler.image(carry)

    def trajectory(
        params: Any, extra: Any, keys: jax.Array, cond: Mapping[str, Any], frames: int
    ) -> jax.Array:
        """The estimates of x_0 along the way, [frames, n, H, W, C]."""
        _, estimates = run((params, keys, cond), sampler.init(start(keys)), frames)
        return jnp.stack(estimates)

    return Family(
        init,
        (Phase("net", loss),),
        sample,
        evaluate,
        averaged=("net",),
        num_classes=num_classes,
        trajectory=trajectory,
    )
