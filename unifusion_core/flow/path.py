"""The straight path between noise and clean latents. t = 1 is noise, t = 0 is clean, everywhere in this package."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def interpolate(
    clean: Float[Tensor, "B C h w"], noise: Float[Tensor, "B C h w"], t: Float[Tensor, " B"]
) -> Float[Tensor, "B C h w"]:
    """The point of the path at time t."""
    t = t[:, None, None, None]
    return (1 - t) * clean + t * noise


def velocity(clean: Float[Tensor, "B C h w"], noise: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
    """What the DiT learns to predict: the path's derivative by t."""
    return noise - clean


def clean_from_velocity(
    x: Float[Tensor, "B C h w"], v: Float[Tensor, "B C h w"], t: float
) -> Float[Tensor, "B C h w"]:
    """The clean latents that a velocity points to (for previews)."""
    return x - t * v


def sample_training_times(
    count: int,
    *,
    means: Sequence[float] = (0.0,),
    spread: float = 1.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " B"]:
    """Logit-normal times, the means taken in turn: a larger one trains more on the noisy end, where the layout is decided, a
    smaller one on the clean end, where outlines become sharp."""
    mean = torch.tensor(means).repeat(-(-count // len(means)))[:count]
    return torch.sigmoid(mean + spread * torch.randn(count, generator=generator))
