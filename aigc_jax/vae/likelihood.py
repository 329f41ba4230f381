"""What a decoder says of an example: p(x|z) as log probability, mean and sample.

In nats, one value per example [B], summed over pixels and channels: an average is another model,
one with the KL weighted by the number of pixels. Examples x are [B, ..., C] in the model's range,
[-1, 1] for images; decoders' outputs are float32.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from aigc_jax.checks import Count, Positive, one_of

LOG_SIGMA_MIN = -6.0  # Rybkin et al. 2020: a perfect fit must not have infinite density
HALF_BIN = 1 / 255  # half the distance between neighbouring bytes in [-1, 1]


class Likelihood(NamedTuple):
    """p(x|z) of an example, given what the decoder puts out for z.

    Attributes:
      name: as `build` takes it.
      channels: channels of the decoder's whole output, [B, ..., channels].
      bytes_per_unit: of x, for `bits_per_dim`: 1 where `log_prob` is of discrete values,
        127.5 for a density on [-1, 1], 255 for one on [0, 1].
      parameters: {name: initial value} of scalars that are learned beside the decoder's;
        `log_prob` and `sample` take them as keyword arguments.
      log_prob: (outputs, x, **parameters) -> nats [B].
      mean: outputs -> examples [B, ..., C] in [-1, 1], to be shown.
      sample: (outputs, key, **parameters) -> examples [B, ..., C] in [-1, 1].
    """

    name: str
    channels: int
    bytes_per_unit: float
    parameters: Mapping[str, float]
    log_prob: Callable[..., jax.Array]
    mean: Callable[[jax.Array], jax.Array]
    sample: Callable[..., jax.Array]


def build(name: str, data_channels: int, **settings: Any) -> Likelihood:
    """The likelihood `name` of examples with `data_channels`; `settings` are its builder's.

    "bernoulli", "continuous_bernoulli", "gaussian" (sigma), "gaussian_learned", "gaussian_optimal",
    "laplace" (scale), "logistic_mixture" (components).
    """
    one_of("vae.likelihood.name", name, LIKELIHOODS)
    return LIKELIHOODS[name](data_channels, **settings)


def bernoulli(data_channels: int) -> Likelihood:
    """Pixels that are black or white, from logits; of grey ones the cross entropy."""

    def log_prob(logits: jax.Array, x: jax.Array) -> jax.Array:
        # Never log(sigmoid): this form and its gradient are finite at any logit.
        return per_example((x + 1) / 2 * logits - jax.nn.softplus(logits))

    def sample(logits: jax.Array, key: jax.Array) -> jax.Array:
        return jnp.where(jax.random.bernoulli(key, jax.nn.sigmoid(logits)), 1.0, -1.0)

    return Likelihood(
        "bernoulli", data_channels, 1.0, {}, log_prob, lambda logits: jnp.tanh(logits / 2), sample
    )


def continuous_bernoulli(data_channels: int) -> Likelihood:
    """The density lambda^x (1 - lambda)^(1 - x) C(lambda) of grey x in [0, 1], from logits.

    Loaiza-Ganem & Cunningham 2019 (arXiv:1907.06845): the Bernoulli's form, normalised.
    """

    def halves(logits: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """a = |logit| / 2, whether it is small, and an a that is safe to divide by."""
        a = jnp.abs(logits) / 2
        return a, a < 0.25, jnp.where(a < 0.25, 1.0, a)

    def log_normaliser(logits: jax.Array) -> jax.Array:
        """log C = log(2 a / tanh(a)); its series around a = 0, where numerator and denominator go.

        The series is in the square of the logit, so that its gradient needs no sign.
        """
        _, small, a = halves(logits)
        b = jnp.where(small, logits**2 / 4, 0.0)
        series = b * (1 / 3 - b * (7 / 90 - b * (62 / 2835 - b * 127 / 18900)))
        log_tanh = jnp.log(-jnp.expm1(-2 * a)) - jnp.log1p(jnp.exp(-2 * a))
        return math.log(2) + jnp.where(small, series, jnp.log(a) - log_tanh)

    def log_prob(logits: jax.Array, x: jax.Array) -> jax.Array:
        inner = (x + 1) / 2 * logits - jax.nn.softplus(logits)
        return per_example(inner + log_normaliser(logits))

    def mean(logits: jax.Array) -> jax.Array:
        # Of images in [-1, 1] this is the Langevin function coth(a) - 1 / a.
        a, small, safe = halves(logits)
        series = a * (1 / 3 - a**2 * (1 / 45 - a**2 * 2 / 945))
        return jnp.sign(logits) * jnp.where(small, series, 1 / jnp.tanh(safe) - 1 / safe)

    def sample(logits: jax.Array, key: jax.Array) -> jax.Array:
        u = jax.random.uniform(key, logits.shape)
        # The inverse of the distribution function for logits below 0, and its mirror image.
        t = -jnp.maximum(jnp.abs(logits), 1e-6)
        x01 = jnp.log1p(u * jnp.expm1(t)) / t
        return 2 * jnp.where(logits > 0, 1 - x01, x01) - 1

    return Likelihood("continuous_bernoulli", data_channels, 255.0, {}, log_prob, mean, sample)


def gaussian(data_channels: int, sigma: Positive) -> Likelihood:
    """N(outputs, sigma^2), sigma in units of images in [-1, 1]. Samples are clipped to them."""

    def log_prob(outputs: jax.Array, x: jax.Array) -> jax.Array:
        return per_example(gaussian_log_prob(x, outputs, 2 * math.log(sigma)))

    def sample(outputs: jax.Array, key: jax.Array) -> jax.Array:
        return _clip(outputs + sigma * jax.random.normal(key, outputs.shape))

    return Likelihood("gaussian", data_channels, 127.5, {}, log_prob, _clip, sample)


def laplace(data_channels: int, scale: Positive) -> Likelihood:
    """The Laplace density around the outputs: its negative logarithm is |x - outputs| / scale.

    That is the L1 distance of Rombach et al. 2022 (arXiv:2112.10752) at scale 1, in units of images
    in [-1, 1]. Samples are clipped to them.
    """

    def log_prob(outputs: jax.Array, x: jax.Array) -> jax.Array:
        return per_example(-jnp.abs(x - outputs) / scale - math.log(2 * scale))

    def sample(outputs: jax.Array, key: jax.Array) -> jax.Array:
        return _clip(outputs + scale * jax.random.laplace(key, outputs.shape))

    return Likelihood("laplace", data_channels, 127.5, {}, log_prob, _clip, sample)


def gaussian_learned(data_channels: int) -> Likelihood:
    """N(outputs, sigma^2) with one learned sigma, its logarithm softclipped from below at -6."""

    def log_prob(outputs: jax.Array, x: jax.Array, log_sigma: jax.Array) -> jax.Array:
        return per_example(gaussian_log_prob(x, outputs, 2 * soft_floor(log_sigma)))

    def sample(outputs: jax.Array, key: jax.Array, log_sigma: jax.Array) -> jax.Array:
        noise = jax.random.normal(key, outputs.shape)
        return _clip(outputs + jnp.exp(soft_floor(log_sigma)) * noise)

    return Likelihood(
        "gaussian_learned", data_channels, 127.5, {"log_sigma": 0.0}, log_prob, _clip, sample
    )


def gaussian_optimal(data_channels: int) -> Likelihood:
    """N(outputs, sigma^2) with the sigma that is best for the batch (Rybkin et al. 2020).

    The optimal sigma-VAE of arXiv:2006.13202: sigma^2 is the mean squared error of the whole batch,
    log sigma softclipped at -6. So a value depends on the batch that the example is in: it trains a
    model, it is no likelihood to report or to weigh importance samples by. A sample is the mean: no
    sigma belongs to the model.
    """

    def log_prob(outputs: jax.Array, x: jax.Array) -> jax.Array:
        # The logarithm of a perfect fit has no gradient.
        log_sigma = soft_floor(0.5 * jnp.log(jnp.mean((x - outputs) ** 2) + 1e-12))
        return per_example(gaussian_log_prob(x, outputs, 2 * log_sigma))

    return Likelihood(
        "gaussian_optimal",
        data_channels,
        127.5,
        {},
        log_prob,
        _clip,
        lambda outputs, key: _clip(outputs),
    )


def logistic_mixture(data_channels: int, components: Count = 10) -> Likelihood:
    """A mixture of logistics over the 256 bytes (PixelCNN++, arXiv:1701.05517, sec. 2.1, 2.2).

    All channels of a pixel share the component; within one, the mean of a channel is linear in the
    channels before it, with coefficients tanh(outputs). The first and the last bin reach to
    infinity. A component has 1 logit, C means, C log-scales (clipped to [-7, 7]) and C (C - 1) / 2
    coefficients: 100 outputs for RGB, 30 for grey.
    """
    c = data_channels
    pairs = [(i, j) for i in range(c) for j in range(i)]  # channel i depends on channel j

    def split(outputs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Logits [..., M], means [..., M, C], log-scales [..., M, C], coefficients [..., M, -1]."""
        o = outputs.reshape(*outputs.shape[:-1], components, 1 + 2 * c + len(pairs))
        scale = jnp.clip(o[..., 1 + c : 1 + 2 * c], -7.0, 7.0)
        return o[..., 0], o[..., 1 : 1 + c], scale, jnp.tanh(o[..., 1 + 2 * c :])

    def mean_given(means: jax.Array, coefficients: jax.Array, i: int, before: list) -> jax.Array:
        """Means of channel i given the channels `before` it."""
        shift = (coefficients[..., n] * before[j] for n, (k, j) in enumerate(pairs) if k == i)
        return means[..., i] + sum(shift)

    def log_prob(outputs: jax.Array, x: jax.Array) -> jax.Array:
        logits, means, log_scale, coefficients = split(outputs)
        given = [x[..., i, None] for i in range(c)]
        mean = jnp.stack([mean_given(means, coefficients, i, given) for i in range(c)], axis=-1)
        inverse, x_ = jnp.exp(-log_scale), x[..., None, :]
        upper = inverse * (x_ - mean + HALF_BIN)
        lower = inverse * (x_ - mean - HALF_BIN)
        # s(u) - s(l) = s(u) s(-l) (1 - e^(l - u)): a difference of probabilities is never formed.
        below = jnp.where(x_ > 0.999, 0.0, jax.nn.log_sigmoid(upper))
        above = jnp.where(x_ < -0.999, 0.0, jax.nn.log_sigmoid(-lower))
        width = jnp.log(-jnp.expm1(-2 * HALF_BIN * inverse))
        inner = below + above + jnp.where(jnp.abs(x_) > 0.999, 0.0, width)
        log_p = jnp.sum(inner, axis=-1) + jax.nn.log_softmax(logits, axis=-1)
        return per_example(logsumexp(log_p, axis=-1))

    def mean(outputs: jax.Array) -> jax.Array:
        """The components' means, each clipped to [-1, 1], by their probabilities."""
        logits, means, _, coefficients = split(outputs)
        channels = []
        for i in range(c):
            channels.append(_clip(mean_given(means, coefficients, i, channels)))
        weights = jax.nn.softmax(logits, axis=-1)
        return jnp.stack([jnp.sum(weights * channel, axis=-1) for channel in channels], axis=-1)

    def sample(outputs: jax.Array, key: jax.Array) -> jax.Array:
        logits, means, log_scale, coefficients = split(outputs)
        pick_key, noise_key = jax.random.split(key)
        pick = jax.random.categorical(pick_key, logits)[..., None, None]
        means, log_scale, coefficients = (
            jnp.take_along_axis(a, pick, axis=-2)[..., 0, :]
            for a in (means, log_scale, coefficients)
        )
        noise = jnp.exp(log_scale) * jax.random.logistic(noise_key, log_scale.shape)
        channels = []
        # Each is rounded to a byte, since the next one depends on what the image will hold.
        for i in range(c):
            value = _clip(mean_given(means, coefficients, i, channels) + noise[..., i])
            channels.append(_clip(jnp.round((value + 1) * 127.5) / 127.5 - 1))
        return jnp.stack(channels, axis=-1)

    return Likelihood(
        "logistic_mixture", components * (1 + 2 * c + len(pairs)), 1.0, {}, log_prob, mean, sample
    )


