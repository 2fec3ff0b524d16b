"""Classifier-free guidance, ComfyUI's convention: scale 1 is off."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def guide(
    positive: Float[Tensor, "B C h w"],
    negative: Float[Tensor, "B C h w"],
    cfg: float,
    picture_only: Float[Tensor, "B C h w"] | None = None,
    image_cfg: float = 1.0,
) -> Float[Tensor, "B C h w"]:
    """v = negative + cfg (positive - negative); with a picture-only branch, text and picture are guided apart:
    v = negative + image_cfg (picture_only - negative) + cfg (positive - picture_only)."""
    if picture_only is None:
        return negative + cfg * (positive - negative)
    return negative + image_cfg * (picture_only - negative) + cfg * (positive - picture_only)
