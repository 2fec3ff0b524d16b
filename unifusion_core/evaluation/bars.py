"""Bar plots of numbers with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