LIKELIHOODS = {
    "bernoulli": bernoulli,
    "continuous_bernoulli": continuous_bernoulli,
    "gaussian": gaussian,
    "gaussian_learned": gaussian_learned,
    "gaussian_optimal": gaussian_optimal,
    "laplace": laplace,
    "logistic_mixture": logistic_mixture,
}
BOUNDED = ("bernoulli", "continuous_bernoulli", "logistic_mixture")  # of data in [-1, 1] alone


def gaussian_log_prob(x: jax.Array, mean: jax.Array, logvar: jax.Array | float) -> jax.Array:
    """ln N(x; mean, e^logvar) of each element."""
    return -0.5 * (math.log(2 * math.pi) + logvar + (x - mean) ** 2 * jnp.exp(-logvar))


def soft_floor(log_sigma: jax.Array) -> jax.Array:
    """`log_sigma` where it is high, smoothly no less than -6 (arXiv:2006.13202)."""
    return LOG_SIGMA_MIN + jax.nn.softplus(log_sigma - LOG_SIGMA_MIN)


def per_example(x: jax.Array) -> jax.Array:
    """The sum of [B, ...] over all but its first axis, [B]."""
    return jnp.sum(x.reshape(len(x), -1), axis=1)


def _clip(images: jax.Array) -> jax.Array:
    return jnp.clip(images, -1.0, 1.0)
