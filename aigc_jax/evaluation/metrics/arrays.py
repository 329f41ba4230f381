"""What sets of features are checked for before anything is computed of them."""

import numpy as np

from aigc_jax.errors import SettingError


def check_features(features: np.ndarray, name: str, at_least: int = 1) -> np.ndarray:
    """`features` as a NumPy array [n, d] of finite numbers, n >= at_least; else ValueError."""
    features = np.asarray(features)
    if features.ndim != 2 or 0 in features.shape:
        raise SettingError(f"{name} must be [n, d] and not empty, not {list(features.shape)}")
    if len(features) < at_least:
        raise SettingError(f"{name} needs at least {at_least} samples, not {len(features)}")
    if not np.isfinite(features).all():
        raise SettingError(f"{name} holds NaN or inf: look for them where it was computed")
    return features


def check_pair(
    a: np.ndarray, b: np.ndarray, names: tuple[str, str], at_least: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of features, checked, of one dimension."""
    a, b = (check_features(x, name, at_least) for x, name in zip((a, b), names, strict=True))
    if a.shape[1] != b.shape[1]:
        raise SettingError(
            f"{names[0]} and {names[1]} must have one dimension, not {a.shape[1]} and {b.shape[1]}"
        )
    return a, b
