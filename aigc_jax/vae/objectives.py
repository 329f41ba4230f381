"""What a variational autoencoder maximises, and what its KL costs.

log p(x) >= E_q(z|x) log p(x|z) - KL(q(z|x) || p(z)), Kingma & Welling 2014 (arXiv:1312.6114),
eq. 3, with q and p diagonal Gaussians, p(z) = N(0, I). Everything is in nats, one value per example
[B], summed over pixels and latent dimensions.
"""

import math
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from aigc_jax.checks import Count, NonNegative, OneOf, one_of
from aigc_jax.errors import SettingError
from aigc_jax.vae.likelihood import per_example

Cost = Callable[[jax.Array, jax.Array], jax.Array]  # (kl [B, ...], step) -> nats [B]


class Importance(NamedTuple):
    """How many samples of z a bound has (Burda et al. 2015, arXiv:1509.00519).

    Attributes:
      samples: in training; above 1 the loss is the importance-weighted bound.
      test_samples: of the estimate of -log p(x) that a trained model is evaluated by.
      chunk: how many of these are in memory at a time.
    """

    samples: Count = 1
    test_samples: Count = 100
    chunk: Count = 50


def clip_logvar(logvar: jax.Array) -> jax.Array:
    """Log-variances within [-30, 20], as in Rombach et al. 2022: e^logvar is a float32 there.

    Beyond it the gradient is 0. Clip once, before both the sample and the KL.
    """
    return jnp.clip(logvar, -30.0, 20.0)


def elbo(log_px: jax.Array, kl: jax.Array) -> jax.Array:
    """log p(x|z) [B] less the KL [B, ...], nats [B]."""
    return log_px - per_example(kl)


def iwae(log_w: jax.Array) -> jax.Array:
    """The bound log (1/k) sum_i w_i of log w [k, B], w = p(x, z) / q(z|x), nats [B].

    Burda et al. 2015 (arXiv:1509.00519), eq. 8. Its gradient is that of log w_i weighed by
    w_i / sum w, as in their section 3; k = 1 is the ELBO.
    """
    return logsumexp(log_w, axis=0) - math.log(len(log_w))


def importance_log_likelihood(
    log_w: Callable[[jax.Array], jax.Array], key: jax.Array, k: int, chunk: int
) -> jax.Array:
    """`iwae` with k samples, `chunk` of them in memory at a time, nats [B].

    Args:
      log_w: keys [chunk] -> log weights [chunk, B], a sample a key: jit(vmap(f)) of an f of one
        key. The loop is the host's, because a convolution inside `lax.scan` is slow on a CPU.
      key: a sample's noise depends on it and the sample's number, not on `chunk`.
      k, chunk: `chunk` divides k.
    """
    if chunk < 1 or k < 1 or k % chunk:
        raise SettingError(f"a chunk of {chunk} does not divide {k} importance samples")
    keys = jax.random.split(key, k)
    parts = [_log_sum(log_w(keys[i : i + chunk])) for i in range(0, k, chunk)]
    return _log_sum(jnp.stack(parts)) - math.log(k)


def bits_per_dim(log_p: jax.Array, dims: int, bytes_per_unit: float) -> jax.Array:
    """-log p(x) [B] as bits for each of an image's `dims` bytes.

    The probability of a byte is near p(x) / bytes_per_unit where p is a density (1 / 127.5 is a
    byte's width on [-1, 1]), exact with bytes dequantised by uniform noise, and p(x) where it is
    discrete; see `Likelihood`.
    """
    return -log_p / (dims * math.log(2)) + math.log2(bytes_per_unit)


def linear(steps: Count) -> Callable:
    """step -> a weight that rises from 0 at step 0 to 1 at `steps`, and stays."""
    return lambda step: jnp.minimum(step / steps, 1.0)


def cyclical(steps: Count, ratio: float = 0.5) -> Callable:
    """step -> a weight that starts again from 0 every `steps` (Fu et al. 2019, arXiv:1903.10145).

    It rises for the first `ratio` of a cycle and is 1 for the rest (eq. 6, 7; R = 0.5 there).
    """
    return lambda step: jnp.minimum(jnp.mod(step, steps) / (steps * ratio), 1.0)


# Settings -> step -> a weight in [0, 1].
ANNEALING = {"constant": lambda: lambda step: 1.0, "linear": linear, "cyclical": cyclical}

WEIGHTS = (*ANNEALING, "capacity")  # names of how the KL's weight changes, or of what it costs

# kl [B, ...] -> [B, J], by what free bits are given to.
GROUPS = {
    "dimension": lambda kl: kl.reshape(len(kl), -1),
    "channel": lambda kl: jnp.sum(kl.reshape(len(kl), -1, kl.shape[-1]), axis=1),
    "layer": lambda kl: per_example(kl)[:, None],
}


def kl_cost(name: str, **settings: Any) -> Cost:
    """What the KL costs in training: (kl [B, ...], step) -> nats [B].

    `name` is "capacity" (see `capacity`) or how the KL's weight changes with the step: "constant",
    "linear" or "cyclical". Then `settings` are the annealing's and those of `weighted`.
    """
    one_of("vae.kl.weight", name, WEIGHTS)
    if name == "capacity":
        return capacity(**settings)
    return weighted(ANNEALING[name], **settings)


def weighted(
    annealing: Callable,
    *,
    beta: NonNegative = 1.0,
    free_bits: NonNegative = 0.0,
    free_bits_per: Annotated[str, OneOf(GROUPS)] = "dimension",
    **settings: Any,
) -> Cost:
    """beta times the annealing times the KL.

    Args:
      annealing: settings -> step -> weight in [0, 1].
      beta: 1 is the bound, above it Higgins et al. 2017's beta-VAE.
      free_bits, free_bits_per: nats that are free (see `free_nats`) in each "dimension", each
        "channel" (the last axis of kl, over all positions) or the whole "layer".
    """
    if free_bits and not beta:
        raise SettingError(
            "vae.kl.free_bits does nothing where vae.kl.beta is 0: no nat costs anything"
        )
    one_of("vae.kl.free_bits_per", free_bits_per, GROUPS)
    weight, group = annealing(**settings), GROUPS[free_bits_per]

    def cost(kl: jax.Array, step: jax.Array) -> jax.Array:
        if free_bits:
            kl = free_nats(group(kl), free_bits)
        return beta * weight(step) * per_example(kl)

    return cost


def free_nats(kl: jax.Array, floor: float) -> jax.Array:
    """kl [B, J], or where its mean over the batch is below it `floor`, which has no gradient.

    Kingma et al. 2016 (arXiv:1606.04934), appendix C.8: the batch mean of the result is
    max(floor, mean kl_j).
    """
    return jnp.where(jnp.mean(kl, axis=0, keepdims=True) > floor, kl, floor)


def capacity(gamma: NonNegative, nats: NonNegative, steps: Count) -> Cost:
    """gamma |KL - C(t)| of each example; C rises from 0 to `nats` over `steps`.

    Burgess et al. 2018 (arXiv:1804.03599), eq. 8.
    """
    rise = linear(steps)
    return lambda kl, step: gamma * jnp.abs(per_example(kl) - nats * rise(step))


_log_sum = jax.jit(lambda log_w: logsumexp(log_w, axis=0))
