"""Qwen2.5-VL and Qwen3-VL. These models do not tile images, so each tile is passed as a separate image."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any, cast

import torch
from einops import repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ...contracts import ChatTemplate
from .family import VLMFamily, square_side

# InternVL's
DEFAULT_TILE_SIZE = 448


def _tile_size(config: Any, requested: int | None) -> int:
    """The multiple of a token's side that is nearest to the requested size."""
    vision = config.vision_config
    token = square_side(vision.patch_size, "patch_size") * vision.spatial_merge_size
    return max(1, round((requested or DEFAULT_TILE_SIZE) / token)) * token


def _token_grid(config: Any, tile_size: int) -> tuple[int, int]:
    vision = config.vision_config
    side = tile_size // (square_side(vision.patch_size, "patch_size") * vision.spatial_merge_size)
    return side, side


def _pixel_inputs(config: Any, tiles: Float[Tensor, "G C S S"]) -> dict[str, Tensor]:
    """Flattened patches, grouped by token (merge x merge). An image is repeated along the time axis."""
    vision = config.vision_config
    patch = square_side(vision.patch_size, "patch_size")
    patches = repeat(
        tiles,
        "G C (y my py) (x mx px) -> (G y x my mx) (C t py px)",
        my=vision.spatial_merge_size,
        mx=vision.spatial_merge_size,
        py=patch,
        px=patch,
        t=vision.temporal_patch_size,
    )
    side = tiles.shape[-1] // patch
    grid_thw = torch.tensor([[1, side, side]], device=tiles.device).repeat(len(tiles), 1)
    return {"pixel_values": patches, "image_grid_thw": grid_thw}


def _position_ids(
    base: nn.Module,
    token_ids: Int[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    is_image: Bool[Tensor, "B T"],
    pixel_inputs: dict[str, Tensor],
) -> Int[Tensor, "3 B T"]:
    """M-RoPE positions (time, row, column) from the model's own function. Positions of padding have no effect."""
    if not pixel_inputs:
        return repeat(
            torch.arange(token_ids.shape[1], device=token_ids.device), "T -> 3 B T", B=len(token_ids)
        )
    count = cast(Any, base).get_rope_index
    # transformers 5 requires the types of the tokens, 4 derives them from the ids
    marks = (
        {"mm_token_type_ids": is_image.int()}
        if "mm_token_type_ids" in inspect.signature(count).parameters
        else {}
    )
    position_ids, _ = count(
        token_ids, image_grid_thw=pixel_inputs["image_grid_thw"], attention_mask=mask, **marks
    )
    return cast(Tensor, position_ids)


QWEN2_5_VL = VLMFamily(
    template=ChatTemplate(
        prefix="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
        image_prefix="<|vision_start|>",
        image_token="<|image_pad|>",
        image_suffix="<|vision_end|>",
        suffix="<|im_end|>\n<|im_start|>assistant\n",
        end="<|im_end|>",
    ),
    block_per_tile=True,
    # CLIP's
    normalisation=((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    tokens_per_tile=258,
    tile_size=_tile_size,
    token_grid=_token_grid,
    pixel_inputs=_pixel_inputs,
    position_ids=_position_ids,
)
QWEN3_VL = replace(QWEN2_5_VL, normalisation=((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), tokens_per_tile=198)
