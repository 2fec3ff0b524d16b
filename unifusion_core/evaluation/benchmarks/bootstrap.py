"""Percentile bootstrap over prompts: intervals of statistics that are not rates.

A resample is a weight per prompt: how often it was drawn. Statistics are functions of weights (resamples x prompts), so that many
resamples are one product of matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

RESAMPLES = 2000
AT_ONCE = 100
# per cent
BOUNDS = (2.5, 97.5)

Numbers = np.ndarray
# weights, resamples x prompts -> one value per resample
Statistic = Callable[[Numbers], Numbers]


def mean_of(values: Sequence[float] | Numbers) -> Statistic:
    """The mean of one value per prompt."""
    return ratio_of(values, np.ones(len(values)))


def ratio_of(sums: Sequence[float] | Numbers, counts: Sequence[float] | Numbers) -> Statistic:
    """The mean of several values per prompt, from their sums and numbers. With a column per group (prompts x groups) it is the
    mean of the groups' means; a group that a resample has nothing of is left out."""
    top, bottom = (np.asarray(each, dtype=float).reshape(len(sums), -1) for each in (sums, counts))

    def statistic(weights: Numbers) -> Numbers:
        with np.errstate(invalid="ignore", divide="ignore"):
            means = (weights @ top) / (weights @ bottom)
        known = ~np.isnan(means)
        return np.where(known, means, 0).sum(1) / np.maximum(1, known.sum(1))

    return statistic


def value(statistic: Statistic, count: int) -> float:
    """The statistic of all prompts."""
    return float(statistic(np.ones((1, count)))[0])


def intervals(statistics: Mapping[str, Statistic], count: int) -> dict[str, tuple[float, float]]:
    """95 % intervals of statistics over `count` prompts, all from the same resamples. Repeatable."""
    rng = np.random.default_rng(0)
    found: dict[str, list[Numbers]] = {name: [] for name in statistics}
    for _ in range(0, RESAMPLES, AT_ONCE):
        drawn = (np.bincount(rng.integers(count, size=count), minlength=count) for _ in range(AT_ONCE))
        weights = np.stack(list(drawn)).astype(float)
        for name, statistic in statistics.items():
            found[name].append(statistic(weights))
    bounds = {name: np.percentile(np.concatenate(parts), BOUNDS) for name, parts in found.items()}
    return {name: (float(low), float(high)) for name, (low, high) in bounds.items()}


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of a mean."""
    return intervals({"mean": mean_of(values)}, len(values))["mean"]
