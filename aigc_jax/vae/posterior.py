"""What the posteriors of many images say together: whether codes are used, where codes lie."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from aigc_jax.vae import objectives


def diagnose(codes: Mapping[str, np.ndarray]) -> tuple[dict[str, float], str]:
    """Whether N images' codes {"mean", "logvar": [N, ...]} are used; see `Family.diagnose`."""
    mean, logvar = (codes[name].reshape(len(codes[name]), -1) for name in ("mean", "logvar"))
    kl = np.asarray(objectives.kl_standard_normal(mean, logvar)).mean(0)
    active = np.asarray(objectives.active_units(mean))
    found = min(len(mean), 4096)  # every pair of them is compared
    information = objectives.mutual_information(mean[:found], logvar[:found], jax.random.key(0))
    centre, covariance = (np.asarray(x) for x in objectives.aggregate_moments(mean, logvar))
    metrics = {
        "active_units": float(active.sum()),
        "mutual_information": float(information),
        "largest_kl": float(kl.max()),
        "aggregate_mean": float(np.linalg.norm(centre)),  # 0 of a prior that is matched
        "aggregate_variance": float(np.trace(covariance) / len(centre)),  # 1
    }
    return metrics, objectives.collapse_warning(kl, active)


def fit_mixture(codes: Mapping[str, np.ndarray], components: int) -> dict[str, Any]:
    """{"mixture": ...}: Gaussians fitted to posterior means [N, ...], for `sample` to draw from."""
    from sklearn.mixture import GaussianMixture  # a second to import, for this alone

    mean = codes["mean"].reshape(len(codes["mean"]), -1).astype(np.float64)
    if components < 1 or components > len(mean):
        raise ValueError(f"sampling.components must lie in 1..{len(mean)}, not {components}")
    fitted = GaussianMixture(components, reg_covar=1e-6, random_state=0).fit(mean)
    mixture = {
        "log_weights": np.log(fitted.weights_),
        "means": fitted.means_,
        "factors": np.linalg.cholesky(fitted.covariances_),
    }
    return {"mixture": {name: array.astype(np.float32) for name, array in mixture.items()}}
