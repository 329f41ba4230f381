"""Posteriors q(z|x) = N(mean, e^logvar): a draw, and what those of many examples say together."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.gaussian import normal_kl
from aigc_jax.vae import objectives

MOST_COMPARED = 4096  # codes whose mutual information is taken: every pair of them is compared


def reparameterised(mean: jax.Array, logvar: jax.Array, key: jax.Array) -> jax.Array:
    """z ~ N(mean, e^logvar), reparameterised."""
    return mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)


def diagnose(codes: Mapping[str, np.ndarray]) -> tuple[dict[str, float], str]:
    """Whether N examples' codes {"mean", "logvar": [N, ...]} are used; see `Codec.diagnose`."""
    mean, logvar = (codes[name].reshape(len(codes[name]), -1) for name in ("mean", "logvar"))
    kl = np.asarray(normal_kl(mean, logvar)).mean(0)
    active = np.asarray(objectives.active_units(mean))
    n = min(len(mean), MOST_COMPARED)
    information = objectives.mutual_information(mean[:n], logvar[:n], jax.random.key(0))
    centre, covariance = (np.asarray(x) for x in objectives.aggregate_moments(mean, logvar))
    metrics = {
        "active_units": float(active.sum()),
        "mutual_information": float(information),
        "largest_kl": float(kl.max()),
        "aggregate_mean": float(np.linalg.norm(centre)),  # 0 where the prior is matched
        "aggregate_variance": float(np.trace(covariance) / len(centre)),  # then 1
    }
    return metrics, objectives.collapse_warning(kl, active)
