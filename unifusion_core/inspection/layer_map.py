"""A reading of layers as a picture: a heat map with the tokens beside it, the pooling weights above, and every input picture
with its tokens' shares laid over it."""

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
MAX_LINES = 250  # more tokens than that stand in the table alone
CELL, LINE, NAMES = (
    0.5,
    0.22,
    2.3,
)  # inches: width of a layer's column, height of a token's line, room for their names
TOP, PANEL = 1.9, 1.8  # inches: titles and pooling weights; a picture with a layer laid over it
LONGEST_NAME = 32
LAID_OVER = 0.65  # how much of a colour covers the picture below it


def draw_layer_map(
    reading: LayerReading,
    features: Features,
    lines: Sequence[Line],
    taps: Sequence[int],
    images: Sequence[Float[Tensor, "C _H _W"]] = (),
) -> UInt8[np.ndarray, "H W 3"]:
    """The reading of one chat as an RGB picture. `images` are those that the chat shows, in order, RGB in 0..1."""
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
        small = _as_shown(image)
        spread = spread_over_picture(reading.shares, features, number, small.shape[1:])
        part.suptitle(
            f"Picture {number}: what its tokens read, in their places (dark: the layer's smallest share, bright: its largest)",
            fontsize=10,
        )
        _draw_picture(part, small, spread, taps, (panel_rows, per_row))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


# Tokens -------------------------------------------------------------------------------------------


def _draw_tokens(
    part: SubFigure, reading: LayerReading, lines: Sequence[Line], num_lines: int, taps: Sequence[int]
) -> None:
    """Pooling weights as bars; below them the shares, and the attention of each block beside these."""
    hidden = f" (the first {len(lines)} of {num_lines})" if num_lines > len(lines) else ""
    part.suptitle(f"Which VLM layer every token reads{hidden}", fontweight="bold")
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
    """A colour for each layer, dark for the first and bright for the last."""
    return [colormaps["plasma"](0.9 * place / max(num_taps - 1, 1)) for place in range(num_taps)]


# Pictures -----------------------------------------------------------------------------------------


def _draw_picture(
    part: SubFigure,
    image: Float[Tensor, "3 H W"],
    shares: Float[np.ndarray, "H W L"],
    taps: Sequence[int],
    grid: tuple[int, int],
) -> None:
    """The layer that dominates in each place, and where each layer has a larger or smaller share."""
    gray = image.mean(0).numpy()[..., None].repeat(3, -1)
    panels = part.subplots(*grid, squeeze=False).ravel()
    colors = np.array(_layer_colors(len(taps)))[:, :3]
    covered = ~np.isnan(shares).any(-1)  # a weaker picture has lost some of its tokens
    strongest = np.where(covered, np.nan_to_num(shares).argmax(-1), 0)
    laid = [("the strongest layer" if covered.any() else "no tokens left", colors[strongest])]
    for place, tap in enumerate(taps):
        values = np.nan_to_num(shares[..., place])
        seen = values[covered] if covered.any() else np.zeros(1)
        low, high = float(seen.min()), float(seen.max())
        scaled = (values - low) / max(high - low, 1e-6)
        name = f"layer {tap}: {100 * low:.0f} to {100 * high:.0f} %"
        laid.append((name, colormaps["viridis"](scaled)[..., :3]))
    for panel in panels:
        panel.set_axis_off()
    for panel, (name, color) in zip(panels, laid, strict=False):
        over = np.where(np.asarray(covered)[..., None], LAID_OVER, 0.0)
        panel.imshow(over * color + (1 - over) * gray, vmin=0, vmax=1)
        panel.set_title(name, fontsize=8)
    legend = [
        Patch(color=tuple(colors[place]), label=f"layer {taps[place]}")
        for place in np.unique(strongest[covered])
    ]
    panels[0].legend(handles=legend, fontsize=7, loc="lower left", framealpha=0.8)


def _as_shown(image: Float[Tensor, "C _H _W"]) -> Float[Tensor, "3 H W"]:
    """A picture no larger than can be seen in a panel."""
    shrink = min(1.0, PANEL * DOTS_PER_INCH / max(image.shape[1:]))
    size = [max(1, round(side * shrink)) for side in image.shape[1:]]
    return F.interpolate(image[None, :3].float().cpu(), size, mode="area")[0]


def spread_over_picture(
    values: Float[Tensor, "T L"], features: Features, number: int, size: Sequence[int]
) -> Float[np.ndarray, "H W L"]:
    """Values of one picture's tokens in their places. Tiles lie over the thumbnail, whose tokens cover more of the picture;
    a place that no token covers has NaN."""
    height, width = size
    spread = np.full((height, width, values.shape[1]), np.nan, np.float32)
    cells = _cells(features, number)
    for place, (top, left, bottom, right) in sorted(cells.items(), key=lambda item: -_area(item[1])):
        rows = slice(round(top * height), round(bottom * height))
        columns = slice(round(left * width), round(right * width))
        spread[rows, columns] = values[place].numpy()
    return spread


def _cells(features: Features, number: int) -> dict[int, tuple[float, float, float, float]]:
    """(top, left, bottom, right) in 0..1 of what each of a picture's tokens covers. Only centres are known, but tokens come
    tile by tile, row by row: where the row falls back, another tile begins, and within one the centres are a grid."""
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
    """The distance of neighbours; one centre alone stands for the whole side."""
    ordered = sorted(centres)
    return min((b - a for a, b in pairwise(ordered) if b - a > 1e-4), default=1.0)


def _area(cell: tuple[float, float, float, float]) -> float:
    top, left, bottom, right = cell
    return (bottom - top) * (right - left)
