"""Ancestral sampling (Ho et al. 2020, arXiv:2006.11239)."""

import numpy as np

from aigc_jax.checks import one_of
from aigc_jax.diffusion.process import Process
from aigc_jax.diffusion.solvers import ddim
from aigc_jax.diffusion.solvers.base import Solver, from_to

VARIANCES = ("fixed_small", "fixed_large")


def solver(process: Process, index: np.ndarray, variance: str) -> Solver:
    """Ancestral sampling (Ho et al. 2020, algorithm 2) over the times `index` [S], descending.

    With fewer steps than T the betas are those of the process between the chosen times (Nichol &
    Dhariwal 2021). The variance is the posterior's ("fixed_small") or beta ("fixed_large"); the
    step that reaches x_0 adds no noise. ValueError for any other variance.
    """
    one_of("sampling.variance", variance, VARIANCES)
    small = ddim.solver(process, index, eta=1.0)
    if variance == "fixed_small":
        return small
    alpha, sigma, alpha_s, sigma_s = from_to(process, index)
    beta = sigma**2 - (alpha / alpha_s * sigma_s) ** 2
    std = np.append(np.sqrt(beta[:-1]), 0.0)
    return small._replace(table=small.table | {"std": std})
