"""Sample sheets: the images of a step in one row, below the input images of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..images import read_image_file, to_pixels
from .config import SampleConfig

_GAP = 4


def write_image(folder: Path, step: int, number: int, image: Image.Image) -> None:
    """Writes one image of a step."""
    path = _path(folder, step, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def write_sheet(folder: Path, step: int, samples: Sequence[SampleConfig]) -> Path:
    """Writes the sheet of a step from its images. Returns its path."""
    columns = [
        [*map(_opened, sample.images), _opened(_path(folder, step, number))]
        for number, sample in enumerate(samples)
    ]
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


def _path(folder: Path, step: int, number: int) -> Path:
    return folder / f"step-{step:07d}" / f"{number:02d}.png"


def _opened(path: Path) -> Image.Image:
    return Image.fromarray(to_pixels(read_image_file(path)[None])[0])
