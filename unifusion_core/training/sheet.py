"""Sample sheets: the images of a step in one row, below the input images of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..images import read_image_file, to_pixels
from .config import SampleConfig

_GAP = 4


def write_sheet(
    folder: Path, step: int, samples: Sequence[SampleConfig], images: Sequence[Image.Image]
) -> Path:
    """Writes the images of a step, one file each, and a sheet of all of them. Returns the sheet."""
    columns: list[list[Image.Image]] = []
    for number, (sample, image) in enumerate(zip(samples, images, strict=True)):
        single = folder / f"step-{step:07d}" / f"{number:02d}.png"
        single.parent.mkdir(parents=True, exist_ok=True)
        image.save(single)
        controls = [Image.fromarray(to_pixels(read_image_file(path)[None])[0]) for path in sample.images]
        columns.append([*controls, image])
    width = max(image.width for column in columns for image in column)
    height = max(sum(image.height + _GAP for image in column) for column in columns)
    sheet = Image.new("RGB", (len(columns) * (width + _GAP), height), "white")
    for number, column in enumerate(columns):
        top = height
        # the drawn images share the bottom row
        for image in reversed(column):
            top -= image.height + _GAP
            sheet.paste(image, (number * (width + _GAP), top))
    path = folder / f"step-{step:07d}.png"
    sheet.save(path)
    return path
