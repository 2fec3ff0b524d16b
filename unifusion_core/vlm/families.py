"""What differs between VLM families; everything else in `vlm/` is the same for all.

A family is one entry of `FAMILIES`, keyed by transformers' `model_type`. To add one, describe it with
`VLMFamily`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from einops import repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..contracts import ChatTemplate
from ..errors import VLMError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

# Side of a tile where the family does not fix one: InternVL's 448 pixels, rounded to whole tokens.
USUAL_TILE_SIZE = 448


@dataclass(frozen=True, kw_only=True, slots=True)
class VLMFamily:
    """One family of VLMs, as this package needs to know it.

    template         its own chat format, used where the generator does not bring another
    block_per_tile   True = each tile has picture marks of its own; False = all tiles of a picture share them
    normalisation    (mean, std) per channel where the folder has no preprocessor file
    tile_size        (config, wanted side or None) -> side of a tile in pixels; VLMError if that is impossible
    token_grid       (config, tile size) -> (rows, columns) of the tokens of one tile, in raster order
    pixel_inputs     (config, normalised tiles) -> the model's arguments for all tiles in one vision batch
    position_ids     (base model, token ids, mask, mask of picture tokens, pixel inputs) -> position ids
    """

    template: ChatTemplate
    block_per_tile: bool
    normalisation: tuple[tuple[float, ...], tuple[float, ...]]
    tile_size: Callable[[PreTrainedConfig, int | None], int]
    token_grid: Callable[[PreTrainedConfig, int], tuple[int, int]]
    pixel_inputs: Callable[[PreTrainedConfig, Float[Tensor, "G C S S"]], dict[str, Tensor]]
    position_ids: Callable[
        [nn.Module, Int[Tensor, "B T"], Bool[Tensor, "B T"], Bool[Tensor, "B T"], dict[str, Tensor]],
        Int[Tensor, "*axes B T"],
    ]


def find_family(model_type: str) -> VLMFamily:
    """The family of a transformers `model_type`; VLMError naming the supported ones if there is none."""
    if model_type not in FAMILIES:
        hint = (
            " Take the version of this model whose name ends in -hf." if model_type == "internvl_chat" else ""
        )
        raise VLMError(
            f'The VLM is of type "{model_type}"; supported are {", ".join(sorted(FAMILIES))}.{hint}'
        )
    return FAMILIES[model_type]


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The language model's layers in their order; what each of them reads is a tap."""
    return cast(nn.ModuleList, cast(Any, model).model.language_model.layers)


# InternVL -----------------------------------------------------------------------------------------


def _square(size: int | list[int] | tuple[int, ...], name: str) -> int:
    """The side of a size that must be square, given as one number or two."""
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise VLMError(f"The VLM's {name} is {size}; only square ones are supported.")
    return sides.pop()


def _internvl_tile_size(config: Any, wanted: int | None) -> int:
    size = _square(config.vision_config.image_size, "image_size")
    if wanted not in (None, size):
        raise VLMError(
            f"tile_size {wanted} was asked for; this VLM's tiles have {size} pixels and no other size."
        )
    return size


def _internvl_token_grid(config: Any, tile_size: int) -> tuple[int, int]:
    patches = tile_size // _square(config.vision_config.patch_size, "patch_size")
    side = int(patches * config.downsample_ratio)
    if side != patches * config.downsample_ratio or side**2 != config.image_seq_length:
        raise VLMError(
            f"A tile of {tile_size} pixels has {patches} x {patches} patches; with downsample_ratio "
            f"{config.downsample_ratio} that makes {patches * config.downsample_ratio:g} squared tokens, but "
            f"image_seq_length is {config.image_seq_length}; correct the VLM's config.json."
        )
    return side, side


def _internvl_pixel_inputs(config: Any, tiles: Float[Tensor, "G C S S"]) -> dict[str, Tensor]:
    return {"pixel_values": tiles}


