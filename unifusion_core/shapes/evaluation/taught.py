"""How well a model has learned the eighth colour or the new edit of `shapes.examples`, and what it kept of the old ones.

Prompts are read as they are: the embedded VLM cannot rewrite what it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ...contracts import Request
from ...evaluation.drawing import generate_as_is
from ...evaluation.rates import Rate
from ...evaluation.subject import Row, Sampling, Subject
from ...images import Pixels
from ..examples import (
    NEW_COLOR,
    SIZE,
    STAND_IN,
    read_with_color,
    sample_paint,
    sample_with_color,
    word_color,
)
from ..world import edits, prompts
from ..world.render import render_tensor
from ..world.requirements import Requirement, check
from ..world.scorer import Reading, read_picture

BATCH = 16


def evaluate_color(subject: Subject, sampling: Sampling) -> Iterator[Row]:
    """`samples` prompts with an object in the new colour, and as many in old colours."""
    for name, new in (("the new colour", True), ("old colours", False)):
        rng = sampling.rng(f"color-{new}")
        wordings = [
            prompts.word_scene(rng, sample_with_color(rng, new), "full") for _ in range(sampling.samples)
        ]
        images = _draw(subject, [Request(prompt=word_color(each.text)) for each in wordings])
        readings = [read_with_color(image) for image in images]
        wanted = [_in_new_color(each.requirement) for each in wordings]
        yield _row(name, wanted, readings, NEW_COLOR)


def evaluate_paint(subject: Subject, sampling: Sampling) -> Iterator[Row]:
    """`samples` edits of the new kind, and as many of the kinds that the model was trained on."""
    rng = sampling.rng("paint")
    painted = [sample_paint(rng) for _ in range(sampling.samples)]
    images = _draw(
        subject,
        [
            Request(prompt=text, images=[render_tensor(source.in_raster_order(), *SIZE)])
            for text, source, _ in painted
        ],
    )
    wanted = [Requirement.of(target) for _, _, target in painted]
    yield _row("the new edit", wanted, [read_picture(image) for image in images])

    rng = sampling.rng("paint-old")
    known = [edits.sample_edit(rng, rng.choice(edits.EDIT_KINDS)) for _ in range(sampling.samples)]
    images = _draw(
        subject,
        [
            Request(prompt=each.instruction, images=[render_tensor(each.sources[0].in_raster_order(), *SIZE)])
            for each in known
        ],
    )
    wanted = [Requirement.of(each.target) for each in known]
    yield _row("old edits", wanted, [read_picture(image) for image in images])


def _draw(subject: Subject, requests: list[Request]) -> list[Pixels]:
    starts = range(0, len(requests), BATCH)
    return [
        image
        for start in starts
        for image in generate_as_is(
            subject.pipeline,
            requests[start : start + BATCH],
            list(range(start, min(start + BATCH, len(requests)))),
        )
    ]


def _in_new_color(requirement: Requirement) -> Requirement:
    objects = tuple(
        replace(each, color=NEW_COLOR) if each.color == STAND_IN else each for each in requirement.objects
    )
    return replace(requirement, objects=objects)


def _row(name: str, wanted: list[Requirement], readings: list[Reading], new_color: str | None = None) -> Row:
    """The share of exact images, of right colours, and of right colours among the objects in the new one."""
    verdicts = [check(want, reading.scene) for want, reading in zip(wanted, readings, strict=True)]
    exact = [v.exact and reading.readable for v, reading in zip(verdicts, readings, strict=True)]
    rates = {"exact": Rate(sum(exact), len(exact))}
    colors = [
        (each.color, right)
        for want, verdict in zip(wanted, verdicts, strict=True)
        for each, right in zip(want.objects, verdict.color, strict=True)
    ]
    new = [right for color, right in colors if color == new_color]
    if new:
        rates[f"{new_color} objects"] = Rate(sum(new), len(new))
    old = [right for color, right in colors if color != new_color]
    rates["other colours" if new else "colours"] = Rate(sum(old), len(old))
    return Row(name=name, rates=rates)
