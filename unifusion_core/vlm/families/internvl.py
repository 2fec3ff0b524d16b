"""InternVL: square tiles of a fixed size, with one pair of image marks around all tiles of an image."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ...contracts import ChatTemplate
from ...errors import VLMError
from .family import VLMFamily, square_side


def _tile_size(config: Any, requested: int | None) -> int:
    size = square_side(config.vision_config.image_size, "image_size")
    if requested not in (None, size):
        raise VLMError(
            f"tile_size {requested} was requested and this VLM's tiles have {size} pixels; give {size}, or no tile_size."
        )
    return size


def _token_grid(config: Any, tile_size: int) -> tuple[int, int]:
    patches = tile_size // square_side(config.vision_config.patch_size, "patch_size")
    side = int(patches * config.downsample_ratio)
    if side != patches * config.downsample_ratio or side**2 != config.image_seq_length:
        raise VLMError(
            f"A tile of {tile_size} pixels has {patches} x {patches} patches; with downsample_ratio "
            f"{config.downsample_ratio} that gives {patches * config.downsample_ratio:g} squared tokens, but "
            f"image_seq_length is {config.image_seq_length}; correct the VLM's config.json."
        )
    return side, side


def _pixel_inputs(config: Any, tiles: Float[Tensor, "G C S S"]) -> dict[str, Tensor]:
    return {"pixel_values": tiles}


def _position_ids(
    base: nn.Module,
    token_ids: Int[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    is_image: Bool[Tensor, "B T"],
    pixel_inputs: dict[str, Tensor],
) -> Int[Tensor, "B T"]:
    """Counts all tokens. Padding is at the end, so it shifts no position."""
    return torch.arange(token_ids.shape[1], device=token_ids.device).expand(token_ids.shape)


INTERNVL = VLMFamily(
    template=ChatTemplate(
        prefix="<|im_start|>user\n",
        image_prefix="<img>",
        image_token="<IMG_CONTEXT>",
        image_suffix="</img>\n",
        suffix="<|im_end|>\n<|im_start|>assistant\n",
        end="<|im_end|>",
    ),
    block_per_tile=False,
    # ImageNet's
    normalisation=((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    tokens_per_tile=256,
    tile_size=_tile_size,
    token_grid=_token_grid,
    pixel_inputs=_pixel_inputs,
    position_ids=_position_ids,
)
