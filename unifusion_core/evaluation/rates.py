"""Rates with confidence intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

# standard normal quantile of a two-sided 95 % interval
Z_95 = 1.959964


@dataclass(frozen=True, slots=True)
class Rate:
    """`right` of `total` trials."""

    right: int
    total: int

    @property
    def share(self) -> float:
        """`right` / `total`, 0..1; NaN for a total of 0."""
        return self.right / self.total if self.total else math.nan

    def interval(self, z: float = Z_95) -> tuple[float, float]:
        """Wilson score interval (low, high). Unlike the normal approximation, it stays in 0..1 and is valid at 0 % and 100 %."""
        if not self.total:
            return 0.0, 1.0
        n, p = self.total, self.share
        middle = p + z * z / (2 * n)
        reach = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        low, high = ((middle + sign * reach) / (1 + z * z / n) for sign in (-1, 1))
        return max(0.0, low), min(1.0, high)
