"""Small charts as inline SVG: they need no script, follow the page's colours, and name values when hovered over."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

LEFT, RIGHT, TOP, BOTTOM = 44, 14, 12, 38  # room around the plot, px


@dataclass(frozen=True)
class Line:
    """One curve: points (x, y), the CSS class that colours it, and what to show when hovered over."""

    points: Sequence[tuple[float, float]]
    style: str = "line"
    title: str = ""


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers within [low, high]."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((factor * power for factor in (1, 2, 2.5, 5, 10)), key=lambda candidate: abs(candidate - rough))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def number(value: float) -> str:
    """A tick's label: 0.25, 300, 10k, 3e-5."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.4g}".replace("e-0", "e-")


class _Plot:
    """Maps data to pixels and draws the frame."""

    def __init__(self, size: tuple[int, int], x_range: tuple[float, float], y_range: tuple[float, float]) -> None:
        self.width, self.height = size
        self.x_range, self.y_range = _spread(x_range), _spread(y_range)
        self.parts: list[str] = []

    def x(self, value: float) -> float:
        low, high = self.x_range
        return LEFT + (value - low) / (high - low) * (self.width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.height - BOTTOM - (value - low) / (high - low) * (self.height - TOP - BOTTOM)

    def axes(self, x_label: str, y_label: str, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> None:
        right, bottom = self.width - RIGHT, self.height - BOTTOM
        for value in y_ticks:
            y = self.y(value)
            self.parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            self.parts.append(f'<text class="tick end" x="{LEFT - 6}" y="{y + 4:.1f}">{number(value)}</text>')
        self.parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
        for value in x_ticks:
            x = self.x(value)
            self.parts.append(f'<text class="tick mid" x="{x:.1f}" y="{bottom + 15}">{number(value)}</text>')
        middle = (LEFT + right) / 2
        self.parts.append(f'<text class="label mid" x="{middle}" y="{self.height - 6}">{escape(x_label)}</text>')
        y_middle = (TOP + bottom) / 2
        self.parts.append(
            f'<text class="label mid" transform="translate(11 {y_middle}) rotate(-90)">{escape(y_label)}</text>'
        )

    def svg(self, description: str) -> str:
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{escape(description)}">'
            f"{''.join(self.parts)}</svg>"
        )


def line_chart(
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    size: tuple[int, int] = (460, 260),
    y_range: tuple[float, float] | None = None,
) -> str:
    """Draw curves over a common axis; points that are not finite are left out."""
    kept = [Line([p for p in line.points if math.isfinite(p[1])], line.style, line.title) for line in lines]
    xs = [x for line in kept for x, _ in line.points] or [0.0]
    ys = [y for line in kept for _, y in line.points] or [0.0]
    plot = _Plot(size, (min(xs), max(xs)), y_range or (min(ys), max(ys)))
    plot.axes(x_label, y_label, ticks(*plot.x_range), ticks(*plot.y_range, count=4))
    for line in kept:
        points = " ".join(f"{plot.x(x):.1f},{plot.y(y):.1f}" for x, y in line.points)
        title = f"<title>{escape(line.title)}</title>"
        plot.parts.append(f'<polyline class="{line.style}" points="{points}">{title}</polyline>')
    return plot.svg(f"{y_label} against {x_label}, {len(lines)} curves")


def histogram(
    values: Sequence[float],
    x_label: str,
    y_label: str = "episodes",
    bins: int = 20,
    value_range: tuple[float, float] = (0.0, 1.0),
    size: tuple[int, int] = (460, 260),
    marker: tuple[float, str] | None = None,
) -> str:
    """Draw how often values fall in equal bins; `marker` is a labelled vertical line."""
    counts, edges = np.histogram(np.clip(values, *value_range), bins=bins, range=value_range)
    top = max(int(counts.max()), 1)
    plot = _Plot(size, value_range, (0, top * 1.08))
    y_ticks = sorted({round(tick) for tick in ticks(0, top, 4)})
    plot.axes(x_label, y_label, ticks(*value_range), y_ticks)
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        left, right, upper = plot.x(low) + 1, plot.x(high) - 1, plot.y(count)
        plot.parts.append(
            f'<rect class="bar" x="{left:.1f}" y="{upper:.1f}" width="{right - left:.1f}" '
            f'height="{plot.y(0) - upper:.1f}" rx="1.5"><title>{low:.2f} to {high:.2f}: {count}</title></rect>'
        )
    if marker:
        x, side = plot.x(marker[0]), "end" if marker[0] > sum(value_range) / 2 else "start"
        plot.parts.append(f'<line class="marker" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{plot.y(0):.1f}"/>')
        x += -6 if side == "end" else 6
        plot.parts.append(f'<text class="label {side} note" x="{x:.1f}" y="{TOP + 9}">{escape(marker[1])}</text>')
    return plot.svg(f"histogram of {len(values)} values of {x_label}")


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
    room = abs(low) * 0.1 or 0.5
    return low - room, high + room
