"""Curves as SVG that reads on a white page and on a black one."""

import io
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Points = Sequence[tuple[float, float, float]]

COLOURS = ("#3d85c6", "#d9822b", "#4fa35a", "#b565c4", "#c95f5f", "#8f8f3c")
INK = "#010203"  # stands for the page's text colour, whichever that is, until the SVG is text
MOST_POINTS, MOST_CROSSES = 1000, 100  # drawn of a curve: values, and values that are not finite


class Curve(NamedTuple):
    """Points (step, value, error); a value that is not finite is NaN, no error is 0."""

    label: str
    points: Points


def groups(curves: Mapping[str, Points]) -> list[tuple[str, list[Curve]]]:
    """One plot for `net/loss` and `test/loss`, and so on; losses first, times last."""
    grouped: dict[str, list[Curve]] = {}
    for name in sorted(curves):
        grouped.setdefault(name.partition("/")[2] or name, []).append(Curve(name, curves[name]))

    def rank(item: tuple[str, list[Curve]]) -> tuple[bool, bool, str]:
        title, group = item
        return group[0].label.startswith("time/"), "loss" not in title, title

    return sorted(grouped.items(), key=rank)


def plot(title: str, curves: list[Curve]) -> dict[str, Any]:
    """An SVG, and its title and legend, which are the page's so that it escapes and wraps them."""
    legend = [(c.label, COLOURS[i % len(COLOURS)]) for i, c in enumerate(curves)]
    broken = any(math.isnan(value) for curve in curves for _, value, _ in curve.points)
    return {
        "title": title,
        "svg": _svg(repr((title, legend)), curves),
        "legend": legend,
        "broken": broken,
    }


def _svg(salt: str, curves: list[Curve]) -> str:
    from matplotlib import style, ticker
    from matplotlib.figure import Figure

    colours = {f"{name}.color": INK for name in ("xtick", "ytick", "grid")}
    settings = colours | {
        "axes.edgecolor": INK,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib; the page's own replaces it
        "font.size": 8,
        "grid.alpha": 0.15,
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": salt,  # ids that do not change, and differ between plots
    }
    with style.context(["default", settings]):
        figure = Figure(figsize=(4.2, 2.4), layout="constrained")
        axes, steps = figure.add_subplot(), (1, 2, 2.5, 5, 10)
        for curve, colour in zip(curves, itertools.cycle(COLOURS)):
            _draw(axes, np.array(sorted(curve.points, key=lambda point: point[0]), float), colour)
        finite = np.array([v for c in curves for _, v, _ in c.points if math.isfinite(v)])
        if finite.size and finite.min() > 0 and finite.max() > 100 * finite.min():
            axes.set_yscale("log")
        else:
            axes.yaxis.set_major_locator(ticker.MaxNLocator(5, steps=steps))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
        axes.xaxis.set_major_locator(ticker.MaxNLocator(5, steps=steps, integer=True))
        axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
        axes.grid(True)
        text = io.StringIO()
        about = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=about)
    svg = text.getvalue()
    svg = re.sub(r' id="[a-z0-9.]+(_\d+)+"', "", svg[svg.index("<svg") :])  # the same in every plot
    return svg.replace(INK, "currentColor")


def _draw(axes: Any, points: np.ndarray, colour: str) -> None:
    """A curve, with crosses along the bottom where it is not finite."""
    lost, points = points[np.isnan(points[:, 1]), 0], points[~np.isnan(points[:, 1])]
    step, value, error = points[thin(points[:, 1])].T
    marker = "o" if len(step) < 50 else None  # a lone point draws no line
    axes.plot(step, value, color=colour, linewidth=1.2, marker=marker, markersize=3)
    if error.any():
        axes.errorbar(step, value, error, fmt="none", ecolor=colour, elinewidth=0.8, capsize=2)
    if lost.size:
        lost = lost[:: math.ceil(lost.size / MOST_CROSSES)]
        place = {"transform": axes.get_xaxis_transform(), "clip_on": False}
        axes.plot(lost, np.full(lost.size, 0.03), "x", color=colour, markersize=5, **place)


def thin(values: np.ndarray) -> np.ndarray:
    """Indices of about MOST_POINTS values: ends, and every stretch's lowest and highest."""
    if len(values) <= MOST_POINTS:
        return np.arange(len(values))
    edges = np.linspace(0, len(values), MOST_POINTS // 2).astype(int)
    keep = {0, len(values) - 1}
    for a, b in itertools.pairwise(edges):
        keep |= {a + int(values[a:b].argmin()), a + int(values[a:b].argmax())}
    return np.array(sorted(keep))
