"""Geometry of line charts; the page's template draws them as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

WIDTH, HEIGHT = 440, 250
RIGHT, TOP, BOTTOM = 14, 12, 42
BESIDE, CHARACTER = 30, 9.5  # left of the plot: the axis' name, and a character of its numbers on a small screen
FLAT = 1e-3  # of the values: a smaller range is drawn as no wider than this, so that rounding is not a slope
MOST_POINTS = 400
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """A line in SVG coordinates; `style` is its CSS class."""

    style: str
    label: str
    points: list[tuple[float, float]]

    @property
    def path(self) -> str:
        """Its `points` attribute."""
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in self.points)


@dataclass(frozen=True)
class Chart:
    """Everything the template needs to draw one chart."""

    title: str
    summary: str
    x_label: str
    y_label: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    width: int = field(default=WIDTH)
    height: int = field(default=HEIGHT)
    left: float = field(default=BESIDE)
    right: float = field(default=WIDTH - RIGHT)
    top: int = field(default=TOP)
    bottom: int = field(default=HEIGHT - BOTTOM)


def draw(
    title: str,
    summary: str,
    x_label: str,
    y_label: str,
    series: Mapping[tuple[str, str], Points],
    names: Sequence[str] = (),
) -> Chart | None:
    """Lay out a chart, or None when no series has a finite point.

    Args:
        title: heading of the chart.
        summary: one sentence for who can't see it.
        x_label: what runs along the horizontal axis.
        y_label: what runs along the vertical axis.
        series: points `(x, y)` by (CSS class, label).
        names: what stands at x = 0, 1, 2, ... on an axis without a scale.
    """
    kept = {key: [point for point in points if all(map(math.isfinite, point))] for key, points in series.items()}
    everything = [point for points in kept.values() for point in points]
    if not everything:
        return None
    x_ticks = ticks(min(x for x, _ in everything), max(x for x, _ in everything))
    x_labels = [f"{tick:,g}" for tick in x_ticks]
    if names:
        x_ticks, x_labels = [float(number) for number in range(len(names))], list(names)
    y_ticks = ticks(*widened(min(y for _, y in everything), max(y for _, y in everything)))
    decimals = max(0, -math.floor(math.log10(y_ticks[1] - y_ticks[0]) + 1e-9))
    y_labels = [f"{tick:,.{decimals}f}".replace("-", "\N{MINUS SIGN}") for tick in y_ticks]
    left = BESIDE + CHARACTER * max(map(len, y_labels))
    right = WIDTH - max(RIGHT, CHARACTER / 2 * len(x_labels[-1]))

    def place(value: float, marks: list[float], start: float, end: float) -> float:
        span = marks[-1] - marks[0]
        return start + ((value - marks[0]) / span if span else 0.5) * (end - start)

    def place_x(x: float) -> float:
        return place(x, x_ticks, left, right)

    def place_y(y: float) -> float:
        return place(y, y_ticks, HEIGHT - BOTTOM, TOP)

    lines = [
        Line(style, label, [(place_x(x), place_y(y)) for x, y in points])
        for (style, label), points in kept.items()
        if points
    ]
    return Chart(
        title,
        summary,
        x_label,
        y_label,
        lines,
        [(round(place_x(tick), 1), label) for tick, label in zip(x_ticks, x_labels, strict=True)],
        [(round(place_y(tick), 1), label) for tick, label in zip(y_ticks, y_labels, strict=True)],
        left=left,
        right=right,
    )


def widened(low: float, high: float) -> tuple[float, float]:
    """A range that is at least `FLAT` of its values wide, around the same middle."""
    missing = FLAT * max(abs(low), abs(high)) - (high - low)
    return (low - missing / 2, high + missing / 2) if high > low and missing > 0 else (low, high)


def ticks(low: float, high: float) -> list[float]:
    """Round numbers, evenly spaced, that enclose a range: four to nine."""
    if high == low:
        low, high = low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5)
    rough = (high - low) / 3
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (5, 2, 1) if power * factor <= rough * (1 + 1e-9))
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(number * step, 12) for number in range(first, last + 1)]


def thinned(points: Points) -> tuple[list[tuple[float, float]], int]:
    """Means of equally many consecutive points, so that at most `MOST_POINTS` remain, and how many each stands for."""
    size = max(1, math.ceil(len(points) / MOST_POINTS))
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups], size


def smoothed(points: Points, share: float = 0.1) -> list[tuple[float, float]]:
    """The mean around each point, over `share` of all points (fewer at both ends)."""
    reach = max(1, round(len(points) * share / 2))
    around = [points[max(0, i - reach) : i + reach + 1] for i in range(len(points))]
    return [(x, sum(y for _, y in near) / len(near)) for (x, _), near in zip(points, around, strict=True)]
