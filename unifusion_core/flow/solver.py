"""Solvers of the flow's differential equation, one step at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from ..errors import ConfigError

SolverName = Literal["euler", "heun"]
# (latents, t) -> velocity
Velocity = Callable[[Tensor, float], Tensor]
# (velocity, latents, t, next t) -> latents at the next t, velocity used
Step = Callable[[Velocity, Tensor, float, float], tuple[Tensor, Tensor]]


def euler_step(
    velocity: Velocity, x: Float[Tensor, "B C h w"], t: float, t_next: float
) -> tuple[Float[Tensor, "B C h w"], Float[Tensor, "B C h w"]]:
    """First order: one call of the model. Returns the latents at `t_next` and the velocity used."""
    v = velocity(x, t)
    return x + (t_next - t) * v, v


def heun_step(
    velocity: Velocity, x: Float[Tensor, "B C h w"], t: float, t_next: float
) -> tuple[Float[Tensor, "B C h w"], Float[Tensor, "B C h w"]]:
    """Second order: the mean of the velocities at both ends. Two calls of the model, one in the step to 0. Returns as
    `euler_step`."""
    v = velocity(x, t)
    guess = x + (t_next - t) * v
    if t_next > 0:
        v = (v + velocity(guess, t_next)) / 2
        guess = x + (t_next - t) * v
    return guess, v


SOLVERS: dict[str, Step] = {"euler": euler_step, "heun": heun_step}


def find_solver(name: str) -> Step:
    """The solver of that name. Raises ConfigError if it is not in `SOLVERS`."""
    if name not in SOLVERS:
        raise ConfigError(f'there is no solver "{name}"; choose one of {", ".join(SOLVERS)}')
    return SOLVERS[name]
