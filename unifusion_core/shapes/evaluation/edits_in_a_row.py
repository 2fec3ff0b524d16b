"""Suite "edits-in-a-row": ten edits of one image. How far does what none touches drift, and is each image readable?

A chain recolours one of two objects to and fro. Each image is drawn from the one before, which is handed on as a PNG file, as a
JPEG file, or as a PNG file with a mask around the object that changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

import torch
from jaxtyping import Float
from torch import Tensor

from ...contracts import Request
from ...evaluation.rates import Rate
from ...evaluation.subject import Row, Sampling, Subject
from ...images import Pixels, decode_image, encode_image
from ...pipeline import Pipeline, Start
from ..world.render import render
from ..world.requirements import Requirement
from ..world.scenes import CELL_CENTERS, COLORS, Scene, SceneObject, another, sample_source
from ..world.scorer import psnr, read_picture
from .judging import judge_reading

EDITS = 10
TOLD = (1, 2, 5, 10)
# half of the masked square, share of the side: an object with its offset and its soft edge
MASKED = 0.19


@dataclass
class _Step:
    """The images after one edit of every chain, against the first images."""

    exact: list[bool] = field(default_factory=list)
    readable: list[bool] = field(default_factory=list)
    outside: list[float] = field(default_factory=list)
    place: list[float] = field(default_factory=list)
    shade: list[float] = field(default_factory=list)

    def row(self, name: str) -> Row:
        error = max(fmean(10 ** (-each / 10) for each in self.outside), 1e-12)
        values = {"PSNR outside dB": -10 * math.log10(error)}
        if self.place:
            values |= {"place, % of the side": 100 * fmean(self.place), "shade, levels": fmean(self.shade)}
        rates = {
            "exact": Rate(sum(self.exact), len(self.exact)),
            "readable": Rate(sum(self.readable), len(self.readable)),
        }
        return Row(name=name, rates=rates, values=values)


def _as_file(file_format: str) -> Callable[[Pixels], Float[Tensor, "3 H W"]]:
    return lambda pixels: decode_image(encode_image(pixels, {}, file_format), file_format)


# name of a way -> how an image is handed on, and whether the rest is masked
WAYS: dict[str, tuple[Callable[[Pixels], Float[Tensor, "3 H W"]], bool]] = {
    "PNG files": (_as_file("PNG"), False),
    "JPEG files": (_as_file("JPEG"), False),
    "PNG files and a mask": (_as_file("PNG"), True),
}


def evaluate_edits_in_a_row(subject: Subject, sampling: Sampling) -> Iterator[Row]:
    """`samples` chains of ten edits in each way, the same chains and seeds in all."""
    for name, (hand_on, masked) in WAYS.items():
        rng = sampling.rng("edits in a row")
        scenes = [sample_source(rng, False, 2) for _ in range(sampling.samples)]
        colors = [another(rng, COLORS, scene.objects[0].color) for scene in scenes]
        for number, step in enumerate(
            _chains(subject.pipeline, scenes, colors, hand_on, masked=masked), start=1
        ):
            if number in TOLD:
                yield step.row(f"{name}, after {number}")


def _chains(
    pipeline: Pipeline,
    scenes: Sequence[Scene],
    colors: Sequence[str],
    hand_on: Callable[[Pixels], Float[Tensor, "3 H W"]],
    *,
    masked: bool,
) -> Iterator[_Step]:
    first = [render(scene) for scene in scenes]
    images = [hand_on(pixels) for pixels in first]
    for number in range(EDITS):
        step = _Step()
        for index, (scene, color) in enumerate(zip(scenes, colors, strict=True)):
            changed = scene.objects[0]
            wanted = (color, changed.color)[number % 2]
            prompt = f"make the {(changed.color, color)[number % 2]} {changed.shape} {wanted}"
            request = Request(prompt=prompt, images=[images[index]])
            starts = [Start(image=images[index], mask=_mask(changed, images[index]))] if masked else None
            (drawn,) = pipeline.generate([request], [1000 * index + number], starts=starts)
            target = replace(scene, objects=(replace(changed, color=wanted), *scene.objects[1:]))
            reading = read_picture(drawn.pixels)
            judged = judge_reading(reading, Requirement.of(target))
            step.exact.append(judged.exact)
            step.readable.append(reading.readable)
            away = 1 - _mask(changed, images[index])
            step.outside.append(psnr(drawn.pixels, first[index], away.numpy()))
            for kept in scene.objects[1:]:
                found = [
                    each
                    for each in reading.scene.objects
                    if (each.cell, each.shape) == (kept.cell, kept.shape)
                ]
                if found:
                    traits, own = found[0].traits, kept.traits
                    step.place.append(math.hypot(traits.dx - own.dx, traits.dy - own.dy))
                    step.shade.append(fmean(abs(a - b) for a, b in zip(traits.shade, own.shade, strict=True)))
            images[index] = hand_on(drawn.pixels)
        yield step


def _mask(obj: SceneObject, image: Float[Tensor, "3 H W"]) -> Float[Tensor, "H W"]:
    """1 in a square around the object's cell, 0 elsewhere."""
    height, width = image.shape[1:]
    y, x = (CELL_CENTERS[index] * side for index, side in zip(obj.cell, (height, width), strict=True))
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
    return ((rows - y).abs().maximum((columns - x).abs()) < MASKED * min(height, width)).float()
