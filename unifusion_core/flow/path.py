"""The straight path between noise and clean latents. t = 1 is noise and t = 0 is clean, everywhere in this package.

Source: rectified flow (arXiv 2209.03003), with time reversed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def interpolate(
    clean: Float[Tensor, "B C h w"], noise: Float[Tensor, "B C h w"], t: Float[Tensor, " B"]
) -> Float[Tensor, "B C h w"]:
    """The latents at time t, 0..1, of each element of the batch."""
    t = t[:, None, None, None]
    return (1 - t) * clean + t * noise


def velocity(clean: Float[Tensor, "B C h w"], noise: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
    """The DiT's training target: the derivative of the path with respect to t."""
    return noise - clean


def clean_from_velocity(
    x: Float[Tensor, "B C h w"], v: Float[Tensor, "B C h w"], t: float
) -> Float[Tensor, "B C h w"]:
    """The clean latents predicted by velocity `v` at time t, for previews."""
    return x - t * v


def sample_training_times(
    count: int,
    *,
    means: Sequence[float] = (0.0,),
    spread: float = 1.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " B"]:
    """Logit-normal times in 0..1 (arXiv 2403.03206, section 3.1): sigmoid(mean + spread * normal).

    The batch takes the `means` in turn. A larger mean trains more on the noisy end, where the layout is decided; a smaller one
    trains more on the clean end, where outlines become sharp.
    """
    mean = torch.tensor(means).repeat(-(-count // len(means)))[:count]
    return torch.sigmoid(mean + spread * torch.randn(count, generator=generator))
