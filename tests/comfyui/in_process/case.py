"""A case: a measurement inside ComfyUI's process, and beside it what is demanded of the result.

    @case(at_most=PARITY)          every number that it returns is at most this
    @case(equals=...)              it returns this
    @case(check=function)          the function's assertions hold for what it returns
    @case() and @NAME.check        the same, with the function below it
    @refused("word", ...)          it raises, and the error's sentence has these words

A case without a demand fails.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from typing import Any

from torch import Tensor

Measure = Callable[[], Any]
Demand = Callable[[Any], None]

# of the largest value, in float32; rounding is near 1e-6
PARITY = 1e-4
CASES: dict[str, Case] = {}


class Case:
    """One measurement with its demand."""

    def __init__(self, name: str, measure: Measure, demand: Demand | None = None) -> None:
        """Raises ValueError for a name that another case has."""
        if name in CASES:
            raise ValueError(f"Two cases are called {name}; rename one.")
        self.measure, self.demand = measure, demand
        CASES[name] = self

    def check(self, demand: Demand) -> Demand:
        """Decorates the function whose assertions must hold for the result."""
        self.demand = demand
        return demand

    def outcome(self) -> dict[str, Any]:
        """The result and, if it is not as demanded, the failure."""
        found = None
        try:
            # as JSON gives it back, with lists for tuples
            found = json.loads(json.dumps(self.measure()))
            assert self.demand is not None, "This case demands nothing; give it a bound or a check."
            self.demand(found)
        # the other cases are measured all the same
        except Exception:
            return {"found": found, "failure": f"{traceback.format_exc()}\nThe result was {found}"}
        return {"found": found, "failure": ""}


def case(
    *, at_most: float | None = None, equals: Any = None, check: Demand | None = None
) -> Callable[[Measure], Case]:
    """Registers a measurement, see above."""

    def demand_at_most(found: Any) -> None:
        numbers = list(found.values()) if isinstance(found, dict) else [found]
        assert numbers, "nothing was measured"
        assert all(number <= at_most for number in numbers), f"at most {at_most} is demanded"

    def demand_equal(found: Any) -> None:
        assert found == equals, f"{equals} is demanded"

    demand = check
    if at_most is not None:
        demand = demand_at_most
    elif equals is not None:
        demand = demand_equal
    return lambda measure: Case(measure.__name__, measure, demand)


def refused(*words: str) -> Callable[[Measure], Case]:
    """Registers an attempt that must fail with a sentence, see above."""

    def register(attempt: Measure) -> Case:
        def demand(sentence: str) -> None:
            missing = [word for word in words if word not in sentence]
            assert not missing, f"the sentence lacks {missing}"

        return Case(attempt.__name__, lambda: _sentence_of(attempt), demand)

    return register


def _sentence_of(attempt: Measure) -> str:
    """Type and message of the error that an attempt raises; empty if it raises none."""
    try:
        attempt()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def difference(given: Tensor, expected: Tensor) -> float:
    """Largest difference, as a share of the largest value."""
    assert given.shape == expected.shape, (given.shape, expected.shape)
    return float((given - expected).abs().max() / expected.abs().max())


def rms(given: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference, as a share of the expected one."""
    return float((given - expected).norm() / expected.norm())


def difference_by_tap(given: Tensor, expected: Tensor) -> float:
    """`difference` of the worst tap (B T L D)."""
    return max(difference(given[:, :, tap], expected[:, :, tap]) for tap in range(expected.shape[2]))


def close(*differences: float) -> bool:
    """Whether every difference is at most PARITY; a NaN is not."""
    return all(each <= PARITY for each in differences)
