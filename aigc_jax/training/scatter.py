"""Samples in the plane as a picture: a scatter plot over real points."""

import numpy as np
from PIL import Image

SIDE, DOTS_PER_INCH = 4.8, 100  # inches


def scatter(samples: np.ndarray, real: np.ndarray) -> Image.Image:
    """Samples [n, 1, 1, 2] drawn over paler real points [m, 1, 1, 2], 480 pixels square.

    The plane is shown as far as real points reach, and a little further; the title says how many
    samples lie beyond, or are not finite.
    """
    from matplotlib import style  # a quarter of a second, for this data alone
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    samples, real = (np.asarray(x, np.float64).reshape(-1, 2) for x in (samples, real))
    centre, reach = (real.max(0) + real.min(0)) / 2, np.ptp(real, axis=0).max() * 0.65
    inside = (np.abs(samples - centre[None]) <= reach).all(1)  # NaN is not
    with style.context("default"):
        figure = Figure(figsize=(SIDE, SIDE), dpi=DOTS_PER_INCH, layout="constrained")
        axes = figure.add_subplot(aspect="equal")
        axes.scatter(*real.T, s=9, color="#b8c4d0", linewidths=0)
        axes.scatter(*samples[inside].T, s=3, color="#c0392b", linewidths=0)
        axes.set_xlim(centre[0] - reach, centre[0] + reach)
        axes.set_ylim(centre[1] - reach, centre[1] + reach)
        beyond = len(samples) - inside.sum()
        axes.set_title(f"{len(samples):,} samples" + f", {beyond:,} beyond" * bool(beyond), size=9)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
