"""Plots of measurements: bars with intervals, curves, and tables of shares."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PIXELS_PER_INCH = 110


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A number with its 95 % interval; the ends are infinite where one sample gave no spread."""

    name: str
    middle: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Point:
    """A point of a curve with the lowest and the highest of its repetitions."""

    x: float
    middle: float
    low: float
    high: float


def draw_bars(bars: Sequence[Bar], axis: str, path: Path) -> None:
    """Horizontal bars with their intervals; those without an end go beyond the plot."""
    from matplotlib.figure import Figure as Canvas  # noqa: PLC0415  (only the page needs it)

    canvas = Canvas(figsize=(7, 0.8 + 0.38 * len(bars)), dpi=PIXELS_PER_INCH, layout="constrained")
    plot = canvas.add_subplot()
    places = range(len(bars), 0, -1)
    ends = [end for bar in bars for end in (bar.middle, bar.low, bar.high) if math.isfinite(end)]
    left, right = 1.05 * min([0.0, *ends]), 1.05 * max([1e-3, *ends])
    beyond = 2 * (right - left)  # an infinite line would not be drawn at all
    reach = [
        [min(bar.middle - bar.low, beyond) for bar in bars],
        [min(bar.high - bar.middle, beyond) for bar in bars],
    ]
    plot.barh(places, [bar.middle for bar in bars], xerr=reach, color="#7a9cc6", ecolor="#333333", capsize=3)
    plot.set_yticks(list(places), [bar.name for bar in bars])
    plot.set_xlim(left, right)
    plot.set_xlabel(axis)
    plot.spines[["top", "right"]].set_visible(False)
    canvas.savefig(path)


def draw_curves(curves: Mapping[str, Sequence[Point]], axes: tuple[str, str], path: Path) -> None:
    """Curves by name, each with the band of its repetitions; `axes` are the names of x and y."""
    from matplotlib.figure import Figure as Canvas  # noqa: PLC0415  (only the page needs it)

    canvas = Canvas(figsize=(7, 4), dpi=PIXELS_PER_INCH, layout="constrained")
    plot = canvas.add_subplot()
    for number, (name, points) in enumerate(curves.items()):
        xs = [point.x for point in points]
        # colours repeat after ten
        style = "-" if number < 10 else "--"
        (line,) = plot.plot(
            xs, [point.middle for point in points], style, marker="o", markersize=3, label=name
        )
        lows, highs = [point.low for point in points], [point.high for point in points]
        plot.fill_between(xs, lows, highs, color=line.get_color(), alpha=0.15)
    plot.set_xlabel(axes[0])
    plot.set_ylabel(axes[1])
    plot.spines[["top", "right"]].set_visible(False)
    plot.legend(fontsize=8, frameon=False)
    canvas.savefig(path)


def draw_shares(rows: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """A table of shares, darker = more: a row for each name, a column for each part."""
    from matplotlib.figure import Figure as Canvas  # noqa: PLC0415  (only the page needs it)

    columns = list(next(iter(rows.values())))
    canvas = Canvas(figsize=(7, 0.9 + 0.38 * len(rows)), dpi=PIXELS_PER_INCH, layout="constrained")
    plot = canvas.add_subplot()
    values = [[row[column] for column in columns] for row in rows.values()]
    plot.imshow(values, cmap="Blues", vmin=0, aspect="auto")
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            dark = value > 0.6 * max(map(max, values))
            plot.text(
                x, y, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if dark else "black"
            )
    plot.set_xticks(range(len(columns)), columns, fontsize=8)
    plot.set_yticks(range(len(rows)), list(rows))
    canvas.savefig(path)
