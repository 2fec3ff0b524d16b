"""Classifier-free guidance (CFG) in ComfyUI's convention: a scale of 1 is off."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

# Krea 2's card and code count the scale from 0
OFF_IS_ONE = "cfg 0 draws what the negative describes: a scale of 1 is off here, where Krea's own counts from 0; give cfg 1"


def guide(
    positive: Float[Tensor, "B C h w"],
    negative: Float[Tensor, "B C h w"],
    cfg: float,
    image_only: Float[Tensor, "B C h w"] | None = None,
    image_cfg: float = 1.0,
) -> Float[Tensor, "B C h w"]:
    """The guided velocity from those for the request, the empty prompt and, optionally, the request's images without text.

    Without `image_only`: negative + cfg (positive - negative). The scale of Krea 2's public code is cfg - 1.
    With `image_only`, text and images have separate scales, as in InstructPix2Pix (arXiv 2211.09800, section 3.2.1):
    negative + image_cfg (image_only - negative) + cfg (positive - image_only).
    """
    if image_only is None:
        return negative + cfg * (positive - negative)
    return negative + image_cfg * (image_only - negative) + cfg * (positive - image_only)
