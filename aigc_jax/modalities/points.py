"""Points in the plane: float32 [N, 2] in units of their own, the same stored and in the model."""

from typing import Any

import jax
import numpy as np
from PIL import Image

from aigc_jax.checks import arguments
from aigc_jax.errors import SettingError
from aigc_jax.modalities import augment as images
from aigc_jax.modalities.base import Modality

SIDE, DOTS_PER_INCH = 4.8, 100  # inches


def unchanged(x: Any) -> Any:
    """Points are not scaled, moved or limited anywhere."""
    return x


def to_stored(points: np.ndarray) -> np.ndarray:
    """Points [n, 2] as they are, float32 on the host."""
    return np.asarray(points, np.float32)


def augment(key: jax.Array, x: jax.Array, **settings: Any) -> jax.Array:
    """Points [B, 2] as they are; ValueError where a setting asks for more than that."""
    del key
    for name, value in arguments("augment", images.augment, settings, given=("key", "x")).items():
        if value:
            raise SettingError(
                "points of the plane cannot be augmented: set every augment.* to 0 or False, not "
                f"config.augment.{name} to {value}"
            )
    return x


def scatter(samples: np.ndarray, real: np.ndarray | None = None) -> Image.Image:
    """Samples [n, 2] drawn over paler real points [m, 2], 480 pixels square.

    The plane is shown as far as real points reach (without them: as far as finite samples reach),
    and a little further; the title says how many samples lie beyond, or are not finite.
    """
    from matplotlib import style  # a quarter of a second, for this data alone
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    samples = np.asarray(samples, np.float64)
    shown = samples[np.isfinite(samples).all(1)] if real is None else np.asarray(real, np.float64)
    if not len(shown):
        shown = np.array([[-1.0, -1.0], [1.0, 1.0]])
    centre = (shown.max(0) + shown.min(0)) / 2
    reach = np.ptp(shown, axis=0).max() * 0.65 or 1.0
    inside = (np.abs(samples - centre[None]) <= reach).all(1)  # NaN is not
    with style.context("default"):
        figure = Figure(figsize=(SIDE, SIDE), dpi=DOTS_PER_INCH, layout="constrained")
        axes = figure.add_subplot(aspect="equal")
        if real is not None:
            axes.scatter(*shown.T, s=9, color="#b8c4d0", linewidths=0)
        axes.scatter(*samples[inside].T, s=3, color="#c0392b", linewidths=0)
        axes.set_xlim(centre[0] - reach, centre[0] + reach)
        axes.set_ylim(centre[1] - reach, centre[1] + reach)
        beyond = len(samples) - inside.sum()
        axes.set_title(f"{len(samples):,} samples" + f", {beyond:,} beyond" * bool(beyond), size=9)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def picture(
    samples: np.ndarray, *, real: np.ndarray | None = None, columns: int = 0
) -> Image.Image:
    """A `scatter` plot of the samples over real ones; it has no columns."""
    del columns
    return scatter(samples, real)


POINTS = Modality(
    kind="points",
    bounded=False,
    judged_in_features=False,
    to_model=unchanged,
    to_stored=to_stored,
    clip=unchanged,
    augment=augment,
    picture=picture,
    save=None,
)
