"""Posteriors q(z|x) = N(mean, e^logvar): a draw, and what those of many examples say together."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from aigc_jax.gaussian import normal_kl
from aigc_jax.vae.likelihood import gaussian_log_prob, per_example

MOST_COMPARED = 4096  # codes whose mutual information is taken: every pair of them is compared


def reparameterised(mean: jax.Array, logvar: jax.Array, key: jax.Array) -> jax.Array:
    """z ~ N(mean, e^logvar), reparameterised."""
    return mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)


def diagnose(codes: Mapping[str, np.ndarray]) -> tuple[dict[str, float], str]:
    """Whether N examples' codes {"mean", "logvar": [N, ...]} are used; see `Codec.diagnose`."""
    mean, logvar = (codes[name].reshape(len(codes[name]), -1) for name in ("mean", "logvar"))
    kl = np.asarray(normal_kl(mean, logvar)).mean(0)
    active = np.asarray(active_units(mean))
    n = min(len(mean), MOST_COMPARED)
    information = mutual_information(mean[:n], logvar[:n], jax.random.key(0))
    centre, covariance = (np.asarray(x) for x in aggregate_moments(mean, logvar))
    metrics = {
        "active_units": float(active.sum()),
        "mutual_information": float(information),
        "largest_kl": float(kl.max()),
        "aggregate_mean": float(np.linalg.norm(centre)),  # 0 where the prior is matched
        "aggregate_variance": float(np.trace(covariance) / len(centre)),  # then 1
    }
    return metrics, collapse_warning(kl, active)


def active_units(means: jax.Array, threshold: float = 0.01) -> jax.Array:
    """Which latent dimensions tell examples apart, bool [d].

    Those whose posterior mean has a variance above `threshold` over the data, of `means` [N, d]
    (Burda et al. 2015, arXiv:1509.00519, sec. 5.2).
    """
    return jnp.var(means, axis=0) > threshold


def aggregate_moments(means: jax.Array, logvar: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean [d] and covariance [d, d] of the aggregate posterior (1/N) sum_n q(z|x_n), of [N, d].

    N(0, I) has zeros and the identity.
    """
    mean = jnp.mean(means, axis=0)
    centred = means - mean[None]
    spread = jnp.matmul(centred.T, centred, precision="highest") / len(means)
    return mean, spread + jnp.diag(jnp.mean(jnp.exp(logvar), axis=0))


@jax.jit
def mutual_information(means: jax.Array, logvar: jax.Array, key: jax.Array) -> jax.Array:
    """I(x; z) in nats of z from q(z|x) of N examples' means and log-variances [N, d].

    E KL(q(z|x) || p) - KL(q(z) || p) = E log q(z|x) - E log q(z) (Hoffman & Johnson 2016, "ELBO
    surgery"), from one z an example, with q(z) the mixture of these N posteriors. It cannot exceed
    log N: a value near that is a statement about N, not about I. The mean KL less this is
    KL(q(z) || p), how far the aggregate posterior is from the prior.
    """
    z = reparameterised(means, logvar, key)

    def log_q(z_n: jax.Array) -> jax.Array:
        return per_example(gaussian_log_prob(z_n[None], means, logvar))

    # A row at a time: all N^2 d differences at once would not fit.
    marginal = jax.lax.map(lambda z_n: logsumexp(log_q(z_n)), z) - math.log(len(z))
    return jnp.mean(per_example(gaussian_log_prob(z, means, logvar)) - marginal)


def collapse_warning(kl: np.ndarray, active: np.ndarray) -> str:
    """What is wrong with the codes, in words; "" where nothing is.

    `kl` [d], the mean over the data of each dimension's KL, nats; `active` [d], `active_units`.
    """
    kl, active = np.asarray(kl, np.float64), np.asarray(active, bool)
    n, d, total = int(active.sum()), len(active), float(kl.sum())
    if not np.isfinite(total):
        return "The KL is not finite: a log-variance or a mean of the encoder has run away."
    cure = "Lower beta, anneal it from 0, or give free bits."
    if n == 0:
        return (
            f"Posterior collapse: none of {d} latent dimensions is active and the KL is "
            f"{total:.3g} nats, so the decoder ignores its code. {cure}"
        )
    if n < 0.1 * d:
        return f"Near posterior collapse: {n} of {d} latent dimensions are active. {cure}"
    idle = float(kl[~active].sum())
    if idle > 0.1 * total:
        return (
            f"{idle:.3g} of {total:.3g} nats of KL are in {d - n} latent dimensions that are the "
            "same for every example: they cost and say nothing (free bits do this, and so does too "
            "short a training)."
        )
    return ""
