"""Solvers against flows with a known solution: pytest tests/unit/flow/test_solver.py"""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from unifusion_core.errors import ConfigError
from unifusion_core.flow.solver import SOLVERS, SolverName, Velocity, find_solver

CLEAN, NOISE = torch.randn(2, 2, 3, 4, 6, generator=torch.Generator().manual_seed(0)).double()


def solve(name: str, velocity: Velocity, x: Tensor, times: list[float]) -> Tensor:
    for t, t_next in zip(times[:-1], times[1:], strict=True):
        x, _ = find_solver(name)(velocity, x, t, t_next)
    return x


def uniform(steps: int) -> list[float]:
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64).tolist()


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("times", [[1.0, 0.0], [1.0, 0.9, 0.35, 0.0], uniform(7)])
def test_straight_flow_is_solved_exactly(name: str, times: list[float]) -> None:
    # the flow that leads to CLEAN from everywhere
    solved = solve(name, lambda x, t: (x - CLEAN) / t, NOISE, times)

    torch.testing.assert_close(solved, CLEAN)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2)])
def test_error_falls_with_the_order_of_the_solver(name: str, order: int) -> None:
    def error(steps: int) -> float:
        # dx/dt = x, so x(0) = x(1) / e
        solved = solve(name, lambda x, t: x, NOISE, uniform(steps))
        return (solved - NOISE / math.e).abs().max().item()

    assert error(40) / error(80) == pytest.approx(2**order, rel=0.1)


@pytest.mark.parametrize(("name", "calls"), [("euler", 5), ("heun", 9)])
def test_number_of_model_calls(name: str, calls: int) -> None:
    asked: list[float] = []

    def velocity(x: Tensor, t: float) -> Tensor:
        asked.append(t)
        return x

    solve(name, velocity, NOISE, uniform(5))

    assert len(asked) == calls
    # at t = 0 no noise is left to predict
    assert 0.0 not in asked


@pytest.mark.parametrize("name", SOLVERS)
def test_the_returned_velocity_is_the_one_that_was_used(name: str) -> None:
    after, v = find_solver(name)(lambda x, t: x * t, NOISE, 0.8, 0.5)

    torch.testing.assert_close(after, NOISE + (0.5 - 0.8) * v)


def test_unknown_solver_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match='no solver "dpm"; choose one of euler, heun'):
        find_solver("dpm")


def test_the_typed_names_are_the_solvers() -> None:
    assert get_args(SolverName) == tuple(SOLVERS)
