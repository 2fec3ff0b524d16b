"""Whether the VLM translates German scenes: the style "translate to English" on the world's own German wordings."""

from __future__ import annotations

import random
from collections.abc import Iterator

from ...contracts import Request
from ...evaluation.subject import Row, Sampling, Subject, chunks
from ...vlm.styles import with_style
from ...zoo.tiny import TINY
from ..world.german import german_prompt
from ..world.requirements import Requirement
from ..world.scenes import sample_scene
from .judging import Tally, row_of, score_captions
from .vlm import BATCH, MAX_NEW_TOKENS

STYLE = "translate to English"


def evaluate_german(subject: Subject, sampling: Sampling) -> Iterator[Row]:
    """Rewrites of German scenes with the style and without it, by number of objects, and of all in one row. Scenes are new, and
    include held-out pairs, as those of the suite `vlm`."""
    for name, style in (("translated", STYLE), ("without the style", "caption")):
        together = Tally(())
        for num_objects in (1, 2, 3):
            rng = sampling.rng(f"german {num_objects}")
            count = len(range(num_objects - 1, sampling.samples, 3))
            tally = _judge(subject, rng, count, num_objects, style)
            together += tally
            yield row_of(f"  {name}, {num_objects} objects", tally)
        yield row_of(name, together)


def _judge(subject: Subject, rng: random.Random, count: int, num_objects: int, style: str) -> Tally:
    scenes = [sample_scene(rng, num_objects=num_objects, held_out=None) for _ in range(count)]
    requests = [with_style(Request(prompt=german_prompt(rng, scene)), style) for scene in scenes]
    tally = Tally(())
    for group in chunks(list(zip(scenes, requests, strict=True)), BATCH):
        chats = subject.backbone.prepare([request for _, request in group], TINY.config.vlm.template)
        texts = subject.backbone.generate(chats, max_new_tokens=MAX_NEW_TOKENS)
        tally += score_captions(texts, [Requirement.of(scene) for scene, _ in group])
    return tally
