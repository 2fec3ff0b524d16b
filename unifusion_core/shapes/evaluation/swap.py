"""Whether the image follows the rewrite, or the word that the prompt made the VLM expect.

One word of a full rewrite is exchanged, and the prompt keeps the old one. A generator that uses the VLM's prediction instead of
the word generates the old one. Such a generator would silently ignore edits of a rewrite.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ...contracts import Request
from ...evaluation.drawing import generate_as_is
from ...evaluation.subject import Row, Sampling, Subject, chunks
from ..world import captions, prompts
from ..world.requirements import Requirement
from ..world.scenes import (
    BACKGROUNDS,
    COLORS,
    HELD_OUT_PAIRS,
    POSITION_NAMES,
    SHAPES,
    SIZES,
    Scene,
    another,
    sample_scene,
)
from ..world.scorer import read_picture
from .judging import Tally, judge_reading, row_of

BATCH = 16
WORDS = ("background", "color", "shape", "size", "place")


@dataclass(frozen=True, kw_only=True)
class Swap:
    """The scenes of the prompt (`asked`) and of the rewrite (`said`), which differ in one word.

    index  of the object that the word describes
    """

    word: str
    asked: Scene
    said: Scene
    index: int

    def request(self, rng: random.Random) -> Request:
        prompt = prompts.word_scene(rng, self.asked, "full").text
        return Request(prompt=prompt, rewrite=captions.caption(self.said))

    def followed(self, seen: Scene) -> tuple[bool, bool]:
        """Whether the image has the word of the rewrite, and whether it has the word of the prompt."""
        said, asked = (
            self._holds(seen, meant, other)
            for meant, other in ((self.said, self.asked), (self.asked, self.said))
        )
        return said, asked

    def _holds(self, seen: Scene, meant: Scene, other: Scene) -> bool:
        if self.word == "background":
            return seen.background == meant.background
        at = {o.cell: o for o in seen.objects}
        obj, instead = meant.objects[self.index], other.objects[self.index]
        if self.word == "place":
            return obj.cell in at and instead.cell not in at
        return obj.cell in at and getattr(at[obj.cell], self.word) == getattr(obj, self.word)


def evaluate_swap(subject: Subject, sampling: Sampling) -> Iterator[Row]:
    """Shares of images with the word of the rewrite and with the word of the prompt, by word.

    An image is exact if it is exact for the whole rewrite. All pairs were seen in training, so only the contradiction is hard.
    """
    for word in WORDS:
        rng = sampling.rng(f"swap {word}")
        swaps = [draw_swap(rng, word) for _ in range(sampling.samples)]
        judgements, followed = [], []
        for group in chunks(list(enumerate(swaps)), BATCH):
            requests = [swap.request(rng) for _, swap in group]
            pictures = generate_as_is(subject.pipeline, requests, [seed for seed, _ in group])
            for (_, swap), picture in zip(group, pictures, strict=True):
                reading = read_picture(picture)
                judgements.append(judge_reading(reading, Requirement.of(swap.said)))
                followed.append(swap.followed(reading.scene))
        shares = [100 * sum(column) / len(followed) for column in zip(*followed, strict=True)]
        values = dict(zip(("word of the rewrite %", "word of the prompt %"), shares, strict=True))
        yield replace(row_of(f"{word} swapped", Tally(tuple(judgements))), values=values)


def draw_swap(rng: random.Random, word: str) -> Swap:
    """A random scene with one word of its caption exchanged, without held-out pairs."""
    scene = sample_scene(rng)
    i = rng.randrange(len(scene.objects))
    obj = scene.objects[i]
    if word == "background":
        said = replace(scene, background=another(rng, BACKGROUNDS, scene.background))
        return Swap(word=word, asked=scene, said=said, index=i)
    if word == "color":
        allowed = [c for c in COLORS if (c, obj.shape) not in HELD_OUT_PAIRS]
        obj = replace(obj, color=another(rng, allowed, obj.color))
    elif word == "shape":
        allowed = [s for s in SHAPES if (obj.color, s) not in HELD_OUT_PAIRS]
        obj = replace(obj, shape=another(rng, allowed, obj.shape))
    elif word == "size":
        obj = replace(obj, size=another(rng, SIZES, obj.size))
    else:
        taken = {o.cell for o in scene.objects}
        obj = replace(obj, cell=rng.choice([cell for cell in POSITION_NAMES if cell not in taken]))
    said = replace(scene, objects=(*scene.objects[:i], obj, *scene.objects[i + 1 :]))
    return Swap(word=word, asked=scene, said=said, index=i)
