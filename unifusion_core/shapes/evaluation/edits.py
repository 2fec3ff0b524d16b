"""Edits and references: whether the image shows what the instruction asks for, and whether the rest is unchanged.

Every image is generated twice from the same noise, with the image tokens and without them. The words contain all named
properties, so only the unnamed traits of untouched objects (place, size, shade) can show that the generator uses the image
tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev

import numpy as np
from tqdm import tqdm

from ...contracts import Request
from ...evaluation.drawing import Attempt, generate_attempts
from ...evaluation.rates import Z_95
from ...evaluation.subject import Row, Sampling, Subject, chunks
from ...images import Pixels
from ...pipeline import Pipeline
from ..world import edits
from ..world.edit_wordings import Edit
from ..world.render import object_geometry, render, render_tensor
from ..world.requirements import Requirement
from ..world.scenes import ASPECT_SIZES, Scene, SceneObject, sample_scene
from ..world.scorer import TraitError, psnr, read_picture, trait_errors
from .judging import Judgement, Tally, judge_failure, judge_reading

BATCH = 16
SIZE = ASPECT_SIZES[0]
# pixels around an object's bounding box that its soft edge covers
MARGIN = 3
REFERENCES = {
    "two references": ("object_on_background", "object_into"),
    "three references": ("two_objects_on_background",),
}
TRAITS = ("place", "radius", "shade")
# of the side; an object that is farther off has another named place, which is no unnamed trait
HALF_A_CELL = 1 / 6
TILE_COUNTS = (1, 5, 10)


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two images of an instruction.

    traits   errors of the objects that should not have changed
    outside  PSNR (dB) against the source outside the objects that change
    """

    judgement: Judgement
    traits: tuple[TraitError, ...] = ()
    outside: float | None = None


@dataclass
class Group:
    """The images of several instructions, generated with image tokens (`seeing`) and without (`blind`)."""

    seeing: list[Side] = field(default_factory=list)
    blind: list[Side] = field(default_factory=list)

    def __add__(self, other: Group) -> Group:
        return Group(self.seeing + other.seeing, self.blind + other.blind)

    def row(self, name: str) -> Row:
        """Rates of the seeing side, exact share of the blind side, errors of traits of both, and the ratio of the errors."""
        values = {"exact without pictures %": 100 * _tally(self.blind).rate().share}
        ratios = []
        for trait, unit, scale in zip(TRAITS, ("% of the side", "%", "levels"), (100, 100, 1), strict=True):
            seeing, blind = (
                [getattr(error, trait) for side in sides for error in side.traits]
                for sides in (self.seeing, self.blind)
            )
            if seeing and blind:
                values[f"{trait}, {unit}"] = scale * fmean(seeing)
                values[f"{trait} without pictures"] = scale * fmean(blind)
                ratios.append(fmean(seeing) / fmean(blind))
        if ratios:
            values["error of traits / without pictures"] = fmean(ratios)
        outside = [side.outside for side in self.seeing if side.outside is not None]
        if outside:
            # PSNR of the mean error, since the mean of PSNRs is infinite if one background is exact to the bit
            values["PSNR outside dB"] = -10 * math.log10(
                max(fmean(10 ** (-each / 10) for each in outside), 1e-12)
            )
        return Row(name=name, rates=_tally(self.seeing).rates(), values=values)


def evaluate_edits(subject: Subject, sampling: Sampling) -> Iterator[Row]:
    """Edits of one image, references to two and three images (never trained), and reconstruction at 1, 5 and 10 tiles.

    Each group has `samples` items, whose targets have a held-out pair. The VLM rewrites the instructions at 10 tiles.
    """
    pipeline = subject.pipeline
    for title, kinds in {"edits": edits.EDIT_KINDS, **REFERENCES}.items():
        together = Group()
        for number, kind in enumerate(kinds):
            rng = sampling.rng(f"edits {kind}")
            count = len(range(number, sampling.samples, len(kinds)))
            group = generate_group(
                pipeline, [edits.sample_instruction(rng, kind, True) for _ in range(count)]
            )
            together += group
            if len(kinds) > 1:
                yield group.row(f"  {kind}")
        yield together.row(title)
    rng = sampling.rng("edits reconstruction")
    scenes = [sample_scene(rng, held_out=True).in_raster_order() for _ in range(sampling.samples)]
    fewest: list[float] = []
    for tiles in TILE_COUNTS:
        row, likeness = reconstruct(pipeline, scenes, tiles)
        fewest = fewest or likeness
        if likeness is not fewest:
            gains = [more - less for more, less in zip(likeness, fewest, strict=True)]
            row.values.update({"dB above 1 tile": fmean(gains), "its interval dB": mean_interval(gains)})
        yield row


