"""Images to tiles: the grid rule, the cut, the boxes, what is refused.

pytest tests/unit/vlm/test_tiling.py
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from unifusion_core.errors import ShapeError
from unifusion_core.vlm.tiling import Tiles, check_image, choose_grid, flatten_alpha, split_into_tiles

TILE = 12


def ramp(height: int, width: int) -> Tensor:
    """An image whose red channel is the row and whose green channel is the column, both in 0..1."""
    row = ((torch.arange(height) + 0.5) / height)[:, None].expand(height, width)
    column = ((torch.arange(width) + 0.5) / width)[None].expand(height, width)
    return torch.stack([row, column, torch.zeros(height, width)])


@pytest.mark.parametrize(
    ("width", "height", "max_tiles", "grid"),
    [
        (800, 600, 10, (2, 3)),
        (448, 448, 10, (1, 1)),
        (900, 900, 10, (2, 2)),
        (1344, 1344, 10, (3, 3)),
        (448, 448, 5, (1, 1)),
        (2000, 1000, 10, (2, 4)),
        (896, 448, 10, (1, 2)),
        (1000, 4000, 5, (4, 1)),
        (3000, 100, 10, (1, 9)),
        (4000, 4000, 1, (1, 1)),
        (4000, 100, 2, (1, 1)),
    ],
)
def test_grid_follows_internvl(width: int, height: int, max_tiles: int, grid: tuple[int, int]) -> None:
    assert choose_grid(width, height, max_tiles, 448) == grid


def internvl_reference(width: int, height: int, max_num: int, size: int) -> tuple[int, int]:
    """`dynamic_preprocess` of InternVL's model card, told again: (columns, rows)."""
    ratios = {
        (i, j)
        for n in range(1, max_num + 1)
        for i in range(1, n + 1)
        for j in range(1, n + 1)
        if 1 <= i * j <= max_num
    }
    best, best_difference = (1, 1), float("inf")
    for ratio in sorted(ratios, key=lambda each: (each[0] * each[1], each[0])):
        difference = abs(width / height - ratio[0] / ratio[1])
        if difference < best_difference:
            best, best_difference = ratio, difference
        elif difference == best_difference and width * height > 0.5 * size * size * ratio[0] * ratio[1]:
            best = ratio
    return best


def test_grid_agrees_with_the_reference_on_many_sizes() -> None:
    generator = torch.Generator().manual_seed(1)
    sizes = torch.randint(1, 300, (300, 2), generator=generator).tolist()
    for width, height in [*sizes, (96, 48), (48, 96), (97, 97), (68, 68), (144, 96)]:
        for max_tiles in (3, 5, 10, 13):
            columns, rows = internvl_reference(width, height, max_tiles - 1, 48)
            assert choose_grid(width, height, max_tiles, 48) == (rows, columns)
            assert rows * columns <= max_tiles - 1


def test_turned_picture_has_the_turned_grid() -> None:
    for width, height in [(100, 41), (37, 90), (64, 50)]:
        rows, columns = choose_grid(width, height, 10, TILE)
        wide = columns / rows >= 1
        assert wide == (width >= height)


def test_tiles_are_in_raster_order_with_the_thumbnail_last() -> None:
    tiles = split_into_tiles(ramp(24, 36), 10, TILE)
    assert tiles.grid == (2, 3)
    assert tiles.pixels.shape == (7, 3, TILE, TILE)
    assert len(tiles) == 7
    # a tile's mean row and column are the centre of its box
    for pixels, box in zip(tiles.pixels, tiles.boxes, strict=True):
        centre = torch.stack([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])
        torch.testing.assert_close(pixels[:2].mean(dim=(1, 2)), centre, atol=2e-3, rtol=0)
    assert tiles.boxes[-1].tolist() == [0, 0, 1, 1]
    assert torch.equal(tiles.boxes[:3, 1], torch.tensor([0, 1 / 3, 2 / 3]))


