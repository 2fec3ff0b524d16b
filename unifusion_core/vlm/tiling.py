"""Splits images into tiles on InternVL's dynamic grid, with the thumbnail last.

Pure torch (no torchvision, no transformers), so that tiles are the same for every VLM family. In shapes, S is the side of a tile
in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..errors import ShapeError

# an earlier bicubic resize overshoots 0..1 by a few hundredths; images in -1..1 or 0..255 exceed this by far
VALUE_TOLERANCE = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiles:
    """The tiles of one image.

    pixels   G C S S   RGB in 0..1, tiles in raster order, the thumbnail last
    boxes    G 4       (top, left, bottom, right) of each tile in the image, 0..1; the thumbnail's is (0, 0, 1, 1)
    grid               (rows, columns) of the tiles; (1, 1) = the thumbnail only
    """

    pixels: Float[Tensor, "G C S S"]
    boxes: Float[Tensor, "G 4"]
    grid: tuple[int, int]

    def __len__(self) -> int:
        return self.pixels.shape[0]

    @property
    def num_bytes(self) -> int:
        """Size of the pixels; the boxes are negligible."""
        return self.pixels.nbytes

    def thumbnail_first(self) -> Tiles:
        """The same tiles with the thumbnail first, for templates that need this order."""
        return Tiles(pixels=self.pixels.roll(1, 0), boxes=self.boxes.roll(1, 0), grid=self.grid)


def choose_grid(width: int, height: int, max_tiles: int, tile_size: int) -> tuple[int, int]:
    """(rows, columns) of the tiles by InternVL's rule (`dynamic_preprocess`): the grid with the nearest aspect ratio.

    `max_tiles` counts the thumbnail, so a grid has at most `max_tiles - 1` tiles, and 1 or 2 give the thumbnail only. Of two
    grids with equally near ratios, the larger one is chosen if the image has more than half of its pixels.

    Raises ShapeError for an image without pixels and for `max_tiles` or `tile_size` below 1.
    """
    if width < 1 or height < 1:
        raise ShapeError(f"The image is {width} x {height} pixels; give one of at least 1 x 1.")
    if max_tiles < 1:
        raise ShapeError(
            f"max_tiles is {max_tiles}; it counts the thumbnail, so give 1 (thumbnail only) or more."
        )
    if tile_size < 1:
        raise ShapeError(f"tile_size is {tile_size}; give at least 1 pixel.")
    limit = max(1, max_tiles - 1)
    # InternVL's order, which decides ties: from few tiles to many, and from narrow to wide at the same count
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
    """RGBA composited on white, as viewers show it and VLMs were trained on it."""
    alpha = image[3:].clamp(0, 1)
    return image[:3] * alpha + (1 - alpha)


def check_image(image: Tensor) -> Float[Tensor, "3 H W"]:
    """The image as float32 RGB in 0..1; alpha is composited on white.

    Raises ShapeError for a tensor that is not C H W, zero size, another number of channels than 3 or 4, NaN, infinity, and values
    outside 0..1.
    """
    shape = tuple(image.shape)
    if image.ndim != 3:
        raise ShapeError(f"A tensor of shape {shape} was given; give one image as channels x height x width.")
    if 0 in shape:
        raise ShapeError(f"An image of shape {shape} was given, which has no pixels; give at least 1 x 1.")
    if shape[0] not in (3, 4):
        raise ShapeError(
            f"An image with {shape[0]} channels (shape {shape}) was given; "
            "give RGB or RGBA as channels x height x width."
        )
    image = image.float()
    if not torch.isfinite(image).all():
        raise ShapeError("The image has NaN or infinite values; find the step before that produced them.")
    low, high = image.aminmax()
    if low < -VALUE_TOLERANCE or high > 1 + VALUE_TOLERANCE:
        raise ShapeError(f"The image's values are between {low:.3g} and {high:.3g}; give values in 0..1.")
    image = image.clamp(0, 1)
    return flatten_alpha(image) if shape[0] == 4 else image


def resize(image: Float[Tensor, "C H W"], height: int, width: int) -> Float[Tensor, "C height width"]:
    """Antialiased bicubic resize, clamped to 0..1. An image of the right size is returned unchanged."""
    if image.shape[1:] == (height, width):
        return image
    resized = F.interpolate(image[None], (height, width), mode="bicubic", antialias=True, align_corners=False)
    return resized[0].clamp(0, 1)


def split_into_tiles(image: Float[Tensor, "C H W"], max_tiles: int, tile_size: int) -> Tiles:
    """Resizes an image to its grid, splits it into tiles and appends the thumbnail (the whole image in one tile).

    As in InternVL, the resize stretches the image to the grid's aspect ratio. A grid of (1, 1) gives the thumbnail only.

    Raises ShapeError as `check_image` and `choose_grid` do.
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