def generate_group(pipeline: Pipeline, instructions: Sequence[Edit]) -> Group:
    """Both images of each instruction, number i from seed i."""
    group = Group()
    bar = tqdm(total=len(instructions), desc="edits", leave=False, disable=None)
    for part in chunks(list(enumerate(instructions)), BATCH):
        requests = [
            Request(prompt=e.instruction, images=[render_tensor(s, *SIZE) for s in e.sources])
            for _, e in part
        ]
        attempts = generate_attempts(
            pipeline, requests, [seed for seed, _ in part], rewriting=True, blind=True
        )
        for (_, edit), attempt in zip(part, attempts, strict=True):
            group.seeing.append(judge(edit, attempt.picture))
            group.blind.append(judge(edit, attempt.blind))
        bar.update(len(part))
    bar.close()
    return group


def reconstruct(pipeline: Pipeline, scenes: Sequence[Scene], tiles: int) -> tuple[Row, list[float]]:
    """Images generated from their own image tokens without words, and the PSNR (dB) of each."""
    judgements, likeness = [], []
    settings = pipeline.settings(max_tiles=tiles)
    for part in chunks(list(enumerate(scenes)), BATCH):
        requests = [Request(prompt="", images=[render_tensor(scene, *SIZE)]) for _, scene in part]
        attempts: list[Attempt] = generate_attempts(
            pipeline, requests, [seed for seed, _ in part], rewriting=False, settings=settings
        )
        for (_, scene), attempt in zip(part, attempts, strict=True):
            assert attempt.picture is not None, "only a rewrite can fail"
            judgements.append(judge_reading(read_picture(attempt.picture), Requirement.of(scene)))
            likeness.append(psnr(attempt.picture, render(scene, *SIZE)))
    values = {"PSNR dB": fmean(likeness), "PSNR interval dB": mean_interval(likeness)}
    rates = Tally(tuple(judgements)).rates()
    return Row(name=f"reconstruction, {tiles} tiles", rates=rates, values=values), likeness


def mean_interval(values: Sequence[float]) -> float:
    """Half the width of the 95 % interval of the mean; infinite for one value."""
    return Z_95 * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf


def judge(edit: Edit, picture: Pixels | None) -> Side:
    """Compare an image with its target; without an image everything is wrong."""
    if picture is None:
        return Side(judgement=judge_failure(edit.requirement))
    reading = read_picture(picture)
    traits = trait_errors(
        reading.scene, Scene(objects=edit.untouched, background=edit.target.background), size=SIZE
    )
    outside = None
    if edit.kind in edits.EDIT_KINDS and edit.kind != "background":
        (source,) = edit.sources
        mask = outside_of(set(source.objects) ^ set(edit.target.objects))
        outside = psnr(picture, render(source, *SIZE), mask)
    near = tuple(error for error in traits.matched if error.place < HALF_A_CELL)
    return Side(judgement=judge_reading(reading, edit.requirement), traits=near, outside=outside)


def outside_of(objects: set[SceneObject]) -> np.ndarray:
    """True where none of the objects is, in an image of `SIZE`."""
    width, height = SIZE
    mask = np.ones((height, width), dtype=bool)
    for obj in objects:
        x, y, radius = object_geometry(obj, width, height)
        reach = radius + MARGIN
        rows = slice(max(0, int(y - reach)), int(y + reach) + 1)
        mask[rows, max(0, int(x - reach)) : int(x + reach) + 1] = False
    return mask


def _tally(sides: Sequence[Side]) -> Tally:
    return Tally(tuple(side.judgement for side in sides))
