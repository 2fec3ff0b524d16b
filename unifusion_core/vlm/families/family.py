"""The description of a VLM family, and a helper for several families."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ...contracts import ChatTemplate
from ...errors import VLMError

if TYPE_CHECKING:
    # for annotations only: the import takes seconds
    from transformers import PretrainedConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class VLMFamily:
    """The properties of a VLM family.

    template          chat format for generators that have none
    block_per_tile    True = image marks around each tile, False = around all tiles of an image
    normalisation     (mean, std) per channel, for folders without a preprocessor file
    tokens_per_tile   tokens of a tile of default size, marks included; for memory estimates
    tile_size         (config, requested side or None) -> side of a tile in pixels; raises VLMError for an unsupported side
    token_grid        (config, tile size) -> (rows, columns) of the tokens of one tile, in raster order
    pixel_inputs      (config, normalised tiles) -> the model's arguments for all tiles, as one vision batch
    position_ids      (base model, token ids, mask, mask of image tokens, pixel inputs) -> position ids
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
    """The side of a square size, given as one number or two. Raises VLMError for a size that is not square."""
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise VLMError(f"The VLM's {name} is {size} and only square sizes are supported; use another VLM.")
    return sides.pop()
