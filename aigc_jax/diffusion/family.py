"""Denoising diffusion as a family: one player, one phase (Ho et al. 2020, algorithm 1)."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from aigc_jax.diffusion import likelihood, samplers
from aigc_jax.diffusion import process as gaussian
from aigc_jax.family import Family, Phase
from aigc_jax.networks.unet import UNet

NETWORKS = {"unet": UNet}
DAMAGE = (0.1, 0.3, 0.5)  # shares of T at which `restore` shows what one step of denoising gives


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
    term = likelihood.terms(process, sampling.get("variance", "fixed_large"))

    def init(key: jax.Array) -> tuple[dict, dict]:
        x = jnp.zeros((1, *image_shape))
        return {"net": network.init(key, x, jnp.zeros((1,)), None)["params"]}, {}

    def output(params: Any, x: jax.Array, t: jax.Array, label: Any, **kwargs: Any) -> jax.Array:
        return network.apply({"params": params["net"]}, x, t, label, **kwargs)

    def predict(
        params: Any, x0: jax.Array, index: jax.Array, label: Any, key: jax.Array, **kwargs: Any
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """x_t of images at time numbers `index` [B], the noise in it, and the network's output."""
        eps = jax.random.normal(key, x0.shape)
        x_t = gaussian.diffuse(x0, eps, alpha_of(index), sigma_of(index))
        return x_t, eps, output(params, x_t, time_of(index), label, **kwargs)

    def errors(x0: jax.Array, eps: jax.Array, pred: jax.Array, index: jax.Array) -> jax.Array:
        """Weighted squared error of each example, mean over pixels."""
        target = gaussian.target(prediction, x0, eps, alpha_of(index), sigma_of(index))
        return weight_of(index) * jnp.mean((pred - target) ** 2, axis=(1, 2, 3))

    def estimate(pred: jax.Array, x_t: jax.Array, index: jax.Array) -> jax.Array:
        """What an output says of x_0, clipped if `clip`."""
        x0 = gaussian.to_x0(prediction, pred, x_t, alpha_of(index), sigma_of(index))
        return jnp.clip(x0, -1.0, 1.0) if clip else x0

    def loss(params: Any, extra: Any, batch: Any, key: jax.Array) -> tuple:
        time_key, noise_key, drop_key, label_key = jax.random.split(key, 4)
        x0 = batch["image"]
        n = len(x0)
        index = jax.random.randint(time_key, (n,), 0, timesteps)
        label = None
        if num_classes:
            dropped = jax.random.bernoulli(label_key, label_dropout, (n,))
            label = jnp.where(dropped, num_classes, batch["label"])
        _, eps, pred = predict(
            params, x0, index, label, noise_key, train=True, rngs={"dropout": drop_key}
        )
        return jnp.mean(errors(x0, eps, pred, index)), ({}, extra)

    def evaluate(params: Any, extra: Any, batch: Any, key: jax.Array) -> dict[str, jax.Array]:
        """{"loss": [B]}: the training loss, its times stratified over the batch."""
        time_key, noise_key = jax.random.split(key)
        x0 = batch["image"]
        n = len(x0)
        u = (jnp.arange(n) + jax.random.uniform(time_key, (n,))) / n
        index = jnp.minimum((u * timesteps).astype(jnp.int32), timesteps - 1)
        label = batch["label"] if num_classes else None
        _, eps, pred = predict(params, x0, index, label, noise_key)
        return {"loss": errors(x0, eps, pred, index)}

    @jax.jit
    def add_term(
        params: Any, batch: Any, key: jax.Array, i: jax.Array, total: jax.Array
    ) -> jax.Array:
        """`total` [B] and the bound's term of time number i, from one draw of x_t."""
        x0 = batch["image"]
        index = jnp.full((len(x0),), i)
        label = batch["label"] if num_classes else None
        x_t, _, pred = predict(params, x0, index, label, jax.random.fold_in(key, i))
        return total + term(x0, estimate(pred, x_t, index), index)

    def bits(params: Any, extra: Any, batch: Any, key: jax.Array) -> dict[str, jax.Array]:
        """{"bits_per_dim": [B]}: the whole bound on -log p of an image, a network call a time.

        The bound is of ancestral sampling over all T times, whatever `sampling` draws samples with:
        with its `variance`, with estimates of x_0 clipped where it clips, as Ho et al. 2020 do,
        unguided. A single time in place of all T is no estimate worth its name: the first few hold
        most of the bound (Nichol & Dhariwal 2021, arXiv:2102.09672, figure 2).
        """
        total = jax.jit(partial(likelihood.prior, process))(batch["image"])
        for i in range(timesteps):
            total = add_term(params, batch, key, i, total)
        return {"bits_per_dim": total}

    def restore(params: Any, extra: Any, batch: Any, key: jax.Array) -> dict[str, tuple]:
        """{"t=100": (x_t / alpha_t, the estimate of x_0 from x_t), ...} at 0.1, 0.3 and 0.5 T.

        x_t is divided by alpha_t for its image to have its own contrast; both are clipped to
        [-1, 1], to be shown.
        """
        x0 = batch["image"]
        n, levels = len(x0), len(DAMAGE)
        times = [round(share * timesteps) for share in DAMAGE]
        # The levels of an image are neighbours, so that devices keep the rows that they hold.
        index = jnp.tile(jnp.asarray(times), n)
        label = jnp.repeat(batch["label"], levels) if num_classes else None
        x_t, _, pred = predict(params, jnp.repeat(x0, levels, axis=0), index, label, key)
        given = x_t / alpha_of(index)[:, None, None, None]
        pair = [
            jnp.clip(x, -1.0, 1.0).reshape(n, levels, *image_shape)
            for x in (given, estimate(pred, x_t, index))
        ]
        return {f"t={t}": (pair[0][:, i], pair[1][:, i]) for i, t in enumerate(times)}

    def denoise(params: Any, cond: Mapping[str, Any], x: jax.Array, t: jax.Array) -> jax.Array:
        """Estimate of x_0, guided (Ho & Salimans 2022) as x_0(none) + w (x_0(label) - x_0(none)).

        w = `guidance`: 0 ignores the label, 1 is the conditional model, above 1 exaggerates it.
        """
        n = len(x)
        times = jnp.full((n,), t)
        label = cond.get("label") if num_classes else None
        if label is None or guidance == 1.0:
            pred = output(params, x, times, label)
        else:
            none = jnp.full((n,), num_classes, label.dtype)
            both = output(
                params,
                jnp.concatenate([x, x]),
                jnp.concatenate([times, times]),
                jnp.concatenate([label, none]),
            )
            with_label, without = jnp.split(both, 2)
            pred = without + guidance * (with_label - without)
        return estimate(pred, x, times.astype(jnp.int32))

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
        restore=restore,
        likelihood=bits,
    )
