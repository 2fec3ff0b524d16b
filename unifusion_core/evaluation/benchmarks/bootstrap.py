"""Percentile bootstrap over prompts: intervals of statistics that are not rates."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

RESAMPLES = 2000
# per cent
BOUNDS = (2.5, 97.5)

Numbers = np.ndarray
Statistic = Callable[[Numbers], float]


def interval(statistic: Statistic, count: int) -> tuple[float, float]:
    """95 % interval of a statistic over `count` prompts: `statistic` gets the indices of a resample. Repeatable."""
    rng = np.random.default_rng(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = [statistic(rng.integers(count, size=count)) for _ in range(RESAMPLES)]
    low, high = np.nanpercentile(values, BOUNDS)
    return float(low), float(high)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of a mean."""
    numbers = np.asarray(values, dtype=float)
    return interval(lambda chosen: float(numbers[chosen].mean()), len(numbers))