def _plain_position_ids(
    base: nn.Module,
    token_ids: Int[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    is_picture: Bool[Tensor, "B T"],
    pixel_inputs: dict[str, Tensor],
) -> Int[Tensor, "B T"]:
    """Every token counts one; padding stands at the end, so it needs no care."""
    return torch.arange(token_ids.shape[1], device=token_ids.device).expand(token_ids.shape)


# Qwen-VL ------------------------------------------------------------------------------------------


def _qwen_tile_size(config: Any, wanted: int | None) -> int:
    """The side nearest to the wanted one that gives whole tokens."""
    vision = config.vision_config
    token = _square(vision.patch_size, "patch_size") * vision.spatial_merge_size
    return max(1, round((wanted or USUAL_TILE_SIZE) / token)) * token


def _qwen_token_grid(config: Any, tile_size: int) -> tuple[int, int]:
    vision = config.vision_config
    side = tile_size // (_square(vision.patch_size, "patch_size") * vision.spatial_merge_size)
    return side, side


def _qwen_pixel_inputs(config: Any, tiles: Float[Tensor, "G C S S"]) -> dict[str, Tensor]:
    """Flattened patches, those of one token (merge x merge) together; a still repeats along the time axis."""
    vision = config.vision_config
    patch = _square(vision.patch_size, "patch_size")
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


def _mrope_position_ids(
    base: nn.Module,
    token_ids: Int[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    is_picture: Bool[Tensor, "B T"],
    pixel_inputs: dict[str, Tensor],
) -> Int[Tensor, "3 B T"]:
    """Qwen's three-axis positions, counted by the model's own function (padding gets 0)."""
    if not pixel_inputs:
        return repeat(
            torch.arange(token_ids.shape[1], device=token_ids.device), "T -> 3 B T", B=len(token_ids)
        )
    position_ids, _ = cast(Any, base).get_rope_index(
        token_ids,
        mm_token_type_ids=is_picture.int(),
        image_grid_thw=pixel_inputs["image_grid_thw"],
        attention_mask=mask,
    )
    return cast(Tensor, position_ids)


# The table ----------------------------------------------------------------------------------------

_INTERNVL_TEMPLATE = ChatTemplate(
    prefix="<|im_start|>user\n",
    picture_prefix="<img>",
    picture_token="<IMG_CONTEXT>",
    picture_suffix="</img>\n",
    suffix="<|im_end|>\n<|im_start|>assistant\n",
    end="<|im_end|>",
)
_QWEN_TEMPLATE = ChatTemplate(
    prefix="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
    picture_prefix="<|vision_start|>",
    picture_token="<|image_pad|>",
    picture_suffix="<|vision_end|>",
    suffix="<|im_end|>\n<|im_start|>assistant\n",
    end="<|im_end|>",
)

FAMILIES: dict[str, VLMFamily] = {
    "internvl": VLMFamily(
        template=_INTERNVL_TEMPLATE,
        block_per_tile=False,
        normalisation=IMAGENET,
        tile_size=_internvl_tile_size,
        token_grid=_internvl_token_grid,
        pixel_inputs=_internvl_pixel_inputs,
        position_ids=_plain_position_ids,
    ),
    "qwen2_5_vl": VLMFamily(
        template=_QWEN_TEMPLATE,
        block_per_tile=True,
        normalisation=CLIP,
        tile_size=_qwen_tile_size,
        token_grid=_qwen_token_grid,
        pixel_inputs=_qwen_pixel_inputs,
        position_ids=_mrope_position_ids,
    ),
    "qwen3_vl": VLMFamily(
        template=_QWEN_TEMPLATE,
        block_per_tile=True,
        normalisation=HALF,
        tile_size=_qwen_tile_size,
        token_grid=_qwen_token_grid,
        pixel_inputs=_qwen_pixel_inputs,
        position_ids=_mrope_position_ids,
    ),
}
