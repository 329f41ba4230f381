"""Curves as SVG that reads on a white page and on a black one."""

import io
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Points = Sequence[tuple[float, float, float]]

COLOURS = (
    "#3d85c6", "#d9822b", "#4fa35a", "#b565c4", "#c95f5f", "#8f8f3c",
    "#2aa5a0", "#a0705a", "#e07aa8", "#8a8f98", "#6a6ae0", "#b0a020",
)  # fmt: skip
INK = "#010203"  # stands for the page's text colour, whichever that is, until the SVG is text
STEPS = (1, 2, 2.5, 5, 10)  # between the marks of an axis
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


def plot(title: str, curves: list[Curve], bands: bool = False) -> dict[str, Any]:
    """An SVG, and its title and legend, which are the page's so that it escapes and wraps them.

    bands: errors as a band around a curve, not as bars.
    """
    shown = legend(curves)
    broken = any(math.isnan(value) for curve in curves for _, value, _ in curve.points)

    def draw(axes: Any) -> None:
        from matplotlib import ticker

        for curve, colour in zip(curves, itertools.cycle(COLOURS)):
            points = np.array(sorted(curve.points, key=lambda point: point[0]), float)
            if len(points):
                _draw(axes, points, colour, bands)
        _scale(axes, [v for c in curves for _, v, _ in c.points])
        axes.xaxis.set_major_locator(ticker.MaxNLocator(5, steps=STEPS, integer=True))
        axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))

    svg = _svg(repr((title, shown)), draw)
    return {"title": title, "svg": svg, "legend": shown, "broken": broken}


def legend(curves: Sequence[Curve]) -> list[tuple[str, str]]:
    """(label, colour) of each."""
    return [(c.label, COLOURS[i % len(COLOURS)]) for i, c in enumerate(curves)]


def bars(title: str, values: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """{name: (value, error)} as horizontal bars, in order from the top; as `plot` gives it."""
    names = list(values)

    def draw(axes: Any) -> None:
        for i, (value, error) in enumerate(values.values()):
            if math.isfinite(value):
                bar = {"color": COLOURS[i % len(COLOURS)], "height": 0.7, "ecolor": INK}
                axes.barh(i, value, xerr=error or None, error_kw={"elinewidth": 0.8}, **bar)
        axes.set_axisbelow(True)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)

    height = 0.6 + 0.28 * len(names)
    return {
        "title": title,
        "svg": _svg(repr((title, names)), draw, height=height),
        "legend": [],
        "broken": any(not math.isfinite(value) for value, _ in values.values()),
    }


def _scale(axes: Any, values: Sequence[float]) -> None:
    """A logarithmic axis where values differ more than a hundredfold."""
    from matplotlib import ticker

    finite = np.array([value for value in values if math.isfinite(value)])
    if finite.size and finite.min() > 0 and finite.max() > 100 * finite.min():
        axes.set_yscale("log")
    else:
        axes.yaxis.set_major_locator(ticker.MaxNLocator(5, steps=STEPS))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}")


def _svg(salt: str, draw: Callable[[Any], None], height: float = 2.4) -> str:
    """What `draw` draws on axes; `salt` makes the ids within it the page's only ones."""
    from matplotlib import style
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
        figure = Figure(figsize=(4.2, height), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.grid(True)
        text = io.StringIO()
        about = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=about)
    svg = text.getvalue()
    svg = re.sub(r' id="[a-z0-9.]+(_\d+)+"', "", svg[svg.index("<svg") :])  # the same in every plot
    return svg.replace(INK, "currentColor")


def _draw(axes: Any, points: np.ndarray, colour: str, bands: bool = False) -> None:
    """A curve, with crosses along the bottom where it is not finite."""
    lost, points = points[np.isnan(points[:, 1]), 0], points[~np.isnan(points[:, 1])]
    step, value, error = points[thin(points[:, 1])].T
    marker = "o" if len(step) < 50 else None  # a lone point draws no line
    axes.plot(step, value, color=colour, linewidth=1.2, marker=marker, markersize=3)
    if bands:
        axes.fill_between(step, value - error, value + error, color=colour, alpha=0.15, linewidth=0)
    elif error.any():
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
