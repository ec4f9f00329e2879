"""Charts of the reports: matplotlib figures as inline SVG that follow the page's colours and name values on hover."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

PIXEL = 0.72  # points; figures have 100 pixels to the inch
SIZE = (460, 260)  # of a figure, pixels
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 12, 38  # margins around the plot, pixels
STEPS = (1, 2, 2.5, 5, 10)  # between ticks, times a power of ten
INK, FAINT, EDGE = "#1b2130", "#667085", "#e3e6ec"
ACCENT, GOOD, BAD, OTHER = "#2f6fed", "#12a065", "#c8372d", "#a3acbb"
VARIABLES = {  # colour -> variable of the style sheet, which has another value in dark mode
    INK: "ink", FAINT: "faint", EDGE: "edge", ACCENT: "accent", GOOD: "good", BAD: "bad", OTHER: "other"
}  # fmt: skip
STYLES = {  # of lines; the style sheet has the same names for keys
    "mean": {"color": ACCENT, "linewidth": 2.2 * PIXEL},
    "second": {"color": GOOD, "linewidth": 2.2 * PIXEL},
    "floor": {"color": FAINT, "linewidth": 1.5 * PIXEL, "dashes": (3.3, 2.7)},
    "success": {"color": GOOD, "linewidth": PIXEL, "alpha": 0.55},
    "failure": {"color": OTHER, "linewidth": PIXEL, "alpha": 0.6},
    **{
        f"c{index}": {"color": colour, "linewidth": 2 * PIXEL}
        for index, colour in enumerate((ACCENT, GOOD, BAD, "#8b5cf6", "#d97706", FAINT))
    },
}


@dataclass(frozen=True)
class Line:
    """One curve: points (x, y), its entry of STYLES, and the text shown on hover."""

    points: Sequence[tuple[float, float]]
    style: str = "mean"
    title: str = ""


def number(value: float) -> str:
    """A tick's label: 0.25, 300, 10k, 3e-5."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.4g}".replace("e-0", "e-")


def _axes(
    size: tuple[int, int], x_range: tuple[float, float], y_range: tuple[float, float], x_label: str, y_label: str
) -> Axes:
    """Axes in the report's style, alone in a figure of so many pixels."""
    width, height = size
    figure = Figure((width / 100, height / 100), dpi=100, facecolor="none")
    plot = (LEFT / width, BOTTOM / height, (width - LEFT - RIGHT) / width, (height - TOP - BOTTOM) / height)
    axes = figure.add_axes(plot, xlim=_spread(x_range), ylim=_spread(y_range), facecolor="none")
    axes.set_xlabel(x_label, color=FAINT, size=11 * PIXEL, labelpad=3)
    axes.set_ylabel(y_label, color=FAINT, size=11 * PIXEL, labelpad=2)
    axes.tick_params(left=False, bottom=False, labelcolor=FAINT, labelsize=11 * PIXEL, pad=4)
    axes.grid(axis="y", color=EDGE, linewidth=PIXEL)
    axes.set_axisbelow(True)
    axes.spines[["left", "top", "right"]].set_visible(False)
    axes.spines["bottom"].set(color=FAINT, linewidth=PIXEL)
    for axis, count in ((axes.xaxis, 6), (axes.yaxis, 4)):
        axis.set_major_locator(MaxNLocator(count, steps=STEPS))
        axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    return axes


def _inline(axes: Axes, description: str) -> str:
    """The axes' figure as an SVG element that takes font and colours from the page."""
    body = svg(axes.figure)
    box = re.search(r'viewBox="([^"]*)"', body)[1]
    head = f'<svg viewBox="{box}" role="img" aria-label="{escape(description)}">'
    body = head + body[body.index(">", body.index("<svg")) + 1 :]
    body = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"font-family: [^;\"]*; ?", "", re.sub(r'<g id="[^"]*">', "<g>", body))
    return re.sub(r"#[0-9a-f]{6}", lambda at: f"var(--{VARIABLES[at[0]]})" if at[0] in VARIABLES else at[0], body)


def name_on_hover(artist: Artist, title: str) -> None:
    """Show `title` when a viewer of the SVG points at the artist."""
    artist.set_gid(f"title:{title}")


def svg(figure: Figure) -> str:
    """A figure as an SVG file with words as text, the same bytes every time."""
    text = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "chart"}):
        figure.savefig(text, format="svg", metadata=nothing)
    return re.sub(r'<g id="title:([^"]*)">', r"<g><title>\1</title>", text.getvalue())


def line_chart(
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    size: tuple[int, int] = SIZE,
    y_range: tuple[float, float] | None = None,
) -> str:
    """Draw curves over a common axis; points that are not finite are left out."""
    kept = [Line([p for p in line.points if math.isfinite(p[1])], line.style, line.title) for line in lines]
    xs = [x for line in kept for x, _ in line.points] or [0.0]
    ys = [y for line in kept for _, y in line.points] or [0.0]
    axes = _axes(size, (min(xs), max(xs)), y_range or (min(ys), max(ys)), x_label, y_label)
    for line in kept:
        drawn = axes.plot(*zip(*line.points), clip_on=False, **STYLES[line.style]) if line.points else []
        for artist in drawn:
            name_on_hover(artist, line.title)
    return _inline(axes, f"{y_label} against {x_label}, {len(lines)} curves")


def histogram(values: Sequence[float], x_label: str, bins: int = 20, marker: tuple[float, str] | None = None) -> str:
    """Draw how often values fall in equal bins of [0, 1]; values outside count in the outer ones. `marker` is a
    labelled line."""
    counts, edges = np.histogram(np.clip(values, 0, 1), bins=bins, range=(0, 1))
    axes = _axes(SIZE, (0, 1), (0, max(int(counts.max()), 1) * 1.08), x_label, "episodes")
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    bars = axes.bar(edges[:-1], counts, np.diff(edges) * 0.9, align="edge", color=ACCENT)
    for bar, count, low, high in zip(bars, counts, edges[:-1], edges[1:], strict=True):
        name_on_hover(bar, f"{low:.2f} to {high:.2f}: {count}")
    if marker:
        at, label = marker
        side, shift = ("right", -4) if at > 0.5 else ("left", 4)
        axes.axvline(at, color=INK, linewidth=1.5 * PIXEL, linestyle=(0, (2.7, 2)))
        axes.annotate(
            label, (at, 1), (shift, -2), xycoords=("data", "axes fraction"), textcoords="offset points",
            ha=side, va="top", color=INK, size=11 * PIXEL, weight="bold",
        )  # fmt: skip
    return _inline(axes, f"histogram of {len(values)} values of {x_label}")


def thin(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most `most` points: means of equal groups of neighbours."""
    if len(points) <= most:
        return list(points)
    groups = np.array_split(np.asarray(points, dtype=np.float64), most)
    return [tuple(map(float, group.mean(axis=0))) for group in groups]


def _spread(bounds: tuple[float, float]) -> tuple[float, float]:
    """Bounds that differ, so that a constant can be drawn."""
    low, high = bounds
    if high > low:
        return low, high
    margin = abs(low) * 0.1 or 0.5
    return low - margin, high + margin
