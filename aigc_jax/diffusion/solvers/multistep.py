"""Solvers that go by the estimates of earlier steps too, one call a step.

In lambda = ln(alpha / sigma) the path from s to t is exactly (Lu et al. 2022, arXiv:2211.01095)

  x_t = sigma_t / sigma_s x_s + sigma_t int e^lambda x_0(lambda) d lambda
      = alpha_t / alpha_s x_s - alpha_t int e^-lambda eps(lambda) d lambda.

x_0 (or eps) is replaced by the polynomial through its last estimates; the rest is exact.
"""

import numpy as np

from aigc_jax.diffusion.process import Level
from aigc_jax.diffusion.solvers import ddim
from aigc_jax.diffusion.solvers.base import Solver, linear, steps_of

# Gauss-Legendre quadrature over 0..1, to float64's last digits for what follows.
_GAUSS = np.polynomial.legendre.leggauss(64)
_U, _WEIGHTS = (_GAUSS[0] + 1) / 2, _GAUSS[1] / 2


def orders(grid: Level, order: int, taper: bool) -> np.ndarray:
    """How many estimates each step goes by, int [S].

    At most those since the first level that is not noise alone; one in the step to x_0, where
    lambda ends at infinity.

    Args:
      taper: the steps before that one fall to it by one each.
    """
    left = np.arange(len(grid.t) - 1, 0, -1)
    known = left[::-1] - (grid.alpha[0] == 0)
    found = np.clip(known, 1, order)
    if grid.sigma[-1] > 0:
        return found
    return np.minimum(found, left if taper else np.where(left == 1, 1, order))


def log_snr(grid: Level) -> np.ndarray:
    """lambda of a grid's levels: ln(alpha / sigma); infinite at its ends, maybe."""
    with np.errstate(divide="ignore"):
        return -np.log(grid.ratio)


def adams(z: float, nodes: np.ndarray) -> np.ndarray:
    """int_0^1 e^(z (1 - u)) L_j(u) du of the Lagrange polynomials through `nodes` [k], [k]."""
    k = len(nodes)
    basis = [
        np.prod([(_U - nodes[m]) / (nodes[j] - nodes[m]) for m in range(k) if m != j], axis=0)
        for j in range(k)
    ]
    return np.array([(_WEIGHTS * np.exp(z * (1 - _U)) * b).sum() for b in basis])


def nodes_of(lam: np.ndarray, i: int, k: int) -> np.ndarray:
    """Where the k latest estimates of step i lie, in steps from its start: 0, -r_1, ..., [k]."""
    return (lam[i - np.arange(k)] - lam[i]) / (lam[i + 1] - lam[i])


def x0_weights(
    grid: Level, counts: np.ndarray, eta: float = 0.0, midpoint: bool = False
) -> np.ndarray:
    """The weights [S, max(counts)] of the latest estimates of x_0 in each step.

    Args:
      counts: how many estimates each step goes by, [S].
      eta: how stochastic steps are: the integral is of e^((1 + eta) lambda).
      midpoint: two estimates are extrapolated to the middle of the step, and that is held.
    """
    at, to = steps_of(grid)
    lam = log_snr(grid)
    weights = np.zeros((len(counts), max(counts)))
    weights[:, 0] = to.alpha * (1 - (to.sigma * at.alpha / (to.alpha * at.sigma)) ** (1 + eta))
    for i in np.flatnonzero(counts > 1):
        nodes = nodes_of(lam, i, counts[i])
        if midpoint and counts[i] == 2:
            weights[i, :2] = weights[i, 0] * np.array([1 - 0.5 / nodes[1], 0.5 / nodes[1]])
        else:
            h = (1 + eta) * (lam[i + 1] - lam[i])
            weights[i, : counts[i]] = to.alpha[i] * h * adams(-h, nodes)
    return weights


def dpmpp(grid: Level, start: float, order: int, eta: float = 0.0) -> Solver:
    """DPM-Solver++ of order 2 ("2M", midpoint) or 3 ("3M") over a grid [S + 1].

    eta > 0 is its SDE: 1 adds the noise of the reverse SDE. 3M integrates the parabola exactly;
    k-diffusion and diffusers halve its second difference, which leaves them at order 2.

    The SDE of 3M extrapolates too far over the last steps of "leading", which are large in lambda,
    as k-diffusion's does: of data with std 0.5, samples by 50 of 1,000 linear levels have 1.30
    (2M's 0.59), by "trailing" 0.52 and by "karras" 0.50.
    """
    at, to = steps_of(grid)
    counts = orders(grid, order, taper=eta == 0 and len(at.t) < 15)
    weights = x0_weights(grid, counts, eta, midpoint=order == 2)
    k = weights.shape[1]
    q = to.sigma * at.alpha / (to.alpha * at.sigma)  # e^-h
    keep, x0, noise = _shifting(len(q), k)
    keep[:, 0, 0] = to.sigma / at.sigma * q**eta
    keep[:, 0, 1:] = weights[:, 1:]
    x0[:, 0] = weights[:, 0]
    x0[:, 1:2] = 1.0
    noise[:, 0] = to.sigma * np.sqrt(1 - q ** (2 * eta))
    return linear(at, keep, x0, noise, std=start)


def deis(grid: Level, start: float, order: int) -> Solver:
    """DEIS (Zhang & Chen 2023, arXiv:2204.13902), polynomials of eps in ln(sigma / alpha)."""
    at, to = steps_of(grid)
    counts = orders(grid, order, taper=len(at.t) < 15)
    lam = log_snr(grid)
    keep, x0, _ = _shifting(len(counts), max(counts))
    keep[:, 0, 0], x0[:, 0], _ = ddim.coefficients(grid, eta=0.0)
    for i in np.flatnonzero(counts > 1):
        h = lam[i + 1] - lam[i]
        weights = -to.sigma[i] * h * adams(h, nodes_of(lam, i, counts[i]))
        # The latest eps is (x - alpha x_0) / sigma.
        keep[i, 0, 0] = to.alpha[i] / at.alpha[i] + weights[0] / at.sigma[i]
        x0[i, 0] = -weights[0] * at.alpha[i] / at.sigma[i]
        keep[i, 0, 1 : counts[i]] = weights[1:]
    if max(counts) > 1:
        keep[:, 1, 0], x0[:, 1] = 1 / at.sigma, -at.alpha / at.sigma
    return linear(at, keep, x0, std=start)


def _shifting(steps: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """keep, x0 and noise of `linear`, zeros but for z_2 <- z_1, z_3 <- z_2 ..."""
    keep = np.zeros((steps, k, k))
    for j in range(2, k):
        keep[:, j, j - 1] = 1.0
    return keep, np.zeros((steps, k)), np.zeros((steps, k))
