"""The VLM's gate: does it write the caption that a prompt, an instruction or a picture asks for?"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from ...contracts import Request
from ...evaluation.subject import Row, Sampling, Subject, chunks
from ...vlm.backbone import VLMBackbone
from ...zoo.tiny import TINY
from ..world import edits, prompts
from ..world.render import render_tensor
from ..world.requirements import Requirement
from ..world.scenes import ASPECT_SIZES, Scene, sample_scene
from .judging import Tally, row_of, score_captions

TILE_COUNTS = (1, 5, 10)  # max_tiles
BATCH = 32
# a caption of three objects has fewer; what has not ended by then is wrong
MAX_NEW_TOKENS = 64
REWRITE_KINDS = ("full", "terse", "indirect", "relation", "count")
INSTRUCTIONS = {
    "edit": edits.EDIT_KINDS,
    "two pictures": ("object_on_background", "object_into"),
    "three pictures": ("two_objects_on_background",),
}


@dataclass(frozen=True, kw_only=True)
class Task:
    """One chat, and what the scene in its answer must fulfil."""

    prompt: str
    requirement: Requirement
    sources: tuple[Scene, ...] = ()
    size: tuple[int, int] = ASPECT_SIZES[0]  # of the source pictures

    def request(self) -> Request:
        pictures = [render_tensor(s, *self.size) for s in self.sources]
        return Request(prompt=self.prompt, images=pictures)


def evaluate_vlm(subject: Subject, sampling: Sampling) -> Iterator[Row]:
    """Pictures and prompts are new; any pair may appear, since the VLM stands for a pretrained one.

    The kinds of a group of instructions share its samples.
    """

    def measure(
        name: str, draw: Callable[[random.Random], Task], tiles: int = 1, count: int = sampling.samples
    ) -> Tally:
        rng = sampling.rng(f"vlm {name}")
        return judge(subject.backbone, [draw(rng) for _ in range(count)], tiles)

    for kind in REWRITE_KINDS:
        yield row_of(f"rewrite {kind}", measure(f"rewrite {kind}", partial(draw_rewrite, kind=kind)))
    for tiles in TILE_COUNTS:
        name = f"caption, {tiles} tiles"
        yield row_of(name, measure(name, draw_caption, tiles))
    for tiles in TILE_COUNTS:
        for group, kinds in INSTRUCTIONS.items():
            together = Tally(())
            for number, kind in enumerate(kinds):
                name = f"  {kind}, {tiles} tiles"
                count = len(range(number, sampling.samples, len(kinds)))
                tally = measure(name, partial(draw_instruction, kind=kind), tiles, count)
                together += tally
                if len(kinds) > 1:
                    yield row_of(name, tally)
            yield row_of(f"{group}, {tiles} tiles", together)


def draw_rewrite(rng: random.Random, kind: str) -> Task:
    """A prompt of this kind, to be rewritten into a caption."""
    scene = draw_scene(rng, kind, rng.randint(1, 3))
    wording = prompts.word_scene(rng, scene, kind)
    return Task(prompt=wording.text, requirement=wording.requirement)


def draw_scene(rng: random.Random, kind: str, num_objects: int, *, held_out: bool | None = None) -> Scene:
    """A scene that can be worded as this kind: relations and counts need two objects, counts two alike."""
    needed = 2 if kind in ("relation", "count") else 1
    scene = sample_scene(rng, num_objects=max(needed, num_objects), held_out=held_out)
    return prompts.with_equal_objects(rng, scene) if kind == "count" else scene


def draw_caption(rng: random.Random) -> Task:
    """A picture to be described."""
    scene = sample_scene(rng, held_out=None)
    return Task(
        prompt=edits.describe_request(rng),
        requirement=Requirement.of(scene),
        sources=(scene,),
        size=rng.choice(ASPECT_SIZES),
    )


def draw_instruction(rng: random.Random, kind: str) -> Task:
    """An edit or a reference: pictures and an instruction, to be answered with the caption of the target."""
    draw = edits.sample_edit if kind in edits.EDIT_KINDS else edits.sample_reference
    edit = draw(rng, kind, None)
    return Task(
        prompt=edit.instruction,
        requirement=edit.requirement,
        sources=edit.sources,
        size=rng.choice(ASPECT_SIZES),
    )


def judge(backbone: VLMBackbone, tasks: Sequence[Task], max_tiles: int) -> Tally:
    """Greedy answers, each parsed strictly and checked."""
    tally = Tally(())
    for group in chunks(tasks, BATCH):
        chats = backbone.prepare([task.request() for task in group], TINY.config.vlm.template, max_tiles)
        texts = backbone.generate(chats, max_new_tokens=MAX_NEW_TOKENS)
        tally += score_captions(texts, [task.requirement for task in group])
    return tally
