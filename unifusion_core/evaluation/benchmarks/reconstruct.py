"""Reconstruction: an image in, the same out, from its image tokens alone, at 1, 5 and 10 tiles (paper, figure on tiles)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

from ...images import read_image_file
from .benchmark import Answers, Benchmark, Item, Question, Scores, Shown, Way, images_of
from .bootstrap import mean_interval
from .pixels import Image, Measure, PixelJudge, lpips, measured, psnr, same_size, ssim, why_no_lpips

PSNR = "PSNR dB"
TILE_COUNTS = (1, 5, 10)
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
# relative to one tile, read off the paper's figure
PAPER_LPIPS = {1: 1.0, 5: 0.775, 10: 0.515}
PAPER_NOTE = (
    "The paper's LPIPS are relative to one tile and were measured on images that it does not publish: compare how they "
    "fall, not the "
    "numbers."
)


class Reconstruct(Benchmark):
    """Every image of a folder at each number of tiles; no judge is asked."""

    name = "reconstruct"
    source = "a folder with images (png, jpg, webp)"

    def read(self, data: Path) -> list[Item]:
        files = sorted(p for p in data.rglob("*") if p.suffix.lower() in SUFFIXES) if data.is_dir() else []
        if not files:
            raise self.missing(data, "image")
        # with the ending where two images differ in nothing else
        named = {"-".join(path.relative_to(data).with_suffix("").parts): path for path in files}
        if len(named) < len(files):
            named = {"-".join(path.relative_to(data).parts): path for path in files}
        return [
            Item(
                id=f"{name}-{tiles}-tiles",
                source=name,
                prompt="",
                images=(partial(read_image_file, path),),
                questions=tuple(Question(text=name) for name in self.own_judge().measures),
                labels={"tiles": tiles},
                way=Way(rewriting=False, max_tiles=tiles),
            )
            for name, path in named.items()
            for tiles in TILE_COUNTS
        ]

    def own_judge(self) -> PixelJudge:
        measures = {PSNR: _between(psnr), "SSIM": _between(ssim)}
        return PixelJudge(measures if why_no_lpips() else measures | {"LPIPS": _between(lpips)})

    def score(self, items: Sequence[Item], answers: Answers) -> Scores:
        by_tiles: dict[int, dict[str, list[float]]] = {}
        of_images = {}
        for item, key in images_of(items, answers):
            columns = by_tiles.setdefault(item.labels["tiles"], {})
            for name, answer in answers[key].items():
                if not math.isnan(value := measured(answer)):
                    columns.setdefault(name, []).append(value)
                    if name == PSNR:
                        of_images[key] = value
        values, intervals, table = {}, {}, {}
        for tiles, columns in by_tiles.items():
            row = {name: fmean(column) for name, column in columns.items()}
            images = {"images": max(map(len, columns.values()), default=0)}
            table[f"{tiles} tiles"] = row | {"paper LPIPS": PAPER_LPIPS[tiles]} | images
            for name, column in columns.items():
                values[f"{name}, {tiles} tiles"] = row[name]
                intervals[f"{name}, {tiles} tiles"] = mean_interval(column)
        reason = why_no_lpips()
        return Scores(
            values=values,
            intervals=intervals,
            tables={"tiles": table},
            of_images=of_images,
            notes=(PAPER_NOTE, *([reason] if reason else [])),
        )


def _between(measure: Callable[[Image, Image], float]) -> Measure:
    def of_shown(shown: Shown) -> float:
        (source,) = shown.inputs
        return measure(same_size(source, shown.output), shown.output)

    return of_shown
