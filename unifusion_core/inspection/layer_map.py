"""A `LayerReading` as an image: the pooling weights, a heat map with a row per token, and each input image overlaid with the
shares of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Patch
from torch import Tensor

from ..contracts import Features, TokenRole
from .reading import LayerReading
from .table import Line

DOTS_PER_INCH = 110
# lines beyond this number are only in the table
MAX_LINES = 250
# inches: width of a layer's column, height of a line, width of the names
CELL, LINE, NAMES = 0.5, 0.22, 2.3
# inches: height of titles and pooling weights, side of an image's panel
TOP, PANEL = 1.9, 1.8
# characters
LONGEST_NAME = 32
# opacity of a colour over the image
OPACITY = 0.65


def draw_layer_map(
    reading: LayerReading,
    features: Features,
    lines: Sequence[Line],
    taps: Sequence[int],
    images: Sequence[Float[Tensor, "C _H _W"]] = (),
) -> UInt8[np.ndarray, "H W 3"]:
    """The map of one chat as an RGB image, 0..255.

    reading, lines   of the same chat (`read_layers`, `lines_of`); at most `MAX_LINES` lines are drawn
    taps             the numbers of the layers
    images           the chat's images in order, C H W, RGB (channels after the third are ignored) in 0..1

    Raises PromptError if there are images and the features have no `tokens`.
    """
    shown = lines[:MAX_LINES]
    num_taps = len(taps)
    width = max(NAMES + (1 + len(reading.attention)) * (num_taps * CELL + 0.5), 9.0)
    heights = [TOP + LINE * len(shown)]
    per_row = int(width / PANEL)
    panel_rows = -(-(num_taps + 1) // per_row)
    heights += [0.7 + panel_rows * (PANEL + 0.15)] * len(images)
    figure = Figure(figsize=(width, sum(heights)), dpi=DOTS_PER_INCH, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    _draw_tokens(parts[0], reading, shown, len(lines), taps)
    for number, (part, image) in enumerate(zip(parts[1:], images, strict=True), start=1):
        small = _fit_panel(image)
        spread = spread_over_image(reading.shares, features, number, small.shape[1:])
        part.suptitle(
            f"Image {number}: the shares of its tokens in place (dark: the layer's smallest share, bright: its largest)",
            fontsize=10,
        )
        _draw_image(part, small, spread, taps, (panel_rows, per_row))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


# Tokens -------------------------------------------------------------------------------------------


def _draw_tokens(
    part: SubFigure, reading: LayerReading, lines: Sequence[Line], num_lines: int, taps: Sequence[int]
) -> None:
    """Pooling weights as bars; below them the shares, with the attention of each block to their right."""
    hidden = f" (the first {len(lines)} of {num_lines})" if num_lines > len(lines) else ""
    part.suptitle(f"Share of each VLM layer in every token{hidden}", fontweight="bold")
    panels = part.subplots(
        2, 1 + len(reading.attention), height_ratios=[0.7, LINE * len(lines)], squeeze=False, sharex="col"
    )
    bars = panels[0, 0]
    bars.bar(range(len(taps)), reading.weights.tolist(), color=_layer_colors(len(taps)), edgecolor="#444444")
    bars.axhline(0, color="#444444", linewidth=0.8)
    bars.set_ylabel("pooling\nweight", fontsize=8)
    bars.tick_params(labelsize=8, labelbottom=False)
    bars.spines[["top", "right"]].set_visible(False)
    for above in panels[0, 1:]:
        above.set_axis_off()

    shares = 100 * torch.stack([line.mean(reading.shares) for line in lines]).numpy()
    reach = max(float(np.abs(shares).max()), 1e-6)
    panel = panels[1, 0]
    image = panel.imshow(shares, cmap="RdBu_r", vmin=-reach, vmax=reach, aspect="auto")
    for (y, x), share in np.ndenumerate(shares):
        color = "white" if abs(share) > 0.6 * reach else "black"
        panel.text(x, y, f"{share:.0f}", ha="center", va="center", fontsize=7, color=color)
    names = [
        line.name if len(line.name) <= LONGEST_NAME else line.name[:LONGEST_NAME] + "…" for line in lines
    ]
    panel.set_yticks(range(len(lines)), names, fontsize=8, parse_math=False)
    panel.set_ylabel("token, in the chat's order", fontsize=8)
    panel.set_title("share of the pooled token, %", fontsize=9)
    part.colorbar(image, ax=panel, fraction=0.05, pad=0.02).ax.tick_params(labelsize=7)
    for number, (panel, attention) in enumerate(zip(panels[1, 1:], reading.attention, strict=True), start=1):
        values = torch.stack([line.mean(attention) for line in lines]).numpy()
        image = panel.imshow(values, cmap="viridis", vmin=0, vmax=1, aspect="auto")
        panel.set_yticks(range(len(lines)), [""] * len(lines))
        panel.set_title(f"attention in block {number}", fontsize=9)
        part.colorbar(image, ax=panel, fraction=0.05, pad=0.02).ax.tick_params(labelsize=7)
    for panel in panels[1]:
        panel.set_xticks(range(len(taps)), [str(tap) for tap in taps], fontsize=8)
        panel.set_xlabel("VLM layer", fontsize=8)


def _layer_colors(num_taps: int) -> list[tuple[float, ...]]:
    """A colour for each layer, from dark (first) to bright (last)."""
    return [colormaps["plasma"](0.9 * place / max(num_taps - 1, 1)) for place in range(num_taps)]


# Images -------------------------------------------------------------------------------------------


def _draw_image(
    part: SubFigure,
    image: Float[Tensor, "3 H W"],
    shares: Float[np.ndarray, "H W L"],
    taps: Sequence[int],
    grid: tuple[int, int],
) -> None:
    """One panel for the layer with the largest share in each place, then one for each layer's shares."""
    gray = image.mean(0).numpy()[..., None].repeat(3, -1)
    panels = part.subplots(*grid, squeeze=False).ravel()
    colors = np.array(_layer_colors(len(taps)))[:, :3]
    # an image of reduced strength has lost some of its tokens
    covered = ~np.isnan(shares).any(-1)
    strongest = np.where(covered, np.nan_to_num(shares).argmax(-1), 0)
    overlays = [("the strongest layer" if covered.any() else "no tokens left", colors[strongest])]
    for place, tap in enumerate(taps):
        values = np.nan_to_num(shares[..., place])
        seen = values[covered] if covered.any() else np.zeros(1)
        low, high = float(seen.min()), float(seen.max())
        scaled = (values - low) / max(high - low, 1e-6)
        name = f"layer {tap}: {100 * low:.0f} to {100 * high:.0f} %"
        overlays.append((name, colormaps["viridis"](scaled)[..., :3]))
    for panel in panels:
        panel.set_axis_off()
    for panel, (name, color) in zip(panels, overlays, strict=False):
        opacity = np.where(np.asarray(covered)[..., None], OPACITY, 0.0)
        panel.imshow(opacity * color + (1 - opacity) * gray, vmin=0, vmax=1)
        panel.set_title(name, fontsize=8)
    legend = [
        Patch(color=tuple(colors[place]), label=f"layer {taps[place]}")
        for place in np.unique(strongest[covered])
    ]
    panels[0].legend(handles=legend, fontsize=7, loc="lower left", framealpha=0.8)


