"""The order of each deterministic solver, observed where the exact samples are known.

    PYTHONPATH=.:tests python benchmarks/solver_orders.py

Data are two normal distributions on a line. There the path without noise keeps the order of points,
so a sample has the same quantile among data as its start has among noisy data. Levels are even in
the logarithm of the noise ratio; each doubling of the steps divides the error by 2^order.
"""

import numpy as np
from diffusion.solvers.walks import walk
from scipy.optimize import brentq
from scipy.stats import norm

from aigc_jax.diffusion import process as gaussian
from aigc_jax.diffusion import solvers
from aigc_jax.diffusion.process import Level

MEANS, STDS, WEIGHTS = np.array([-1.0, 1.5]), np.array([0.5, 0.7]), np.array([0.4, 0.6])
NOISIEST, LAST = 80.0, 0.05
STEPS = (40, 80, 160, 320)
# {solver: its settings, and the order that theory says}
ORDERS = {
    "ddim": ({}, 1),
    "euler": ({}, 1),
    "heun": ({}, 2),
    "flow_heun": ({}, 2),
    "dpmpp_2m": ({}, 2),
    "deis": ({"order": 2}, 2),
    "deis, order 3": ({"order": 3}, 3),
    "dpmpp_3m": ({}, 3),
    "unipc": ({"order": 2}, 3),
    "unipc, order 3": ({"order": 3}, 4),
}


def denoise(x: np.ndarray, level: Level) -> np.ndarray:
    """The mean of the data given x, [n]."""
    alpha, sigma = level.alpha, level.sigma
    variance = (alpha * STDS) ** 2 + sigma**2
    x = np.asarray(x)[:, None]
    log_p = np.log(WEIGHTS) - 0.5 * np.log(variance) - (x - alpha * MEANS) ** 2 / (2 * variance)
    p = np.exp(log_p - log_p.max(1, keepdims=True))
    mean = (alpha * STDS**2 * x + sigma**2 * MEANS) / variance
    return (p * mean).sum(1) / p.sum(1)


def cdf(y: float, ratio: float) -> float:
    """How many of the data with noise of std `ratio` lie below y."""
    return float((WEIGHTS * norm.cdf(y, MEANS, np.hypot(STDS, ratio))).sum())


def exact(start: float) -> float:
    """Where the path from `start` (x / alpha) ends."""
    return brentq(lambda y: cdf(y, LAST) - cdf(start, NOISIEST), -9, 9, xtol=1e-14, rtol=1e-14)


def errors(name: str) -> np.ndarray:
    """The greatest error over five starts at each number of steps, [len(STEPS)]."""
    sampler, settings = name.split(",")[0], ORDERS[name][0]
    process = gaussian.Flow() if sampler == "flow_heun" else gaussian.EDM()
    starts = NOISIEST * norm.ppf([0.15, 0.35, 0.5, 0.7, 0.9])
    ends = np.array([exact(start) for start in starts])
    found = []
    for steps in STEPS:
        levels = process.at_ratio(np.geomspace(NOISIEST, LAST, steps + 1))
        solver = solvers.on(process, levels, sampler=sampler, **settings)
        x = walk(solver, denoise, levels.alpha[0] * starts)
        found.append(np.abs(x / levels.alpha[-1] - ends).max())
    return np.array(found)


def order(found: np.ndarray) -> float:
    """The slope of the errors in the number of steps, by least squares of logarithms."""
    return float(-np.polyfit(np.log(STEPS), np.log(found), 1)[0])


def main() -> None:
    print("| solver | " + " | ".join(f"{n} steps" for n in STEPS) + " | order | theory |")
    print("|---" * (len(STEPS) + 3) + "|")
    for name, (_, theory) in ORDERS.items():
        found = errors(name)
        columns = " | ".join(f"{e:.1e}" for e in found)
        print(f"| {name} | {columns} | {order(found):.2f} | {theory} |", flush=True)


if __name__ == "__main__":
    main()
