"""Pictures to tiles: InternVL's dynamic grid, cut from an antialiased resize, with the thumbnail last.

Pure torch (no torchvision, no transformers), so that tiles are the same for every VLM family and on every
machine. Letter of this file: S is the side of a tile in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..errors import ShapeError

# Bicubic resizing done before us overshoots by a few hundredths; -1..1 and 0..255 pictures lie far beyond.
VALUE_TOLERANCE = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiles:
    """One picture as the VLM sees it.

    pixels   G C S S   tiles in raster order, the thumbnail last; RGB in 0..1
    boxes    G 4       (top, left, bottom, right) of each tile in the picture, 0..1; thumbnail (0, 0, 1, 1)
    grid               (rows, columns) of the tiles; (1, 1) means that the thumbnail stands alone
    """

    pixels: Float[Tensor, "G C S S"]
    boxes: Float[Tensor, "G 4"]
    grid: tuple[int, int]

    def __len__(self) -> int:
        return self.pixels.shape[0]

    @property
    def num_bytes(self) -> int:
        """Of the pixels; the rest is nothing beside them."""
        return self.pixels.nbytes

    def thumbnail_first(self) -> Tiles:
        """The same tiles with the thumbnail in front, for templates that want it there."""
        return Tiles(pixels=self.pixels.roll(1, 0), boxes=self.boxes.roll(1, 0), grid=self.grid)


def choose_grid(width: int, height: int, max_tiles: int, tile_size: int) -> tuple[int, int]:
    """(rows, columns) of tiles by InternVL's rule: the grid whose aspect ratio is nearest to the picture's.

    `max_tiles` counts the thumbnail, so a grid has at most `max_tiles - 1` tiles, and 1 or 2 mean the
    thumbnail alone. Among grids of equally near ratio the larger one wins if the picture has more than half
    of its pixels.

    Raises ShapeError for a picture without pixels and for `max_tiles` or `tile_size` below 1.
    """
    if width < 1 or height < 1:
        raise ShapeError(f"The picture is {width} x {height} pixels; give one with at least 1 x 1.")
    if max_tiles < 1:
        raise ShapeError(
            f"max_tiles is {max_tiles}; it counts the thumbnail, so give 1 (thumbnail alone) or more."
        )
    if tile_size < 1:
        raise ShapeError(f"tile_size is {tile_size}; give at least 1 pixel.")
    limit = max(1, max_tiles - 1)
    # InternVL walks from few tiles to many, within one count from narrow to wide: ties depend on it.
    grids = sorted(
        ((rows, columns) for columns in range(1, limit + 1) for rows in range(1, limit // columns + 1)),
        key=lambda grid: grid[0] * grid[1],
    )
    best, best_difference = (1, 1), float("inf")
    for rows, columns in grids:
        difference = abs(width / height - columns / rows)
        enough_pixels = width * height > 0.5 * tile_size**2 * rows * columns
        if difference < best_difference or (difference == best_difference and enough_pixels):
            best, best_difference = (rows, columns), difference
    return best


def flatten_alpha(image: Float[Tensor, "4 H W"]) -> Float[Tensor, "3 H W"]:
    """A picture with transparency laid on white: what a viewer shows, and what VLMs were trained to see."""
    alpha = image[3:].clamp(0, 1)
    return image[:3] * alpha + (1 - alpha)


def check_image(image: Tensor) -> Float[Tensor, "3 H W"]:
    """The picture as float32 RGB in 0..1, without alpha.

    Raises ShapeError for anything that is not a picture: no C H W tensor, zero size, another number of
    channels than 3 or 4, NaN or infinity, values outside 0..1.
    """
    shape = tuple(image.shape)
    if image.ndim != 3:
        raise ShapeError(
            f"A picture of shape {shape} was given; give one picture as channels x height x width."
        )
    if 0 in shape:
        raise ShapeError(f"A picture of shape {shape} was given; it has no pixels.")
    if shape[0] not in (3, 4):
        raise ShapeError(
            f"A picture with {shape[0]} channels (shape {shape}) was given; "
            "give RGB or RGBA as channels x height x width."
        )
    image = image.float()
    if not torch.isfinite(image).all():
        raise ShapeError("The picture holds NaN or infinite values; find the step before that made them.")
    low, high = image.aminmax()
    if low < -VALUE_TOLERANCE or high > 1 + VALUE_TOLERANCE:
        raise ShapeError(f"The picture's values run from {low:.3g} to {high:.3g}; give values in 0..1.")
    image = image.clamp(0, 1)
    return flatten_alpha(image) if shape[0] == 4 else image


def resize(image: Float[Tensor, "C H W"], height: int, width: int) -> Float[Tensor, "C height width"]:
    """Antialiased bicubic resize, clamped to 0..1; a picture of the right size comes back untouched."""
    if image.shape[1:] == (height, width):
        return image
    resized = F.interpolate(image[None], (height, width), mode="bicubic", antialias=True, align_corners=False)
    return resized[0].clamp(0, 1)


def split_into_tiles(image: Float[Tensor, "C H W"], max_tiles: int, tile_size: int) -> Tiles:
    """Resize the whole picture to its grid and cut it, then add the thumbnail (the whole in one tile).

    Like InternVL, the resize stretches the picture to the grid's aspect ratio; a grid of (1, 1) gives the
    thumbnail alone.

    Raises ShapeError for what is no picture (see `check_image`) and for impossible numbers (see
    `choose_grid`).
    """
    image = check_image(image)
    rows, columns = grid = choose_grid(image.shape[2], image.shape[1], max_tiles, tile_size)
    pixels, boxes = [], []
    if grid != (1, 1):
        whole = resize(image, rows * tile_size, columns * tile_size)
        for row in range(rows):
            for column in range(columns):
                top, left = row * tile_size, column * tile_size
                pixels.append(whole[:, top : top + tile_size, left : left + tile_size])
                boxes.append((row / rows, column / columns, (row + 1) / rows, (column + 1) / columns))
    pixels.append(resize(image, tile_size, tile_size))
    boxes.append((0.0, 0.0, 1.0, 1.0))
    return Tiles(pixels=torch.stack(pixels), boxes=torch.tensor(boxes, device=image.device), grid=grid)
