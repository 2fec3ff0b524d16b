"""The effect of rewriting: the same prompts with and without it, from the same noise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean, variance

from ...evaluation.rates import Z_95
from ...evaluation.subject import Row, Sampling, Subject
from ..world import prompts
from .judging import Tally, row_of
from .text_to_image import Generated, generate_images
from .vlm import draw_scene

KINDS = ("indirect", "full")


def evaluate_verifi(subject: Subject, sampling: Sampling) -> Iterator[Row]:
    """`samples` indirect and `samples` full prompts, each with a held-out pair; the difference is taken per prompt."""
    for kind in KINDS:
        rng = sampling.rng(f"verifi {kind}")
        worded = [
            prompts.word_scene(rng, draw_scene(rng, kind, 1 + number % 3, held_out=True), kind)
            for number in range(sampling.samples)
        ]
        on, off = (
            generate_images(subject.pipeline, worded, rewriting=rewriting) for rewriting in (True, False)
        )
        yield _row(f"{kind} prompts, VERIFI on", on)
        yield _row(f"{kind} prompts, VERIFI off", off)
        yield Row(name="  on minus off", values=paired_difference(_exact(on), _exact(off)))


def paired_difference(one: Sequence[bool], other: Sequence[bool]) -> dict[str, float]:
    """Mean difference of paired results in percentage points, with the bounds of its normal 95 % interval."""
    differences = [100.0 * (a - b) for a, b in zip(one, other, strict=True)]
    middle = fmean(differences)
    reach = Z_95 * math.sqrt(variance(differences) / len(differences)) if len(differences) > 1 else math.inf
    return {"points": middle, "lower bound": middle - reach, "upper bound": middle + reach}


def _row(name: str, results: Sequence[Generated]) -> Row:
    return row_of(name, Tally(tuple(d.judgement for d in results)))


def _exact(results: Sequence[Generated]) -> list[bool]:
    return [d.judgement.exact for d in results]
