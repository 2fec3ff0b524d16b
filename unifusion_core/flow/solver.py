"""Solvers of the flow: from noise to clean along a schedule of times."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from ..errors import ConfigError

Velocity = Callable[[Tensor, float], Tensor]
Step = Callable[[Velocity, Tensor, float, float], tuple[Tensor, Tensor]]


def euler_step(
    velocity: Velocity, x: Float[Tensor, "B C h w"], t: float, t_next: float
) -> tuple[Float[Tensor, "B C h w"], Float[Tensor, "B C h w"]]:
    """One call of the model per step. Returns the next state and the velocity used."""
    v = velocity(x, t)
    return x + (t_next - t) * v, v


def heun_step(
    velocity: Velocity, x: Float[Tensor, "B C h w"], t: float, t_next: float
) -> tuple[Float[Tensor, "B C h w"], Float[Tensor, "B C h w"]]:
    """Second order: the mean of the velocities at both ends; two calls, the last step one."""
    v = velocity(x, t)
    guess = x + (t_next - t) * v
    if t_next > 0:
        v = (v + velocity(guess, t_next)) / 2
        guess = x + (t_next - t) * v
    return guess, v


SOLVERS: dict[str, Step] = {"euler": euler_step, "heun": heun_step}


def find_solver(name: str) -> Step:
    """Raises ConfigError for an unknown name."""
    if name not in SOLVERS:
        raise ConfigError(f'there is no solver "{name}"; choose one of {", ".join(SOLVERS)}')
    return SOLVERS[name]
