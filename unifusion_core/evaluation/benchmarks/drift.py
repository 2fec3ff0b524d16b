"""Drift: how far an edit shifts and scales what it should leave alone.

Displacements are measured by phase correlation between blocks of the original and of the edited image, with sub-pixel peaks.
Blocks that touch the mask of what may change, and blocks without texture, are left out. Shift and scale are the least-squares
fit to the displacements: displacement = shift + scale x place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, median

import numpy as np
import torch

from ...errors import ConfigError
from ...images import read_image_file
from .benchmark import Answers, Benchmark, Item, Question, Scores, Shown, images_of
from .bootstrap import mean_interval
from .json_lines import read_json_lines
from .pixels import PixelJudge, measured, psnr, same_size

FILE = "edits.jsonl"
FORM = '{"id": "a", "prompt": "...", "images": ["1.png"], "mask": "1-mask.png"}'
SHIFT, SCALE, OUTSIDE = "shift px", "scale %", "PSNR outside dB"
# of the shorter side
BLOCK_SHARE = 0.375
# blocks start every half block
STEPS_PER_BLOCK = 2
# standard deviation of gray levels in 0..1 below which a block has nothing to hold on to
MIN_TEXTURE = 0.02
# the peak is refined on a grid of this many points per pixel
UPSAMPLING = 50
# share of the mean magnitude that is added to each frequency's, so that empty frequencies do not speak
EMPTY = 0.1
# pixels from the fit, beyond which a block was mistaken for another
FAR = 2.0
# times a block is cut anew at the place where its content went
ROUNDS = 3

Gray = np.ndarray


@dataclass(frozen=True)
class Displacement:
    """Where a block's content went: its centre (row, column) from the middle of the image, and the way, in pixels."""

    centre: tuple[float, float]
    way: tuple[float, float]


class Drift(Benchmark):
    """Edits with masks of what may change; no judge is asked."""

    name = "drift"
    source = f"a folder with images and {FILE}, lines of {FORM}; masks are white where the edit may change the image"

    def read(self, data: Path) -> list[Item]:
        file = data / FILE if data.is_dir() else data
        if not file.exists():
            raise self.missing(data, FILE)
        return [_item(file, number, line) for number, line in enumerate(read_json_lines(file), start=1)]

    def own_judge(self) -> PixelJudge:
        return PixelJudge({SHIFT: shift_of, SCALE: scale_of, OUTSIDE: psnr_outside})

    def score(self, items: Sequence[Item], answers: Answers) -> Scores:
        columns: dict[str, list[float]] = {SHIFT: [], SCALE: [], OUTSIDE: []}
        of_images = {}
        images = images_of(items, answers)
        for _, key in images:
            for name, column in columns.items():
                value = measured(answers[key][name])
                if math.isnan(value):
                    continue
                # a picture that grew is as wrong as one that shrank
                column.append(abs(value) if name == SCALE else value)
                if name == SHIFT:
                    # more is better in contact sheets
                    of_images[key] = -value
        values, intervals = {}, {}
        for name, column in columns.items():
            values[name] = fmean(column) if column else math.nan
            if column:
                intervals[name] = mean_interval(column)
                values[f"median {name}"] = median(column)
        held = len(of_images)
        notes = (
            (
                f"{len(images) - held} of {len(images)} images have no texture outside the mask: their drift is unknown.",
            )
            if held < len(images)
            else ()
        )
        return Scores(values=values, intervals=intervals, of_images=of_images, notes=notes)


def shift_of(shown: Shown) -> float:
    """Length of the shift in pixels of the drawn image; NaN without texture."""
    shift, _ = fit(_displacements(shown))
    return math.hypot(*shift)


def scale_of(shown: Shown) -> float:
    """Change of size in per cent, positive = larger; NaN where fewer than two blocks have texture."""
    return 100 * fit(_displacements(shown))[1]


def psnr_outside(shown: Shown) -> float:
    """PSNR (dB) between original and drawn image outside the mask; NaN if the mask covers everything."""
    source, output, may_change = _aligned(shown)
    keep = ~may_change
    return psnr(source, output, keep) if bool(keep.any()) else math.nan


def fit(displacements: Sequence[Displacement]) -> tuple[tuple[float, float], float]:
    """Shift (rows, columns) at the middle of the image, and relative change of size. NaN for what is not determined.

    The fit is done again without the blocks that it is far from: a block that was mistaken for another is far off.
    """
    if not displacements:
        return (math.nan, math.nan), math.nan
    ways = np.array([d.way for d in displacements])
    centres = np.array([d.centre for d in displacements])
    # from medians, which a few mistaken blocks do not move
    distances = np.linalg.norm(ways - np.median(ways, axis=0), axis=1)
    near = distances <= max(FAR, 3 * float(np.median(distances)))
    shift, scale = _least_squares(centres[near], ways[near])
    predicted = np.array(shift) + (0 if math.isnan(scale) else scale) * centres
    near = np.linalg.norm(ways - predicted, axis=1) <= FAR
    return _least_squares(centres[near], ways[near]) if near.any() else (shift, scale)


