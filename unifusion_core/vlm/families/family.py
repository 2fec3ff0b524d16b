"""What this package needs to know of a VLM family, and what several families share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ...contracts import ChatTemplate
from ...errors import VLMError

if TYPE_CHECKING:
    # for annotations alone: it takes seconds to import
    from transformers import PretrainedConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class VLMFamily:
    """One family of VLMs, as this package needs to know it.

    template         its own chat format, used where the generator does not bring another
    block_per_tile   True = each tile has picture marks of its own; False = all tiles of a picture share them
    normalisation    (mean, std) per channel where the folder has no preprocessor file
    tokens_per_tile  of a tile of the usual size, its marks counted: for estimates of memory
    tile_size        (config, wanted side or None) -> side of a tile in pixels; VLMError if that is impossible
    token_grid       (config, tile size) -> (rows, columns) of the tokens of one tile, in raster order
    pixel_inputs     (config, normalised tiles) -> the model's arguments for all tiles in one vision batch
    position_ids     (base model, token ids, mask, mask of image tokens, pixel inputs) -> position ids
    """

    template: ChatTemplate
    block_per_tile: bool
    normalisation: tuple[tuple[float, ...], tuple[float, ...]]
    tokens_per_tile: int
    tile_size: Callable[[PretrainedConfig, int | None], int]
    token_grid: Callable[[PretrainedConfig, int], tuple[int, int]]
    pixel_inputs: Callable[[PretrainedConfig, Float[Tensor, "G C S S"]], dict[str, Tensor]]
    position_ids: Callable[
        [nn.Module, Int[Tensor, "B T"], Bool[Tensor, "B T"], Bool[Tensor, "B T"], dict[str, Tensor]],
        Int[Tensor, "*axes B T"],
    ]


def square_side(size: int | list[int] | tuple[int, ...], name: str) -> int:
    """The side of a size that must be square, given as one number or two."""
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise VLMError(f"The VLM's {name} is {size}; only square ones are supported.")
    return sides.pop()
