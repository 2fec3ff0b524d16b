"""Rows of measurements as text tables and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import write_whole
from .rates import Rate
from .subject import Row

NAME_WIDTH = 42


def header(title: str) -> str:
    """Title of a suite's table."""
    return f"\n{title}"


def line(row: Row) -> str:
    """One line of a table: the rate "exact" with its interval, other rates in per cent, then the values."""
    parts = [f"{row.name:{NAME_WIDTH}}"]
    if "exact" in row.rates:
        parts.append(f"exact {with_interval(row.rates['exact'])};")
    parts += [f"{name} {100 * rate.share:.1f}" for name, rate in row.rates.items() if name != "exact"]
    parts += [f"{name} {value:.2f}" for name, value in row.values.items()]
    return " ".join(parts).rstrip()


def with_interval(rate: Rate) -> str:
    """For example "97.2 % (95.4-98.3) of 500"."""
    low, high = rate.interval()
    return f"{100 * rate.share:.1f} % ({100 * low:.1f}-{100 * high:.1f}) of {rate.total}"


def row_as_json(row: Row) -> dict[str, Any]:
    """A row as JSON; non-finite values become null."""
    rates = {
        name: {
            "right": rate.right,
            "total": rate.total,
            "share": round(rate.share, 4),
            "interval_95": [round(bound, 4) for bound in rate.interval()],
        }
        for name, rate in row.rates.items()
    }
    values = {name: round(value, 4) if math.isfinite(value) else None for name, value in row.values.items()}
    return {"name": row.name.strip(), "rates": rates, "values": values}


def as_report(conditions: dict[str, Any], suites: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """The report: the conditions of the measurement and the rows of each suite."""
    return {
        **conditions,
        "suites": {name: [row_as_json(row) for row in rows] for name, rows in suites.items()},
    }


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Writes a report as JSON, whole or not at all. Raises ConfigError if it cannot be written."""
    write_whole(path, json.dumps(report, indent=1).encode())
