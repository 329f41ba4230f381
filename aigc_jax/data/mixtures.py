"""Mixtures of Gaussians in the plane, `ring` and `grid`, whose modes a model finds or misses.

Points are float32 [N, 2], in units of their own: nothing scales them to [-1, 1]. The definitions
are PacGAN's (Lin et al. 2018, arXiv:1712.04086, section 4.1).
"""

import numpy as np

SHAPE = (2,)  # of one point
SIZES = {"train": 100_000, "test": 10_000}


def ring() -> tuple[np.ndarray, float]:
    """Centres [8, 2] on the unit circle and the std of each mode, 0.01."""
    angle = 2 * np.pi * np.arange(8) / 8  # linspace to 2 pi would name the first mode twice
    return np.stack([np.cos(angle), np.sin(angle)], axis=1), 0.01


def grid() -> tuple[np.ndarray, float]:
    """Centres [25, 2] at {-4, -2, 0, 2, 4}^2 and the std of each mode, 0.05."""
    side = np.arange(-4.0, 5.0, 2.0)
    return np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1).reshape(25, 2), 0.05


MIXTURES = {"ring": ring, "grid": grid}


def arrays(name: str, split: str) -> np.ndarray:
    """A split's points, float32 [N, 2]: every mode equally likely, the same each time."""
    centres, std = MIXTURES[name]()
    rng = np.random.default_rng(list(SIZES).index(split))
    modes = rng.integers(len(centres), size=SIZES[split])
    points = centres[modes] + std * rng.standard_normal((SIZES[split], 2))
    return points.astype(np.float32)
