"""Suite "edits-in-a-row": ten edits of one image. How far does what none touches drift, and is each image readable?

A chain recolours one of two objects to and fro. Each image is drawn from the one before, which is handed on as a PNG file, as a
JPEG file, as numbers that nothing rounds, or as a PNG file with a mask around the object that changes. The difference of these is
what rounding and files add. The rows of the autoencoder alone encode and decode the first image ten times, without any edit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

import torch
from jaxtyping import Float
from torch import Tensor

from ...checkpoints.vae_file import AnyAutoencoder
from ...contracts import Request
from ...evaluation.rates import Rate
from ...evaluation.subject import Row, Sampling, Subject
from ...images import Pixels, decode_image, encode_image, to_pixels, to_tensor
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
class Step:
    """The images after one edit of every chain, against the first images."""

    exact: list[bool] = field(default_factory=list)
    readable: list[bool] = field(default_factory=list)
    outside: list[float] = field(default_factory=list)
    moved: list[tuple[float, float]] = field(default_factory=list)
    shade: list[float] = field(default_factory=list)

    def add(
        self,
        drawn: Float[Tensor, "3 H W"],
        target: Scene,
        first: Pixels,
        *,
        kept: Sequence[SceneObject],
        mask: Float[Tensor, "H W"],
    ) -> None:
        """One image: `target` is what it should show, `kept` the objects that no edit touched, `mask` 1 where one may."""
        (pixels,) = to_pixels(drawn[None])
        reading = read_picture(pixels)
        self.exact.append(judge_reading(reading, Requirement.of(target)).exact)
        self.readable.append(reading.readable)
        self.outside.append(psnr(pixels, first, (1 - mask).numpy()))
        for each in kept:
            found = [o for o in reading.scene.objects if (o.cell, o.shape) == (each.cell, each.shape)]
            if found:
                traits, own = found[0].traits, each.traits
                self.moved.append((traits.dx - own.dx, traits.dy - own.dy))
                self.shade.append(fmean(abs(a - b) for a, b in zip(traits.shade, own.shade, strict=True)))

    def row(self, name: str) -> Row:
        error = max(fmean(10 ** (-each / 10) for each in self.outside), 1e-12)
        values = {"PSNR outside dB": -10 * math.log10(error)}
        if self.moved:
            values |= {
                "place, % of the side": 100 * fmean(math.hypot(*each) for each in self.moved),
                # what all have in common: a resampling that is off by half a pixel would move all alike
                "of it common to all": 100
                * math.hypot(*(fmean(each) for each in zip(*self.moved, strict=True))),
                "shade, levels": fmean(self.shade),
            }
        rates = {
            "exact": Rate(sum(self.exact), len(self.exact)),
            "readable": Rate(sum(self.readable), len(self.readable)),
        }
        return Row(name=name, rates=rates, values=values)


# what is drawn next gets an image by way of this
HandOn = Callable[[Float[Tensor, "3 H W"]], Float[Tensor, "3 H W"]]


def _as_file(file_format: str) -> HandOn:
    def hand_on(image: Float[Tensor, "3 H W"]) -> Float[Tensor, "3 H W"]:
        (pixels,) = to_pixels(image[None])
        return decode_image(encode_image(pixels, {}, file_format), file_format)

    return hand_on


def _unrounded(image: Float[Tensor, "3 H W"]) -> Float[Tensor, "3 H W"]:
    return image.clamp(0, 1)


# name of a way -> how an image is handed on, and whether the rest is masked
WAYS: dict[str, tuple[HandOn, bool]] = {
    "PNG files": (_as_file("PNG"), False),
    "JPEG files": (_as_file("JPEG"), False),
    "nothing rounded": (_unrounded, False),
    "PNG files and a mask": (_as_file("PNG"), True),
}
ALONE: dict[str, HandOn] = {
    "autoencoder alone, PNG files": _as_file("PNG"),
    "autoencoder alone, nothing rounded": _unrounded,
}


def evaluate_edits_in_a_row(subject: Subject, sampling: Sampling) -> Iterator[Row]:
    """`samples` chains of ten edits in each way, the same chains and seeds in all."""
    rng = sampling.rng("edits in a row")
    scenes = [sample_source(rng, False, 2) for _ in range(sampling.samples)]
    colors = [another(rng, COLORS, scene.objects[0].color) for scene in scenes]
    for name, (hand_on, masked) in WAYS.items():
        yield from _told(name, edit_chains(subject.pipeline, scenes, colors, hand_on, masked=masked))
    for name, hand_on in ALONE.items():
        yield from _told(name, _copies(subject.autoencoder, scenes, hand_on))


def _told(name: str, steps: Iterator[Step]) -> Iterator[Row]:
    for number, step in enumerate(steps, start=1):
        if number in TOLD:
            yield step.row(f"{name}, after {number}")


def edit_chains(
    pipeline: Pipeline, scenes: Sequence[Scene], colors: Sequence[str], hand_on: HandOn, *, masked: bool
) -> Iterator[Step]:
    """One step after the other of all chains: the first object of each scene gets the color, and its own again, and so on."""
    first = [render(scene) for scene in scenes]
    images = [hand_on(to_tensor(pixels)) for pixels in first]
    for number in range(EDITS):
        step = Step()
        for index, (scene, color) in enumerate(zip(scenes, colors, strict=True)):
            changed = scene.objects[0]
            wanted = (color, changed.color)[number % 2]
            prompt = f"make the {(changed.color, color)[number % 2]} {changed.shape} {wanted}"
            request = Request(prompt=prompt, images=[images[index]])
            starts = [Start(image=images[index], mask=_mask(changed, images[index]))] if masked else None
            (rewrite,) = pipeline.rewrite_requests([request])
            (drawn,) = pipeline.sample_unrounded(rewrite.features, [1000 * index + number], starts=starts)
            target = replace(scene, objects=(replace(changed, color=wanted), *scene.objects[1:]))
            step.add(drawn, target, first[index], kept=scene.objects[1:], mask=_mask(changed, drawn))
            images[index] = hand_on(drawn)
        yield step


def _copies(autoencoder: AnyAutoencoder, scenes: Sequence[Scene], hand_on: HandOn) -> Iterator[Step]:
    """Copies of copies of the first images, ten times encoded and decoded. No object changes."""
    first = [render(scene) for scene in scenes]
    images = [hand_on(to_tensor(pixels)) for pixels in first]
    for _ in range(EDITS):
        step = Step()
        for index, scene in enumerate(scenes):
            with torch.no_grad():
                (copy,) = autoencoder.decode(autoencoder.encode(images[index][None]))
            nothing = torch.zeros(copy.shape[1:])
            step.add(copy.cpu(), scene, first[index], kept=scene.objects, mask=nothing)
            images[index] = hand_on(copy.cpu())
        yield step


def _mask(obj: SceneObject, image: Float[Tensor, "3 H W"]) -> Float[Tensor, "H W"]:
    """1 in a square around the object's cell, 0 elsewhere."""
    height, width = image.shape[1:]
    y, x = (CELL_CENTERS[index] * side for index, side in zip(obj.cell, (height, width), strict=True))
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
    return ((rows - y).abs().maximum((columns - x).abs()) < MASKED * min(height, width)).float()
