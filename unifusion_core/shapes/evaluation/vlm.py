"""Whether the VLM writes the caption that a prompt, an instruction or an image asks for."""

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

# max_tiles
TILE_COUNTS = (1, 5, 10)
BATCH = 32
# more than a caption of three objects has; a longer answer is wrong
MAX_NEW_TOKENS = 64
REWRITE_KINDS = ("full", "terse", "indirect", "relation", "count")
INSTRUCTIONS = {
    "edit": edits.EDIT_KINDS,
    "two pictures": ("object_on_background", "object_into"),
    "three pictures": ("two_objects_on_background",),
}


@dataclass(frozen=True, kw_only=True)
class Task:
    """One chat, and the requirement for the scene in its answer.

    size  (width, height) of the source images
    """

    prompt: str
    requirement: Requirement
    sources: tuple[Scene, ...] = ()
    size: tuple[int, int] = ASPECT_SIZES[0]

    def request(self) -> Request:
        images = [render_tensor(s, *self.size) for s in self.sources]
        return Request(prompt=self.prompt, images=images)


def evaluate_vlm(subject: Subject, sampling: Sampling) -> Iterator[Row]:
    """Rewrites by kind of prompt, captions and instructions by number of tiles.

    Images and prompts are new. They include held-out pairs, since the VLM takes the part of a pretrained one. The kinds of a
    group of instructions share its samples.
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
    """A random prompt of this kind, to be rewritten as a caption."""
    scene = draw_scene(rng, kind, rng.randint(1, 3))
    wording = prompts.word_scene(rng, scene, kind)
    return Task(prompt=wording.text, requirement=wording.requirement)


def draw_scene(rng: random.Random, kind: str, num_objects: int, *, held_out: bool | None = None) -> Scene:
    """A random scene for this kind of prompt: relations and counts need two objects, counts two equal ones."""
    needed = 2 if kind in ("relation", "count") else 1
    scene = sample_scene(rng, num_objects=max(needed, num_objects), held_out=held_out)
    return prompts.with_equal_objects(rng, scene) if kind == "count" else scene


def draw_caption(rng: random.Random) -> Task:
    """A random image to be described."""
    scene = sample_scene(rng, held_out=None)
    return Task(
        prompt=edits.describe_request(rng),
        requirement=Requirement.of(scene),
        sources=(scene,),
        size=rng.choice(ASPECT_SIZES),
    )


def draw_instruction(rng: random.Random, kind: str) -> Task:
    """A random edit or reference, to be answered with the caption of its target."""
    edit = edits.sample_instruction(rng, kind, None)
    return Task(
        prompt=edit.instruction,
        requirement=edit.requirement,
        sources=edit.sources,
        size=rng.choice(ASPECT_SIZES),
    )


def judge(backbone: VLMBackbone, tasks: Sequence[Task], max_tiles: int) -> Tally:
    """Greedy answers, parsed strictly and checked against the requirements."""
    tally = Tally(())
    for group in chunks(tasks, BATCH):
        chats = backbone.prepare([task.request() for task in group], TINY.config.vlm.template, max_tiles)
        texts = backbone.generate(chats, max_new_tokens=MAX_NEW_TOKENS)
        tally += score_captions(texts, [task.requirement for task in group])
    return tally
