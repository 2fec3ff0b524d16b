"""Text to image with free prompts and full captions, on held-out and seen pairs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from ...contracts import Request
from ...evaluation.drawing import generate_attempts
from ...evaluation.subject import Row, Sampling, Subject, chunks
from ...pipeline import Pipeline
from ...zoo.tiny import TINY
from ..world import prompts
from .judging import Judgement, Tally, judge_failure, judge_picture, row_of
from .vlm import draw_scene

BATCH = 16
# every kind of prompt with every number of objects that it allows
CASES = [
    (kind, count)
    for kind, count in product(("full", "terse", "caption", "indirect", "relation", "count"), (1, 2, 3))
    if count > 1 or kind not in ("relation", "count")
]
SHEET_COLUMNS, SHEET_ROWS = 6, 4
FRAME, LABEL_HEIGHT, LETTERS_PER_LINE = 3, 66, 28
RIGHT, WRONG = (30, 160, 60), (215, 40, 40)


@dataclass(frozen=True, kw_only=True)
class Generated:
    """The result of a prompt; `picture` is None if the rewrite failed."""

    wording: prompts.Wording
    rewrite: str | None
    picture: np.ndarray | None
    judgement: Judgement


def evaluate_text_to_image(subject: Subject, sampling: Sampling) -> Iterator[Row]:
    """`samples` images each for held-out and seen pairs, with and without rewriting; the model's default first."""
    pipeline = subject.pipeline
    for pairs, held_out in (("held-out", True), ("seen", False)):
        wordings = draw_prompts(sampling, held_out=held_out)
        for rewriting in (pipeline.spec.rewrites, not pipeline.spec.rewrites):
            title = f"{pairs} pairs, {'rewritten' if rewriting else 'prompt as it is'}"
            results = generate_images(pipeline, wordings, rewriting=rewriting)
            yield from rows(title, results)
            if sampling.pictures is not None:
                save_sheet(results, sampling.pictures / f"{title.replace(', ', ' ').replace(' ', '-')}.png")


def draw_prompts(sampling: Sampling, *, held_out: bool) -> list[prompts.Wording]:
    """Prompts of all `CASES` in turn; with `held_out` every scene has a held-out pair."""
    rng = sampling.rng(f"text-to-image {'held-out' if held_out else 'seen'}")
    worded = []
    for number in range(sampling.samples):
        kind, count = CASES[number % len(CASES)]
        worded.append(prompts.word_scene(rng, draw_scene(rng, kind, count, held_out=held_out), kind))
    return worded


def generate_images(
    pipeline: Pipeline, wordings: Sequence[prompts.Wording], *, rewriting: bool
) -> list[Generated]:
    """Images with the model's default settings, number i from seed i."""
    results: list[Generated] = []
    bar = tqdm(
        total=len(wordings), desc="rewritten" if rewriting else "prompt as it is", leave=False, disable=None
    )
    for group in chunks(list(enumerate(wordings)), BATCH):
        requests = [Request(prompt=wording.text) for _, wording in group]
        attempts = generate_attempts(pipeline, requests, [number for number, _ in group], rewriting=rewriting)
        results += [
            Generated(
                wording=wording,
                rewrite=attempt.words,
                picture=attempt.picture,
                judgement=judge_failure(wording.requirement)
                if attempt.picture is None
                else judge_picture(attempt.picture, wording.requirement),
            )
            for (_, wording), attempt in zip(group, attempts, strict=True)
        ]
        bar.update(len(group))
    bar.close()
    return results


def rows(title: str, results: Sequence[Generated]) -> Iterator[Row]:
    """Rows for all prompts, by number of objects, and by kind of prompt."""

    def row(name: str, part: Sequence[Generated]) -> Row:
        return row_of(name, Tally(tuple(d.judgement for d in part)))

    yield row(title, results)
    sizes = {"1 object": (1,), "2 objects": (2,), "1 or 2 objects": (1, 2), "3 objects": (3,)}
    parts = {
        name: [d for d in results if len(d.wording.target.objects) in counts]
        for name, counts in sizes.items()
    }
    parts |= {kind: [d for d in results if d.wording.kind == kind] for kind in dict(CASES)}
    for name, part in parts.items():
        if part:
            yield row(f"  {name}", part)


def save_sheet(results: Sequence[Generated], path: Path) -> None:
    """Save the first images with their prompts; a green frame means exact, a red one not."""
    shown = results[: SHEET_COLUMNS * SHEET_ROWS]
    width, height = TINY.size
    cell_width, cell_height = width + 4 * FRAME, height + 4 * FRAME + LABEL_HEIGHT
    num_rows = -(-len(shown) // SHEET_COLUMNS)
    sheet = Image.new("RGB", (SHEET_COLUMNS * cell_width, num_rows * cell_height), "white")
    pen = ImageDraw.Draw(sheet)
    for number, one in enumerate(shown):
        left, top = number % SHEET_COLUMNS * cell_width + FRAME, number // SHEET_COLUMNS * cell_height + FRAME
        box = (left, top, left + width + 2 * FRAME - 1, top + height + 2 * FRAME - 1)
        pen.rectangle(box, fill=RIGHT if one.judgement.exact else WRONG)
        if one.picture is not None:
            sheet.paste(Image.fromarray(one.picture), (left + FRAME, top + FRAME))
        pen.multiline_text((left, box[3] + 2), _wrapped(one.wording.text), fill="black", spacing=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(text, LETTERS_PER_LINE, max_lines=5, placeholder=" ..."))
