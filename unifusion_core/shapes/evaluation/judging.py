"""Judging pictures and captions against what was asked for, and counting with confidence intervals."""

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
    """What one picture or caption got right. Unreadable is never exact, whatever the best guess at it says."""

    requirement: Requirement
    verdict: Verdict
    readable: bool

    @property
    def exact(self) -> bool:
        """All that was asked for holds, and nothing more is there."""
        return self.readable and self.verdict.exact

    def counted(self, name: str) -> tuple[bool, ...]:
        """The yes and no answers about one of `COUNTED`.

        Shape, colour, size and position have one per object that fixes it, background and relations none if open.
        """
        if name in ("exact", "readable"):
            return (getattr(self, name),)
        answer = getattr(self.verdict, name)
        if answer is None:
            return ()
        return answer if isinstance(answer, tuple) else (answer,)


@dataclass(frozen=True, slots=True)
class Tally:
    """Judgements, in the order of what was judged, and the rates over them."""

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
        """Share of the named properties that a picture got right, readable or not: the mean over pictures, and half the width of
        its 95 % interval. It tells weak models apart, of which none draws a picture that is exact."""
        shares = []
        for judgement in self.judgements:
            answers = [answer for name in PROPERTIES for answer in judgement.counted(name)]
            shares.append(sum(answers) / len(answers))
        reach = Z_95 * stdev(shares) / math.sqrt(len(shares)) if len(shares) > 1 else math.inf
        return fmean(shares), reach

    def rates(self) -> dict[str, Rate]:
        """All rates of which anything was counted."""
        return {name: rate for name in COUNTED if (rate := self.rate(name)).total}


def judge_picture(pixels: np.ndarray, requirement: Requirement) -> Judgement:
    """Read a picture (height, width, 3) of uint8 from its pixels alone, and compare."""
    return judge_reading(read_picture(pixels), requirement)


def judge_reading(reading: Reading, requirement: Requirement) -> Judgement:
    """For a picture that was read already."""
    return Judgement(
        requirement=requirement, verdict=check(requirement, reading.scene), readable=reading.readable
    )


def judge_caption(text: str, requirement: Requirement) -> Judgement:
    """Parse a caption strictly, and compare."""
    scene = parse_caption(text.strip())
    return Judgement(
        requirement=requirement, verdict=check(requirement, scene or NOTHING), readable=scene is not None
    )


def judge_failure(requirement: Requirement) -> Judgement:
    """Nothing came out at all: everything is wrong."""
    return judge_caption("", requirement)


def score_pictures(pictures: Sequence[np.ndarray], requirements: Sequence[Requirement]) -> Tally:
    """Judge pictures, each (height, width, 3) of uint8, against what was asked for."""
    return Tally(tuple(judge_picture(p, r) for p, r in zip(pictures, requirements, strict=True)))


def score_captions(texts: Sequence[str], requirements: Sequence[Requirement]) -> Tally:
    """Judge captions against what was asked for."""
    return Tally(tuple(judge_caption(t, r) for t, r in zip(texts, requirements, strict=True)))


def row_of(name: str, tally: Tally) -> Row:
    """A row with all rates of a tally."""
    return Row(name=name, rates=tally.rates())
