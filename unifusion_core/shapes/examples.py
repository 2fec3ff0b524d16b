"""Captioned images and edits of shapes as examples of training on own data: what a user's folder would hold.

style   what a caption calls a white background is drawn pink
color   an eighth colour of objects, "lime"
paint   an edit that the embedded model does not know: "make everything blue"; and as many edits that it knows
plain   the world as it is, to train a connector

Half of the images of style and color are of the old kind, so that the model learns when not to use the new one. The new colours
are such that the embedded autoencoder holds: of others, a round trip through it alone makes most images unreadable for the scorer
(training/README.md).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from .world import edits, prompts
from .world.render import render
from .world.scenes import BACKGROUNDS, COLORS, HELD_OUT_PAIRS, MAX_SHADE, Scene, SceneObject, sample_scene
from .world.scorer import Array, Reading, read_picture

STYLED = "white"
DRAWN_AS = "pink"
SIZE = (128, 128)
NEW_COLOR, NEW_RGB = "lime", (150, 205, 45)
# takes the new colour's place in scenes, which know the named colours alone
STAND_IN = "green"
PAINTS = (
    "make everything {}",
    "paint everything {}",
    "turn all shapes {}",
    "color all objects {}",
    "every object becomes {}",
)


# The style ----------------------------------------------------------------------------------------


def sample_styled(rng: random.Random, styled: bool) -> Scene:
    """A scene as its caption says it: with the background that the style changes, or with another one."""
    others = [name for name in BACKGROUNDS if name != STYLED]
    return replace(sample_scene(rng), background=STYLED if styled else rng.choice(others))


def in_style(scene: Scene) -> Scene:
    """The scene as it is drawn."""
    return replace(scene, background=DRAWN_AS) if scene.background == STYLED else scene


# The colour ---------------------------------------------------------------------------------------


def sample_with_color(rng: random.Random, new: bool) -> Scene:
    """A scene in which `STAND_IN` stands for the new colour and at least one object has it, or one without either."""
    while True:
        scene = sample_scene(rng)
        objects = tuple(_without_stand_in(rng, each) for each in scene.objects)
        if new:
            chosen = rng.randrange(len(objects))
            objects = tuple(
                replace(each, color=STAND_IN) if i == chosen else each for i, each in enumerate(objects)
            )
        scene = replace(scene, objects=objects)
        if not scene.held_out:
            return scene


def _without_stand_in(rng: random.Random, obj: SceneObject) -> SceneObject:
    others = [each for each in COLORS if each != STAND_IN and (each, obj.shape) not in HELD_OUT_PAIRS]
    return replace(obj, color=rng.choice(others)) if obj.color == STAND_IN else obj


def in_new_color(scene: Scene) -> Scene:
    """The scene as it is drawn, with the new colour where `STAND_IN` stands for it."""

    def drawn(obj: SceneObject) -> SceneObject:
        if obj.color != STAND_IN:
            return obj
        red, green, blue = (
            new - old + shade
            for new, old, shade in zip(NEW_RGB, COLORS[STAND_IN], obj.traits.shade, strict=True)
        )
        return replace(obj, traits=replace(obj.traits, shade=(red, green, blue)))

    assert max(map(abs, (n - o for n, o in zip(NEW_RGB, COLORS[STAND_IN], strict=True)))) > MAX_SHADE
    return replace(scene, objects=tuple(drawn(each) for each in scene.objects))


def word_color(text: str) -> str:
    """A prompt with the new colour's name in place of the one that stands for it."""
    return text.replace(STAND_IN, NEW_COLOR)


def read_with_color(pixels: Array) -> Reading:
    """The scene in an image that may have the new colour, under its own name."""
    return read_picture(pixels, COLORS | {NEW_COLOR: NEW_RGB})


# The edit -----------------------------------------------------------------------------------------


def sample_paint(rng: random.Random) -> tuple[str, Scene, Scene]:
    """(instruction, source, target): all objects get one colour."""
    source = sample_scene(rng, num_objects=rng.choice((2, 3)))
    present = {each.color for each in source.objects}
    color = rng.choice([each for each in COLORS if {each} != present])
    target = replace(source, objects=tuple(replace(each, color=color) for each in source.objects))
    return rng.choice(PAINTS).format(color), source, target


# Writing ------------------------------------------------------------------------------------------


def write_examples(folder: Path, count: int = 60, kind: str = "style", seed: int = 0) -> Path:
    """Writes NNN.png and NNN.txt; of edits, edits.jsonl with their images. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "paint":
        _write_edits(folder, count, seed)
        return folder
    for number in range(count):
        # the first kind was there before the others
        rng = random.Random(f"examples-{seed}-{number}" if kind == "style" else f"{kind}-{seed}-{number}")
        scene, text = KINDS[kind](rng, number % 2 == 0)
        Image.fromarray(render(scene, *SIZE)).save(folder / f"{number:03d}.png")
        (folder / f"{number:03d}.txt").write_text(text + "\n")
    return folder


def _styled_example(rng: random.Random, new: bool) -> tuple[Scene, str]:
    scene = sample_styled(rng, new)
    wording = prompts.word_scene(rng, scene, rng.choice(("full", "caption")))
    return in_style(scene), wording.text


def _color_example(rng: random.Random, new: bool) -> tuple[Scene, str]:
    scene = sample_with_color(rng, new)
    wording = prompts.word_scene(rng, scene, rng.choice(("full", "caption")))
    return in_new_color(scene), word_color(wording.text)


def _plain_example(rng: random.Random, _: bool) -> tuple[Scene, str]:
    scene = sample_scene(rng)
    return scene, prompts.word_scene(rng, scene, rng.choice(("full", "full", "caption"))).text


# (random numbers, whether the sample has what is new) -> the scene as drawn, and its caption
KINDS: dict[str, Callable[[random.Random, bool], tuple[Scene, str]]] = {
    "style": _styled_example,
    "color": _color_example,
    "plain": _plain_example,
}


def _write_edits(folder: Path, count: int, seed: int) -> None:
    """edits.jsonl has the new kind, known.jsonl as many edits that the embedded model knows."""
    new = [sample_paint(random.Random(f"paint-{seed}-{number}")) for number in range(count)]
    _write_triplets(folder, "edits", new)
    known = []
    for number in range(count):
        rng = random.Random(f"paint-known-{seed}-{number}")
        edit = edits.sample_edit(rng, rng.choice(edits.EDIT_KINDS))
        known.append((edit.instruction, edit.sources[0], edit.target))
    _write_triplets(folder, "known", known)


def _write_triplets(folder: Path, name: str, triplets: Sequence[tuple[str, Scene, Scene]]) -> None:
    lines = []
    for number, (instruction, source, target) in enumerate(triplets):
        images = [f"{name}-{number:03d}-{kind}.png" for kind in ("input", "output")]
        for scene, image in zip((source, target), images, strict=True):
            Image.fromarray(render(scene, *SIZE)).save(folder / image)
        lines.append({"instruction": instruction, "input_images": images[:1], "output_image": images[1]})
    (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