def _least_squares(centres: np.ndarray, ways: np.ndarray) -> tuple[tuple[float, float], float]:
    around = centres - centres.mean(0)
    spread = float((around**2).sum())
    scale = float((around * (ways - ways.mean(0))).sum() / spread) if spread else math.nan
    row, column = ways.mean(0) - (scale if spread else 0) * centres.mean(0)
    return (float(row), float(column)), scale


def displacements_between(source: Gray, output: Gray, may_change: Gray) -> list[Displacement]:
    """The displacement of every block (rows x columns of gray values in 0..1) with texture and outside the mask."""
    height, width = source.shape
    side = max(8, int(BLOCK_SHARE * min(height, width)) // 2 * 2)
    step = max(1, side // STEPS_PER_BLOCK)
    found = []
    for top in range(0, height - side + 1, step):
        for left in range(0, width - side + 1, step):
            here = slice(top, top + side), slice(left, left + side)
            if may_change[here].any() or source[here].std() < MIN_TEXTURE:
                continue
            way = _follow(source[here], output, top, left)
            centre = (top + side / 2 - height / 2, left + side / 2 - width / 2)
            found.append(Displacement(centre, way))
    return found


def _follow(block: Gray, output: Gray, top: int, left: int) -> tuple[float, float]:
    """The way of a block's content, cut anew where it went, so that both windows show the same content."""
    side, (height, width) = len(block), output.shape
    down = right = 0
    way = (0.0, 0.0)
    for _ in range(ROUNDS):
        other = output[top + down : top + down + side, left + right : left + right + side]
        row, column = phase_correlation(block, other)
        way = (down + row, right + column)
        moved = (
            min(max(round(way[0]), -top), height - side - top),
            min(max(round(way[1]), -left), width - side - left),
        )
        if moved == (down, right):
            break
        down, right = moved
    return way


def phase_correlation(one: Gray, other: Gray) -> tuple[float, float]:
    """The shift (rows, columns) that takes `one` to `other`, squares of equal size, to a fraction of a pixel."""
    side = len(one)
    window = np.outer(np.hanning(side), np.hanning(side))
    spectra = [np.fft.fft2((image - image.mean()) * window) for image in (one, other)]
    product = spectra[1] * spectra[0].conj()
    magnitude = np.abs(product)
    product /= magnitude + EMPTY * magnitude.mean() + 1e-30
    frequencies = np.fft.fftfreq(side)
    # half a cosine: high frequencies are where decoders differ
    weight = np.cos(np.pi * frequencies)
    product *= np.outer(weight, weight)
    peak = np.unravel_index(np.argmax(np.fft.ifft2(product).real), product.shape)
    coarse = [place - side if place > side // 2 else place for place in map(int, peak)]
    offsets = np.arange(-UPSAMPLING, UPSAMPLING + 1) / UPSAMPLING
    rows, columns = (np.exp(2j * np.pi * np.outer(place + offsets, frequencies)) for place in coarse)
    fine = (rows @ product @ columns.T).real
    row, column = np.unravel_index(np.argmax(fine), fine.shape)
    return float(coarse[0] + offsets[row]), float(coarse[1] + offsets[column])


def _displacements(shown: Shown) -> list[Displacement]:
    source, output, may_change = _aligned(shown)
    return displacements_between(
        source.mean(0).double().numpy(), output.mean(0).double().numpy(), may_change.numpy()
    )


def _aligned(shown: Shown) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Original, drawn image and mask, all in the drawn image's size."""
    mask = read_image_file(shown.item.labels["mask"])
    if mask.shape != shown.inputs[0].shape:
        raise ConfigError(
            f"{shown.item.labels['mask']} is {mask.shape[2]}x{mask.shape[1]} and its image is "
            f"{shown.inputs[0].shape[2]}x{shown.inputs[0].shape[1]}: give a mask in the image's size"
        )
    source = same_size(shown.inputs[0], shown.output)
    return source, shown.output, same_size(mask, shown.output).mean(0) > 0.5


def _item(file: Path, number: int, line: dict) -> Item:
    where = f"{file}, line {number}"
    lacking = [name for name in ("id", "prompt", "images", "mask") if name not in line]
    if lacking:
        raise ConfigError(f'{where} lacks "{lacking[0]}": write lines like {FORM}')
    paths = [file.parent / str(name) for name in (*line["images"], line["mask"])]
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise ConfigError(f"{where}: there is no image {missing[0]}")
    *images, mask = paths
    if len(images) != 1:
        raise ConfigError(f"{where} has {len(images)} images: drift is measured against one")
    return Item(
        id=str(line["id"]),
        prompt=str(line["prompt"]),
        images=tuple(partial(read_image_file, path) for path in images),
        questions=tuple(Question(text=name) for name in (SHIFT, SCALE, OUTSIDE)),
        labels={"mask": mask},
    )