def test_tiles_of_a_fitting_picture_are_its_own_pixels() -> None:
    picture = torch.rand(3, 2 * TILE, 3 * TILE)
    tiles = split_into_tiles(picture, 10, TILE)
    whole = torch.cat(
        [torch.cat(list(row), dim=2) for row in tiles.pixels[:-1].reshape(2, 3, 3, TILE, TILE)], dim=1
    )
    assert torch.equal(whole, picture)


@pytest.mark.parametrize("max_tiles", [1, 2])
def test_few_tiles_mean_the_thumbnail_alone(max_tiles: int) -> None:
    tiles = split_into_tiles(ramp(50, 90), max_tiles, TILE)
    assert tiles.grid == (1, 1)
    assert tiles.pixels.shape == (1, 3, TILE, TILE)


def test_resizing_is_antialiased_and_stays_in_range() -> None:
    stripes = (torch.arange(240) % 2).float().expand(3, 240, 240)
    thumbnail = split_into_tiles(stripes, 1, TILE).pixels[0]
    torch.testing.assert_close(
        thumbnail[:, :, 1:-1], torch.full_like(thumbnail[:, :, 1:-1], 0.5), atol=0.02, rtol=0
    )
    edge = (torch.arange(30) > 14).float().expand(3, 30, 30)
    tiles = split_into_tiles(edge, 1, 47)
    assert tiles.pixels.min() >= 0
    assert tiles.pixels.max() <= 1


def test_thumbnail_first_moves_only_the_thumbnail() -> None:
    tiles = split_into_tiles(torch.rand(3, 24, 36), 10, TILE)
    first = tiles.thumbnail_first()
    assert isinstance(first, Tiles)
    assert torch.equal(first.pixels[0], tiles.pixels[-1])
    assert torch.equal(first.pixels[1:], tiles.pixels[:-1])
    assert torch.equal(first.boxes[1:], tiles.boxes[:-1])


def test_alpha_is_laid_on_white() -> None:
    red = torch.zeros(4, 5, 7)
    red[0] = 1
    assert torch.equal(flatten_alpha(red), torch.ones(3, 5, 7))
    red[3] = 0.25
    assert torch.equal(flatten_alpha(red)[:, 0, 0], torch.tensor([1, 0.75, 0.75]))
    torch.testing.assert_close(
        split_into_tiles(red, 1, TILE).pixels[0, :, 0, 0], torch.tensor([1, 0.75, 0.75])
    )


def test_small_overshoot_is_clamped() -> None:
    picture = torch.full((3, 4, 4), 1.03)
    assert torch.equal(check_image(picture), torch.ones(3, 4, 4))


@pytest.mark.parametrize(
    ("picture", "told"),
    [
        (torch.rand(8, 9), "give one image as channels x height x width"),
        (torch.rand(1, 3, 8, 9), "give one image as channels x height x width"),
        (torch.rand(3, 0, 9), "has no pixels"),
        (torch.rand(1, 8, 9), "1 channels.*give RGB or RGBA"),
        (torch.rand(9, 8, 3), "9 channels.*channels x height x width"),
        (torch.rand(3, 8, 9) * 255, "values are between .* give values in 0..1"),
        (torch.rand(3, 8, 9) * 2 - 1, "give values in 0..1"),
        (torch.full((3, 8, 9), float("nan")), "NaN or infinite"),
        (torch.full((3, 8, 9), float("inf")), "NaN or infinite"),
    ],
)
def test_what_is_no_picture_is_refused(picture: Tensor, told: str) -> None:
    with pytest.raises(ShapeError, match=told):
        check_image(picture)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((0, 8, 5, 12), "0 x 8 pixels"),
        ((8, 8, 0, 12), "max_tiles is 0; it counts the thumbnail"),
        ((8, 8, 5, 0), "tile_size is 0"),
    ],
)
def test_impossible_numbers_are_refused(arguments: tuple[int, int, int, int], told: str) -> None:
    with pytest.raises(ShapeError, match=told):
        choose_grid(*arguments)
    if arguments[0]:
        with pytest.raises(ShapeError, match=told):
            split_into_tiles(torch.rand(3, 8, 8), *arguments[2:])
