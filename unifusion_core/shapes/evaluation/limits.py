"""Suite "limits": everyday prompts inside and outside of the model's world. Is each drawn right, or said to be outside?

`everyday.json` has the prompts. Those inside have what they fix: objects separated by ";", each with its words and "@ place",
then "| background" and "& relations" between objects by number.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...contracts import Request
from ...evaluation.drawing import generate_attempts
from ...evaluation.rates import Rate
from ...evaluation.subject import Row, Sampling, Subject
from ...images import to_tensor
from ...pipeline import Pipeline
from ..world.captions import parse_caption
from ..world.render import render
from ..world.requirements import ObjectRequirement, Requirement
from ..world.scenes import COLORS, POSITIONS, SHAPES, SIZES
from .judging import judge_failure, judge_picture

PROMPTS = Path(__file__).with_name("everyday.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Everyday:
    """A prompt, the images that it is about, and what it fixes; None = it is outside of what the model was trained on."""

    request: Request
    requirement: Requirement | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a prompt. `right` is None if nothing in its world would be right."""

    prompt: str
    warnings: tuple[str, ...]
    right: bool | None
    words: str | None

    @property
    def fine(self) -> bool:
        """Drawn right, or said to be outside."""
        return bool(self.right) or bool(self.warnings)


def evaluate_limits(subject: Subject, sampling: Sampling) -> Iterator[Row]:
    """Each prompt once, from one seed. Ignores the number of samples."""
    prompts = everyday_prompts()
    outcomes = [draw(subject.pipeline, each, sampling.seed) for each in prompts]
    inside = [each for each in outcomes if each.right is not None]
    outside = [each for each in outcomes if each.right is None]
    yield Row(
        name="in its world",
        rates={
            "exact": _rate(each.right for each in inside),
            "warned": _rate(each.warnings for each in inside),
        },
    )
    yield Row(name="outside of it", rates={"warned": _rate(each.warnings for each in outside)})
    yield Row(
        name="all, drawn right or said to be outside",
        rates={
            "exact": _rate(each.fine for each in outcomes),
            "silent wrong": _rate(not each.fine for each in outcomes),
        },
    )


def _rate(answers: Iterator[Any]) -> Rate:
    known = [bool(each) for each in answers]
    return Rate(sum(known), len(known))


def draw(pipeline: Pipeline, everyday: Everyday, seed: int = 0) -> Outcome:
    """Asks for the warnings about a prompt, and draws it if it is in the model's world."""
    warnings = tuple(pipeline.outside(everyday.request))
    right, words = None, None
    if everyday.requirement is not None:
        (done,) = generate_attempts(pipeline, [everyday.request], [seed], rewriting=True)
        judged = (
            judge_failure(everyday.requirement)
            if done.picture is None
            else judge_picture(done.picture, everyday.requirement)
        )
        right, words = judged.exact, done.words
    return Outcome(prompt=everyday.request.prompt, warnings=warnings, right=right, words=words)


def everyday_prompts() -> list[Everyday]:
    """The committed prompts."""
    content = json.loads(PROMPTS.read_text(encoding="utf-8"))
    found = [Everyday(request=Request(prompt=p), requirement=parse(fixed)) for p, fixed in content["draw"]]
    found += [
        Everyday(request=Request(prompt=p, images=[_picture(shown)]), requirement=parse(fixed))
        for shown, p, fixed in content["edit"]
    ]
    found += [Everyday(request=Request(prompt=p), requirement=None) for p in content["outside"]]
    return found + [
        Everyday(request=Request(prompt=p, images=[_picture(shown)]), requirement=None)
        for shown, p in content["outside edit"]
    ]


def _picture(caption: str) -> torch.Tensor:
    scene = parse_caption(caption)
    assert scene is not None, caption
    return to_tensor(render(scene))


def parse(text: str) -> Requirement:
    """What a prompt fixes, in the notation of this file."""
    text, _, relations = text.partition("&")
    objects, _, background = text.partition("|")
    return Requirement(
        objects=tuple(_object(each) for each in objects.split(";")),
        relations=tuple(_relation(each.split()) for each in relations.split("&") if each.strip()),
        background=background.strip() or None,
    )


def _object(text: str) -> ObjectRequirement:
    words, _, place = text.partition("@")

    def one_of(names: Sequence[str]) -> str | None:
        return next((word for word in words.split() if word in names), None)

    unknown = [word for word in words.split() if word not in (*SIZES, *COLORS, *SHAPES)]
    assert not unknown, unknown
    return ObjectRequirement(
        shape=one_of(SHAPES),
        color=one_of(tuple(COLORS)),
        size=one_of(tuple(SIZES)),
        cell=POSITIONS[place.strip()] if place else None,
    )


def _relation(words: Sequence[str]) -> tuple[int, str, int]:
    return int(words[0]), " ".join(words[1:-1]), int(words[-1])