def _fit_panel(image: Float[Tensor, "C _H _W"]) -> Float[Tensor, "3 H W"]:
    """The image, shrunk to the pixels of a panel if it is larger."""
    shrink = min(1.0, PANEL * DOTS_PER_INCH / max(image.shape[1:]))
    size = [max(1, round(side * shrink)) for side in image.shape[1:]]
    return F.interpolate(image[None, :3].float().cpu(), size, mode="area")[0]


def spread_over_image(
    values: Float[Tensor, "T L"], features: Features, number: int, size: Sequence[int]
) -> Float[np.ndarray, "H W L"]:
    """The values of the tokens of image `number` (from 1) at the pixels that they cover; NaN where there is no token.

    Tiles are drawn over the thumbnail. `size`: (height, width) in pixels. Raises PromptError if the features have no `tokens`.
    """
    height, width = size
    spread = np.full((height, width, values.shape[1]), np.nan, np.float32)
    cells = _cells(features, number)
    # the thumbnail first, because its tokens cover more of the image
    for place, (top, left, bottom, right) in sorted(cells.items(), key=lambda item: -_area(item[1])):
        rows = slice(round(top * height), round(bottom * height))
        columns = slice(round(left * width), round(right * width))
        spread[rows, columns] = values[place].numpy()
    return spread


def _cells(features: Features, number: int) -> dict[int, tuple[float, float, float, float]]:
    """(top, left, bottom, right), 0..1, of the area that each token of an image covers, by the token's index.

    Features hold only the centres. Tokens are in order of tiles, then rows: a smaller row begins another tile, and the centres
    of a tile are a grid.
    """
    own = (features.token_info.roles[0] == TokenRole.IMAGE) & (features.positions[0, :, 0] == number)
    tiles: list[list[tuple[int, float, float]]] = []
    previous = 2.0
    for place in own.nonzero()[:, 0].tolist():
        row, column = features.positions[0, place, 1:].tolist()
        if row < previous - 1e-6:
            tiles.append([])
        tiles[-1].append((place, row, column))
        previous = row
    cells = {}
    for tile in tiles:
        half_height, half_width = (_pitch({token[axis] for token in tile}) / 2 for axis in (1, 2))
        for place, row, column in tile:
            cells[place] = (row - half_height, column - half_width, row + half_height, column + half_width)
    return cells


def _pitch(centres: set[float]) -> float:
    """The distance between neighbours; a single centre covers the whole side."""
    ordered = sorted(centres)
    return min((b - a for a, b in pairwise(ordered) if b - a > 1e-4), default=1.0)


def _area(cell: tuple[float, float, float, float]) -> float:
    top, left, bottom, right = cell
    return (bottom - top) * (right - left)
