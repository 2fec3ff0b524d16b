"""The words of instructions about images: names for objects and images, and a text for every kind of edit.

The texts say "picture", since that is the word the embedded VLM was trained on.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from .lexicon import INDIRECT, PLACES, SIZE_WORDS
from .prompts import background_word, color_word, describe, finish, with_article
from .requirements import Cell, ObjectRequirement, Requirement
from .scenes import POSITION_NAMES, Scene, SceneObject

MAX_TARGET_OBJECTS = 3
# share of the words for colours, shapes and backgrounds that are indirect
INDIRECT_SHARE = 0.12

Origin = tuple[int, int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """An instruction about one or more images, and the scene it asks for.

    kind          one of `edits.EDIT_KINDS`, `references.REFERENCE_KINDS` or `references.LOOK_KINDS`
    sources       the scenes of the images, in order, each in raster order
    requirement   what the instruction fixes about the target
    touched       indices of the target's objects that were changed or added; all others keep every trait
    origin        (source, object) that each of the target's objects came from; None if it was added
    """

    kind: str
    sources: tuple[Scene, ...]
    instruction: str
    target: Scene
    requirement: Requirement
    touched: frozenset[int]
    origin: tuple[Origin, ...]

    @property
    def untouched(self) -> tuple[SceneObject, ...]:
        """The target's objects that come from an image, with every trait."""
        return tuple(
            obj
            for number, (obj, origin) in enumerate(zip(self.target.objects, self.origin, strict=True))
            if origin is not None and number not in self.touched
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Name:
    """Words for one object of an image; `by_place` if they include its place."""

    text: str
    by_place: bool = False


def name_object(
    rng: random.Random, scene: Scene, index: int, *, pronoun: bool = True, places: bool = True
) -> Name:
    """Words that identify this object: attributes that no other object has, or its place.

    pronoun  allow "it" for the only object
    places   allow the place even if attributes suffice
    """
    obj = scene.objects[index]
    others = [o for i, o in enumerate(scene.objects) if i != index]
    noun = rng.choice(("object", "shape"))
    if not others and rng.random() < 0.4:
        return Name(text="it" if pronoun and rng.random() < 0.5 else f"the {noun}")

    distinctive = [
        names
        for n in (1, 2, 3)
        for names in combinations(("shape", "color", "size"), n)
        if all(any(getattr(o, a) != getattr(obj, a) for a in names) for o in others)
    ]
    if not distinctive or (places and rng.random() < 0.2):
        return Name(text=_name_by_place(rng, obj, others, noun), by_place=True)
    names = rng.choice(distinctive)
    want = ObjectRequirement(**{a: getattr(obj, a) for a in names})
    # a tuple, not a set: random numbers are drawn in its order
    words = (want.shape, want.color)
    indirect = {w for w in words if w and rng.random() < INDIRECT_SHARE}
    text = describe(rng, want, article=False, indirect=indirect, plain=True)
    if want.shape is None:
        # "the big object", "the red one"
        stem, _, rest = text.partition("shape")
        text = f"{stem}{rng.choice((noun, noun, 'one'))}{rest}"
    return Name(text=f"the {text}")


def _name_by_place(rng: random.Random, obj: SceneObject, others: Sequence[SceneObject], noun: str) -> str:
    if rng.random() < 0.3:
        noun = obj.shape
    row, column = obj.cell
    # "on the left" alone could also mean an object at the top left
    crowded = any((row != 1 and o.cell[0] == row) or (column != 1 and o.cell[1] == column) for o in others)
    if crowded and (row == 1) != (column == 1):
        return f"the {noun} {rng.choice(('at the', 'at'))} {_middle_of_edge(obj)}"
    if rng.random() < 0.25:
        return f"the {obj.position} {noun}"
    return f"the {noun} {rng.choice(PLACES[obj.cell])}"


def _middle_of_edge(obj: SceneObject) -> str:
    return f"center {obj.position}" if obj.cell[0] == 1 else f"{obj.position} center"


def fill_in(rng: random.Random, forms: Sequence[str], **words: str) -> str:
    """A random form with its blanks filled; {c} is "color" or "colour"."""
    text = rng.choice(forms).format(c=color_word(rng), **words)
    return (
        text.replace("color of it ", "color ")
        .replace("colour of it ", "colour ")
        .replace("size of it", "size")
    )


def _word_recolor(rng: random.Random, source: Scene, target: Scene, index: int) -> str:
    name = name_object(rng, source, index).text
    color = target.objects[index].color
    if rng.random() < INDIRECT_SHARE:
        forms = (
            "make {o} the {c} of {x}",
            "give {o} the {c} of {x}",
            "{o} should have the {c} of {x}",
            "paint {o} in the {c} of {x}",
            "change the {c} of {o} to the {c} of {x}",
        )
        return fill_in(rng, forms, o=name, x=rng.choice(INDIRECT[color]))
    forms = (
        "make {o} {x}",
        "make {o} {x}",
        "turn {o} {x}",
        "paint {o} {x}",
        "color {o} {x}",
        "recolor {o} {x}",
        "change the {c} of {o} to {x}",
        "change the {c} of {o} to {x}",
        "change {o} to {x}",
        "{o} should be {x}",
        "make the {c} of {o} {x}",
        "i want {o} to be {x}",
        "let {o} be {x}",
        "give {o} the {c} {x}",
    )
    return fill_in(rng, forms, o=name, x=color)


def _word_reshape(rng: random.Random, source: Scene, target: Scene, index: int) -> str:
    shape = target.objects[index].shape
    noun = rng.choice(INDIRECT[shape]) if rng.random() < INDIRECT_SHARE else shape
    forms = (
        "turn {o} into {x}",
        "turn {o} into {x}",
        "change {o} to {x}",
        "change {o} into {x}",
        "replace {o} with {x}",
        "replace {o} by {x}",
        "make {o} {x}",
        "{o} should be {x}",
        "i want {x} instead of {o}",
        "transform {o} into {x}",
        "{x} instead of {o}",
    )
    name = name_object(rng, source, index).text
    return fill_in(rng, forms, o=name, x=with_article(noun))


def _word_remove(rng: random.Random, source: Scene, target: Scene, index: int) -> str:
    forms = (
        "remove {o}",
        "remove {o}",
        "please remove {o}",
        "delete {o}",
        "take away {o}",
        "take {o} away",
        "erase {o}",
        "get rid of {o}",
        "{o} should be gone",
        "the same picture without {o}",
        "without {o}",
        "i do not want {o}",
    )
    return fill_in(rng, forms, o=name_object(rng, source, index).text)


def _word_add(rng: random.Random, target: Scene, index: int) -> tuple[str, Requirement]:
    added = target.objects[index]
    want = ObjectRequirement.of(added)
    if rng.random() < 0.25:
        want = replace(want, size=None)
    indirect = {w for w in (added.color, added.shape) if rng.random() < INDIRECT_SHARE}
    forms = (
        "add {o} {p}",
        "add {o} {p}",
        "put {o} {p}",
        "place {o} {p}",
        "draw {o} {p}",
        "insert {o} {p}",
        "i also want {o} {p}",
        "there should also be {o} {p}",
        "{p} add {o}",
        "please add {o} {p}",
    )
    phrase = describe(rng, want, article=rng.random() < 0.85, indirect=indirect)
    text = fill_in(rng, forms, o=phrase, p=rng.choice(PLACES[added.cell]))
    full = Requirement.of(target)
    return text, replace(full, objects=(*full.objects[:-1], want))


def _word_move(rng: random.Random, source: Scene, target: Scene, index: int) -> str:
    cell = target.objects[index].cell
    name = name_object(rng, source, index, places=False)
    # after a name by place, "put {o} {p}" would have two places in a row
    if name.by_place or rng.random() < 0.6:
        forms = (
            "move {o} to {p}",
            "move {o} to {p}",
            "shift {o} to {p}",
            "bring {o} to {p}",
            "i want {o} to go to {p}",
        )
        return fill_in(rng, forms, o=name.text, p=_destination(rng, cell))
    forms = (
        "put {o} {p}",
        "place {o} {p}",
        "{o} should be {p}",
        "move {o} so that it is {p}",
        "i want {o} to be {p}",
    )
    return fill_in(rng, forms, o=name.text, p=rng.choice(PLACES[cell]))


def _destination(rng: random.Random, cell: Cell) -> str:
    """The place that an object moves to; never "the left", which could mean a little further left."""
    name = POSITION_NAMES[cell]
    if cell == (1, 1):
        return rng.choice(("the center", "the middle", "the centre"))
    if 1 not in cell:
        row, column = name.split()
        upper = {"top": "upper", "bottom": "lower"}[row]
        return rng.choice(
            (f"the {name}", f"the {name} corner", f"the {upper} {column} corner", f"the {upper} {column}")
        )
    middle = f"the center {name}" if cell[0] == 1 else f"the {name} center"
    return rng.choice((middle, f"the {name} edge", f"the {name} side" if cell[0] == 1 else f"the {name}"))


def _word_resize(rng: random.Random, source: Scene, target: Scene, index: int) -> str:
    size = target.objects[index].size
    comparatives, others = {
        "big": (
            ("bigger", "larger"),
            ("enlarge {o}", "increase the size of {o}", "scale {o} up", "let {o} grow"),
        ),
        "small": (
            ("smaller", "smaller"),
            ("shrink {o}", "reduce the size of {o}", "scale {o} down", "let {o} shrink"),
        ),
    }[size]
    word = rng.choice((*comparatives, *comparatives, *SIZE_WORDS[size]))
    forms = (
        "make {o} {x}",
        "make {o} {x}",
        "{o} should be {x}",
        "i want {o} to be {x}",
        "change {o} to be {x}",
        *others,
    )
    return fill_in(rng, forms, o=name_object(rng, source, index).text, x=word)


def _word_background(rng: random.Random, source: Scene, target: Scene, _: int) -> str:
    background = target.background
    everything = (
        "it" if len(source.objects) == 1 and rng.random() < 0.6 else rng.choice(("everything", "all of it"))
    )
    if rng.random() < 2 * INDIRECT_SHARE:
        forms = (
            "put {o} {x}",
            "the same picture {x}",
            "the same {x}",
            "show {o} {x}",
            "{x}, please",
            "draw {o} {x}",
            "change the background: {x}",
        )
        return fill_in(rng, forms, o=everything, x=rng.choice(INDIRECT[background]))
    forms = (
        "change the background to {x}",
        "change the background to {x}",
        "make the background {x}",
        "make the background {x}",
        "put {o} on a {x} background",
        "the background should be {x}",
        "{x} background",
        "on a {x} background",
        "paint the background {x}",
        "use a {x} background",
        "turn the background {x}",
        "set the {c} of the background to {x}",
        "the same on {x}",
    )
    return fill_in(rng, forms, o=everything, x=background_word(rng, background))


_WORDED: dict[str, Callable[[random.Random, Scene, Scene, int], str]] = {
    "recolor": _word_recolor,
    "reshape": _word_reshape,
    "remove": _word_remove,
    "move": _word_move,
    "resize": _word_resize,
    "background": _word_background,
}


def word_edit(
    rng: random.Random, kind: str, source: Scene, target: Scene, index: int
) -> tuple[str, Requirement]:
    """The instruction for a change of one image, and what it fixes about the target.

    index  of the changed object in the source; for "add" of the new one in the target
    """
    if kind == "add":
        text, requirement = _word_add(rng, target, index)
    else:
        text, requirement = _WORDED[kind](rng, source, target, index), Requirement.of(target)
    return finish(rng, text), requirement


def name_images(rng: random.Random, count: int) -> list[str]:
    """The names of the images of one instruction, all in the same style."""
    numbers, ordinals = ("one", "two", "three"), ("first", "second", "third")
    style = rng.random()
    if style < 0.5:
        return [f"picture {n}" for n in numbers[:count]]
    if style < 0.75:
        return [f"picture {n + 1}" for n in range(count)]
    return [f"the {n} picture" for n in ordinals[:count]]


def name_in_image(rng: random.Random, scene: Scene, index: int, image: str) -> str:
    """Words that identify an object of one of several images; `image` is the image's name."""
    name = name_object(rng, scene, index, pronoun=False)
    # "on the left of picture one" would be a relation
    preposition = rng.choice(("from", "in") if name.by_place else ("of", "of", "from", "in"))
    return f"{name.text} {preposition} {image}"
