"""Where samples' codes come from: N(0, I), or a mixture of Gaussians fitted to the data's codes.

Ghosh et al. 2020, "From Variational to Deterministic Autoencoders" (arXiv:1903.12436).
"""

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.checks import Count, NonNegative, OneOf
from aigc_jax.errors import SettingError

PRIORS = ("normal", "mixture")
Mixture = Mapping[str, Any]  # {"log_weights": [M], "means": [M, d], "factors": [M, d, d]}


def fit_mixture(codes: Mapping[str, np.ndarray], components: int) -> dict[str, np.ndarray]:
    """A `Mixture` of as many Gaussians as `components`, fitted to posterior means [N, ...].

    Raises:
      ValueError: no components, or more of them than codes.
    """
    from sklearn.mixture import GaussianMixture  # a second to import, for this alone

    mean = codes["mean"].reshape(len(codes["mean"]), -1).astype(np.float64)
    if components < 1 or components > len(mean):
        raise SettingError(f"sampling.components must lie in 1..{len(mean)}, not {components}")
    fitted = GaussianMixture(components, reg_covar=1e-6, random_state=0).fit(mean)
    mixture = {
        "log_weights": np.log(fitted.weights_),
        "means": fitted.means_,
        "factors": np.linalg.cholesky(fitted.covariances_),
    }
    return {name: array.astype(np.float32) for name, array in mixture.items()}


class Sampling(NamedTuple):
    """How samples' codes are drawn.

    Attributes:
      prior: "normal", or "mixture": of Gaussians fitted to the training data's posterior means.
      components: of the mixture.
      temperature: of the codes' deviations.
    """

    prior: Annotated[str, OneOf(PRIORS)] = "normal"
    components: Count = 10
    temperature: NonNegative = 1.0

    def draw(
        self, key: jax.Array, shape: tuple[int, ...], mixture: Mixture | None = None
    ) -> jax.Array:
        """A code [*shape] from N(0, temperature^2 I), or from a fitted mixture.

        The temperature is then of each component's deviations.
        """
        if mixture is None:
            return self.temperature * jax.random.normal(key, shape)
        component_key, key = jax.random.split(key)
        i = jax.random.categorical(component_key, mixture["log_weights"])
        eps = self.temperature * jax.random.normal(key, mixture["means"].shape[1:])
        z = mixture["means"][i] + jnp.matmul(mixture["factors"][i], eps, precision="highest")
        return z.reshape(shape)
