"""What rewriting is worth: the same worded drawn with it and without it, from the same noise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean, variance

from ...evaluation.rates import Z_95
from ...evaluation.subject import Row, Sampling, Subject
from ..world import prompts
from .judging import Tally, row_of
from .text_to_image import Drawn, draw_pictures
from .vlm import draw_scene

KINDS = ("indirect", "full")


def evaluate_verifi(subject: Subject, sampling: Sampling) -> Iterator[Row]:
    """`samples` indirect and as many full prompts, each with a held-out pair; the difference is taken picture by picture."""
    for kind in KINDS:
        rng = sampling.rng(f"verifi {kind}")
        worded = [
            prompts.word_scene(rng, draw_scene(rng, kind, 1 + number % 3, held_out=True), kind)
            for number in range(sampling.samples)
        ]
        on, off = (
            draw_pictures(subject.pipeline, worded, rewriting=rewriting) for rewriting in (True, False)
        )
        yield _row(f"{kind} prompts, VERIFI on", on)
        yield _row(f"{kind} prompts, VERIFI off", off)
        yield Row(name="  on minus off", values=paired_difference(_exact(on), _exact(off)))


def paired_difference(one: Sequence[bool], other: Sequence[bool]) -> dict[str, float]:
    """How many points more of `one` than of `other` are right, pair by pair, with the bounds of a 95 % interval (normal)."""
    differences = [100.0 * (a - b) for a, b in zip(one, other, strict=True)]
    middle = fmean(differences)
    reach = Z_95 * math.sqrt(variance(differences) / len(differences)) if len(differences) > 1 else math.inf
    return {"points": middle, "lower bound": middle - reach, "upper bound": middle + reach}


def _row(name: str, drawn: Sequence[Drawn]) -> Row:
    return row_of(name, Tally(tuple(d.judgement for d in drawn)))


def _exact(drawn: Sequence[Drawn]) -> list[bool]:
    return [d.judgement.exact for d in drawn]
