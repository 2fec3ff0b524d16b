"""Judge images and captions against requirements, and count with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

from ...evaluation.rates import Z_95, Rate
from ...evaluation.subject import Row
from ..world.captions import parse_caption
from ..world.requirements import Requirement, Verdict, check
from ..world.scenes import Scene
from ..world.scorer import Reading, read_picture

NOTHING = Scene(objects=(), background="")
PROPERTIES = ("count", "background", "shape", "color", "size", "position")
COUNTED = ("exact", "readable", "count", "background", "shape", "color", "size", "position", "relations")


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What one image or caption got right. An unreadable one is never exact, even if its best guess is."""

    requirement: Requirement
    verdict: Verdict
    readable: bool

    @property
    def exact(self) -> bool:
        """Readable, everything required is there, and nothing more."""
        return self.readable and self.verdict.exact

    def counted(self, name: str) -> tuple[bool, ...]:
        """Right or wrong for one of `COUNTED`.

        Shape, colour, size and position have one value per object that fixes them. A background that is left open and missing
        relations have none.
        """
        if name in ("exact", "readable"):
            return (getattr(self, name),)
        answer = getattr(self.verdict, name)
        if answer is None:
            return ()
        return answer if isinstance(answer, tuple) else (answer,)


@dataclass(frozen=True, slots=True)
class Tally:
    """Judgements in order, and the rates over them."""

    judgements: tuple[Judgement, ...]

    def __len__(self) -> int:
        return len(self.judgements)

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.judgements + other.judgements)

    def rate(self, name: str = "exact") -> Rate:
        """The rate of one of `COUNTED`."""
        answers = [a for j in self.judgements for a in j.counted(name)]
        return Rate(sum(answers), len(answers))

    def properties(self) -> tuple[float, float]:
        """Mean share of right named properties per image, readable or not, and half the width of its 95 % interval.

        It distinguishes weak models, which generate no exact images.
        """
        shares = [judgement.verdict.properties for judgement in self.judgements]
        reach = Z_95 * stdev(shares) / math.sqrt(len(shares)) if len(shares) > 1 else math.inf
        return fmean(shares), reach

    def rates(self) -> dict[str, Rate]:
        """The rates of `COUNTED` that have at least one value."""
        return {name: rate for name in COUNTED if (rate := self.rate(name)).total}


def judge_picture(pixels: np.ndarray, requirement: Requirement) -> Judgement:
    """Read an image (height, width, 3) of uint8, and compare it with a requirement."""
    return judge_reading(read_picture(pixels), requirement)


def judge_reading(reading: Reading, requirement: Requirement) -> Judgement:
    """Compare an image that is already read with a requirement."""
    return Judgement(
        requirement=requirement, verdict=check(requirement, reading.scene), readable=reading.readable
    )


def judge_caption(text: str, requirement: Requirement) -> Judgement:
    """Parse a caption strictly, and compare it with a requirement."""
    scene = parse_caption(text.strip())
    return Judgement(
        requirement=requirement, verdict=check(requirement, scene or NOTHING), readable=scene is not None
    )


def judge_failure(requirement: Requirement) -> Judgement:
    """The judgement of a missing image: everything is wrong."""
    return judge_caption("", requirement)


def score_pictures(pictures: Sequence[np.ndarray], requirements: Sequence[Requirement]) -> Tally:
    """Judge images (height, width, 3) of uint8, each against its requirement."""
    return Tally(tuple(judge_picture(p, r) for p, r in zip(pictures, requirements, strict=True)))


def score_captions(texts: Sequence[str], requirements: Sequence[Requirement]) -> Tally:
    """Judge captions, each against its requirement."""
    return Tally(tuple(judge_caption(t, r) for t, r in zip(texts, requirements, strict=True)))


def row_of(name: str, tally: Tally) -> Row:
    """A row with all rates of a tally."""
    return Row(name=name, rates=tally.rates())
