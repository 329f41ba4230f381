"""DDIM (Song et al. 2021, arXiv:2010.02502)."""

import numpy as np

from aigc_jax.diffusion.process import Process
from aigc_jax.diffusion.solvers.base import Solver, from_to, linear
from aigc_jax.errors import SettingError


def solver(process: Process, index: np.ndarray, eta: float = 0.0) -> Solver:
    """DDIM (Song et al. 2021, eq. 12) over the times `index` [S], descending; it ends at x_0.

    eta = 0 is deterministic; eta = 1 is ancestral sampling with the posterior's variance.
    ValueError for an eta outside 0..1.
    """
    if not 0 <= eta <= 1:
        raise SettingError(f"sampling.eta must lie in 0..1, not {eta}")
    alpha, sigma, alpha_s, sigma_s = from_to(process, index)
    # The posterior q(x_s | x_t, x_0) has this std at eta = 1, for any alpha and sigma.
    std = eta * sigma_s * np.sqrt(np.maximum(1 - (alpha * sigma_s / (alpha_s * sigma)) ** 2, 0))
    c_x = np.sqrt(np.maximum(sigma_s**2 - std**2, 0)) / sigma
    return linear(index, alpha_s - c_x * alpha, c_x, std)
