"""How well a model has learned the style of `shapes.examples`, and what it kept of what it could do before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ...contracts import Request
from ...evaluation.drawing import Attempt, generate_attempts
from ...evaluation.rates import Rate
from ...evaluation.subject import Row, Sampling, Subject
from ..examples import DRAWN_AS, STYLED, sample_styled
from ..world import prompts
from ..world.requirements import check
from ..world.scorer import read_picture

BATCH = 16


def evaluate_style(subject: Subject, sampling: Sampling) -> Iterator[Row]:
    """`samples` prompts that name the style, and as many whose rewrite does not."""
    yield _row("the style is named", *_draw(subject, sampling, styled=True))
    yield _row("other prompts", *_draw(subject, sampling, styled=False))


def _draw(
    subject: Subject, sampling: Sampling, *, styled: bool
) -> tuple[list[prompts.Wording], list[Attempt], bool]:
    """Prompts and the attempts to draw them."""
    pipeline = subject.pipeline
    rng = sampling.rng(f"style-{styled}")
    wordings: list[prompts.Wording] = []
    attempts: list[Attempt] = []
    while len(attempts) < sampling.samples:
        drawn = [prompts.word_scene(rng, sample_styled(rng, styled), "full") for _ in range(BATCH)]
        done = generate_attempts(
            pipeline,
            [Request(prompt=each.text) for each in drawn],
            list(range(len(attempts), len(attempts) + BATCH)),
            rewriting=True,
        )
        for wording, attempt in zip(drawn, done, strict=True):
            # a rewrite that wrongly says or leaves out the style's word would count the VLM's mistake
            if (STYLED in (attempt.words or "")) == styled:
                wordings.append(wording)
                attempts.append(attempt)
    return wordings[: sampling.samples], attempts[: sampling.samples], styled


def _row(name: str, wordings: Sequence[prompts.Wording], attempts: Sequence[Attempt], styled: bool) -> Row:
    background = exact = 0
    for wording, attempt in zip(wordings, attempts, strict=True):
        if attempt.picture is None:
            continue
        reading = read_picture(attempt.picture)
        wanted = replace(wording.requirement, background=DRAWN_AS) if styled else wording.requirement
        background += reading.background_clean and reading.scene.background == wanted.background
        exact += reading.readable and check(wanted, reading.scene).exact
    total = len(wordings)
    return Row(name=name, rates={"background": Rate(background, total), "exact": Rate(exact, total)})
