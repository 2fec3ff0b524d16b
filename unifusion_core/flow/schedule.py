"""Time schedules of the sampler: from 1 (noise) down to 0 (clean)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ConfigError

# mu at 256 and at 6400 latent tokens, from Krea 2's public code
KREA_RAW_MU = (0.5, 1.15)
KREA_TURBO_MU = 1.15


def shifted(t: Float[Tensor, " times"], shift: float) -> Float[Tensor, " times"]:
    """t' = shift t / (1 + (shift - 1) t): more steps at the noisy end for shift > 1, fewer for shift < 1 (arXiv 2403.03206,
    section 5.3.2)."""
    return shift * t / (1 + (shift - 1) * t)


def _uniform(steps: int) -> Float[Tensor, " times"]:
    return torch.linspace(1, 0, steps + 1)


def krea_raw_shift(num_tokens: int) -> float:
    """The shift of Krea 2 raw: exp(mu), with mu linear in the number of latent tokens."""
    low, high = KREA_RAW_MU
    return math.exp(low + (high - low) * (num_tokens - 256) / (6400 - 256))


# name -> (steps, latent tokens of one image) -> times. The type of the names is not a Literal, because other files may add some.
SCHEDULES: dict[str, Callable[[int, int], Float[Tensor, " times"]]] = {
    "uniform": lambda steps, num_tokens: _uniform(steps),
    "shift 2": lambda steps, num_tokens: shifted(_uniform(steps), 2.0),
    "shift 3": lambda steps, num_tokens: shifted(_uniform(steps), 3.0),
    "krea-2 raw": lambda steps, num_tokens: shifted(_uniform(steps), krea_raw_shift(num_tokens)),
    "krea-2 turbo": lambda steps, num_tokens: shifted(_uniform(steps), math.exp(KREA_TURBO_MU)),
}


def check_schedule(name: str) -> None:
    """Raises ConfigError for a name that is not in `SCHEDULES`."""
    if name not in SCHEDULES:
        raise ConfigError(f'there is no schedule "{name}"; choose one of {", ".join(SCHEDULES)}')


def build_schedule(name: str, steps: int, num_tokens: int, denoise: float = 1.0) -> Float[Tensor, " times"]:
    """`steps` + 1 falling times, the last 0. `num_tokens`: latent tokens of one image; "krea-2 raw" depends on it.

    denoise   1 = from time 1, pure noise. Less, above 0 = the last `steps` of steps / denoise, for a start from an image, as
              ComfyUI's samplers count it

    Raises ConfigError for a name that is not in `SCHEDULES`, fewer than one step or another denoise.
    """
    check_schedule(name)
    if steps < 1:
        raise ConfigError(f"{steps} steps were given; at least 1 is needed")
    if not 0 < denoise <= 1:
        raise ConfigError(f"denoise is {denoise}; give a number above 0 and up to 1")
    return SCHEDULES[name](int(steps / denoise), num_tokens)[-(steps + 1) :]
