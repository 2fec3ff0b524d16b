"""Instructions about pictures: edits of one, references that combine objects and backgrounds of several, and looks at what is
there.

What an instruction does not touch keeps its unnamed traits, so a faithful edit differs from a new picture.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from .lexicon import INDIRECT, PLACES, SIZE_WORDS
from .prompts import background_word, color_word, describe, finish, with_article
from .requirements import Cell, ObjectRequirement, Requirement, check
from .scenes import (
    BACKGROUNDS,
    COLORS,
    POSITION_NAMES,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    sample_object,
    sample_scene,
    sample_traits,
)

EDIT_KINDS = ("recolor", "reshape", "remove", "add", "move", "resize", "background")
REFERENCE_KINDS = ("object_on_background", "object_into", "two_objects_on_background")
LOOK_KINDS = ("in_order", "only", "which_picture")
MAX_TARGET_OBJECTS = 3
INDIRECT_SHARE = 0.12  # of the words of an instruction

Origin = tuple[int, int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """An instruction about one or more pictures, and the scene it asks for.

    kind: one of `EDIT_KINDS`, `REFERENCE_KINDS` or `LOOK_KINDS`.
    sources: the scenes of the pictures, in order, each in raster order.
    touched: indices of the target's objects that were changed or added; all others keep every trait.
    origin: (source, object) that each of the target's objects came from; None where it was added.
    """

    kind: str
    sources: tuple[Scene, ...]
    instruction: str
    target: Scene
    requirement: Requirement
    touched: frozenset[int]
    origin: tuple[Origin, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    """An edit before it is put into words; `index` of its object in the source (added: in the target)."""

    target: Scene
    touched: frozenset[int]
    origin: tuple[Origin, ...]
    index: int = 0


def sample_edit(rng: random.Random, kind: str, held_out: bool | None = False) -> Edit:
    """A random edit.

    `held_out` False: no held-out pair in source or target; True: one stands in the target; None: anything.
    """
    low, high = (2, 3) if kind == "remove" else (1, 2) if kind == "add" else (1, 3)
    while True:
        source = _sample_source(rng, held_out, rng.randint(low, high))
        change = _CHANGES[kind](rng, source)
        if held_out is None or change.target.held_out == held_out:
            break
    return _put_into_words(rng, kind, source, change)


def sample_edit_into(rng: random.Random, target: Scene, shares: dict[str, float] | None = None) -> Edit:
    """A random edit that ends in this scene (its objects may come in another order), from a picture without held-out pairs: the
    change is made backwards, so that pictures drawn once can be the targets of any number of edits. `shares`: of the kinds, 1
    if not named."""
    count = len(target.objects)
    possible = [
        k for k in EDIT_KINDS if (k != "add" or count > 1) and (k != "remove" or count < MAX_TARGET_OBJECTS)
    ]
    while True:
        kind = rng.choices(possible, [(shares or {}).get(k, 1.0) for k in possible])[0]
        source, change = _backwards(rng, kind, target)
        if not source.held_out:
            break
    return _put_into_words(rng, kind, source, change)


def _put_into_words(rng: random.Random, kind: str, source: Scene, change: _Change) -> Edit:
    instruction, requirement = _INSTRUCTIONS[kind](rng, source, change)
    return Edit(
        kind=kind,
        sources=(source,),
        instruction=finish(rng, instruction),
        target=change.target,
        requirement=requirement,
        touched=change.touched,
        origin=change.origin,
    )


def sample_instruction(rng: random.Random, kind: str, held_out: bool | None = False) -> Edit:
    """A random edit, reference or look, by the name of its kind."""
    draw = sample_edit if kind in EDIT_KINDS else sample_reference if kind in REFERENCE_KINDS else sample_look
    return draw(rng, kind, held_out)


def describe_request(rng: random.Random) -> str:
    """The instruction for captioning a picture; mostly none at all."""
    if rng.random() < 0.6:
        return ""
    return finish(
        rng,
        rng.choice(
            (
                "describe the picture",
                "describe this picture",
                "what is in the picture",
                "what do you see",
                "caption",
                "caption the picture",
                "a caption for this picture",
            )
        ),
    )


def corpus(rng: random.Random, n: int) -> Iterator[str]:
    """`n` sample edits, references and requests to describe, held-out pairs included: what a tokenizer must know."""
    for _ in range(n):
        kind = rng.choice((*EDIT_KINDS, *REFERENCE_KINDS, "describe"))
        yield describe_request(rng) if kind == "describe" else sample_instruction(rng, kind, None).instruction


def _sample_source(rng: random.Random, held_out: bool | None, num_objects: int | None = None) -> Scene:
    pairs = False if held_out is False else None
    return sample_scene(rng, num_objects=num_objects, held_out=pairs).in_raster_order()


def _free_cell(rng: random.Random, scene: Scene) -> Cell:
    taken = {o.cell for o in scene.objects}
    return rng.choice([cell for cell in POSITION_NAMES if cell not in taken])


def another(rng: random.Random, values: Iterable[str], value: str) -> str:
    """Any of the values but this one."""
    return rng.choice([v for v in values if v != value])


# ---------------------------------------------------------------------------------------------- changes


def _origins(count: int) -> list[Origin]:
    return [(0, i) for i in range(count)]


def _change_object(
    change: Callable[[random.Random, Scene, SceneObject], SceneObject],
) -> Callable[..., _Change]:
    """A change of one random object, which stays in its place in the list."""

    def apply(rng: random.Random, source: Scene) -> _Change:
        i = rng.randrange(len(source.objects))
        objects = list(source.objects)
        objects[i] = change(rng, source, objects[i])
        return _Change(
            target=replace(source, objects=tuple(objects)),
            touched=frozenset({i}),
            origin=tuple(_origins(len(objects))),
            index=i,
        )

    return apply


def _recolor(rng: random.Random, _: Scene, obj: SceneObject) -> SceneObject:
    traits = replace(obj.traits, shade=sample_traits(rng).shade)  # a shade belongs to its colour
    return replace(obj, color=another(rng, COLORS, obj.color), traits=traits)


def _reshape(rng: random.Random, _: Scene, obj: SceneObject) -> SceneObject:
    return replace(obj, shape=another(rng, SHAPES, obj.shape))


def _resize(rng: random.Random, _: Scene, obj: SceneObject) -> SceneObject:
    traits = replace(obj.traits, scale=sample_traits(rng).scale)
    return replace(obj, size=another(rng, SIZES, obj.size), traits=traits)


def _move(rng: random.Random, source: Scene, obj: SceneObject) -> SceneObject:
    return _moved(rng, obj, _free_cell(rng, source))


def _moved(rng: random.Random, obj: SceneObject, cell: Cell) -> SceneObject:
    fresh = sample_traits(rng)
    return replace(obj, cell=cell, traits=replace(obj.traits, dx=fresh.dx, dy=fresh.dy))


def _remove(rng: random.Random, source: Scene) -> _Change:
    i = rng.randrange(len(source.objects))
    objects, origin = list(source.objects), _origins(len(source.objects))
    del objects[i], origin[i]
    return _Change(
        target=replace(source, objects=tuple(objects)), touched=frozenset(), origin=tuple(origin), index=i
    )


def _add(rng: random.Random, source: Scene) -> _Change:
    count = len(source.objects)
    added = sample_object(rng, _free_cell(rng, source), held_out=None)  # the caller refuses unwanted pairs
    return _Change(
        target=replace(source, objects=(*source.objects, added)),
        touched=frozenset({count}),
        origin=(*_origins(count), None),
        index=count,
    )


def _change_background(rng: random.Random, source: Scene) -> _Change:
    target = replace(source, background=another(rng, BACKGROUNDS, source.background))
    return _Change(target=target, touched=frozenset(), origin=tuple(_origins(len(source.objects))))


_CHANGES: dict[str, Callable[[random.Random, Scene], _Change]] = {
    "recolor": _change_object(_recolor),
    "reshape": _change_object(_reshape),
    "remove": _remove,
    "add": _add,
    "move": _change_object(_move),
    "resize": _change_object(_resize),
    "background": _change_background,
}


def _backwards(rng: random.Random, kind: str, target: Scene) -> tuple[Scene, _Change]:
    """A source in raster order and the change that makes `target` of it."""
    if kind == "add":
        kept = list(target.objects)
        added = kept.pop(rng.randrange(len(kept)))
        source = replace(target, objects=tuple(kept)).in_raster_order()
        count = len(kept)
        return source, _Change(
            target=replace(target, objects=(*source.objects, added)),
            touched=frozenset({count}),
            origin=(*_origins(count), None),
            index=count,
        )
    # before "remove" there was one object more; of the others each is its own way back
    back = _CHANGES["add" if kind == "remove" else kind](rng, target)
    source = back.target.in_raster_order()
    index = source.objects.index(back.target.objects[back.index])
    origin = [back.target.objects.index(o) for o in source.objects]
    if kind == "remove":
        del origin[index]
    return source, _Change(
        target=replace(target, objects=tuple(target.objects[i] for i in origin)),
        touched=frozenset({index}) if kind not in ("remove", "background") else frozenset(),
        origin=tuple((0, i) for i in range(len(source.objects)) if kind != "remove" or i != index),
        index=index,
    )


# ---------------------------------------------------------------------------------------------- names


@dataclass(frozen=True, slots=True, kw_only=True)
class Name:
    """Words that mean one object of a picture; `by_place` if they say where it is."""

    text: str
    by_place: bool = False


def name_object(
    rng: random.Random, scene: Scene, index: int, *, pronoun: bool = True, places: bool = True
) -> Name:
    """Words that mean this object and no other: by attributes that only it has, or by its place.

    `places` False: by place only if there is no other way.
    """
    obj = scene.objects[index]
    others = [o for i, o in enumerate(scene.objects) if i != index]
    noun = rng.choice(("object", "shape"))
    if not others and rng.random() < 0.4:
        return Name(text="it" if pronoun and rng.random() < 0.5 else f"the {noun}")

    telling = [
        names
        for n in (1, 2, 3)
        for names in combinations(("shape", "color", "size"), n)
        if all(any(getattr(o, a) != getattr(obj, a) for a in names) for o in others)
    ]
    if not telling or (places and rng.random() < 0.2):
        return Name(text=_name_by_place(rng, obj, others, noun), by_place=True)
    names = rng.choice(telling)
    want = ObjectRequirement(**{a: getattr(obj, a) for a in names})
    words = {want.shape, want.color} - {None}
    indirect = {w for w in words if w and rng.random() < INDIRECT_SHARE}
    text = describe(rng, want, article=False, indirect=indirect, plain=True)
    if want.shape is None:  # "the big object", "the red one"
        stem, _, rest = text.partition("shape")
        text = f"{stem}{rng.choice((noun, noun, 'one'))}{rest}"
    return Name(text=f"the {text}")


def _name_by_place(rng: random.Random, obj: SceneObject, others: Sequence[SceneObject], noun: str) -> str:
    if rng.random() < 0.3:
        noun = obj.shape
    row, column = obj.cell
    # "on the left" alone could mean what stands at the top left, too
    crowded = any((row != 1 and o.cell[0] == row) or (column != 1 and o.cell[1] == column) for o in others)
    if crowded and (row == 1) != (column == 1):
        return f"the {noun} {rng.choice(('at the', 'at'))} {_middle_of_edge(obj)}"
    if rng.random() < 0.25:
        return f"the {obj.position} {noun}"
    return f"the {noun} {rng.choice(PLACES[obj.cell])}"


def _middle_of_edge(obj: SceneObject) -> str:
    return f"center {obj.position}" if obj.cell[0] == 1 else f"{obj.position} center"


# ---------------------------------------------------------------------------------------------- instructions


def _say(rng: random.Random, forms: Sequence[str], **words: str) -> str:
    text = rng.choice(forms).format(c=color_word(rng), **words)
    return (
        text.replace("color of it ", "color ")
        .replace("colour of it ", "colour ")
        .replace("size of it", "size")
    )


def _word_recolor(rng: random.Random, source: Scene, change: _Change) -> tuple[str, Requirement]:
    name = name_object(rng, source, change.index).text
    color = change.target.objects[change.index].color
    if rng.random() < INDIRECT_SHARE:
        forms = (
            "make {o} the {c} of {x}",
            "give {o} the {c} of {x}",
            "{o} should have the {c} of {x}",
            "paint {o} in the {c} of {x}",
            "change the {c} of {o} to the {c} of {x}",
        )
        text = _say(rng, forms, o=name, x=rng.choice(INDIRECT[color]))
    else:
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
        text = _say(rng, forms, o=name, x=color)
    return text, Requirement.of(change.target)


def _word_reshape(rng: random.Random, source: Scene, change: _Change) -> tuple[str, Requirement]:
    shape = change.target.objects[change.index].shape
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
    name = name_object(rng, source, change.index).text
    return _say(rng, forms, o=name, x=with_article(noun)), Requirement.of(change.target)


def _word_remove(rng: random.Random, source: Scene, change: _Change) -> tuple[str, Requirement]:
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
    return _say(rng, forms, o=name_object(rng, source, change.index).text), Requirement.of(change.target)


def _word_add(rng: random.Random, source: Scene, change: _Change) -> tuple[str, Requirement]:
    added = change.target.objects[change.index]
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
    text = _say(rng, forms, o=phrase, p=rng.choice(PLACES[added.cell]))
    full = Requirement.of(change.target)
    return text, replace(full, objects=(*full.objects[:-1], want))


def _word_move(rng: random.Random, source: Scene, change: _Change) -> tuple[str, Requirement]:
    cell = change.target.objects[change.index].cell
    name = name_object(rng, source, change.index, places=False)
    if name.by_place or rng.random() < 0.6:  # two places in a row would be read as one
        forms = (
            "move {o} to {p}",
            "move {o} to {p}",
            "shift {o} to {p}",
            "bring {o} to {p}",
            "i want {o} to go to {p}",
        )
        text = _say(rng, forms, o=name.text, p=_destination(rng, cell))
    else:
        forms = (
            "put {o} {p}",
            "place {o} {p}",
            "{o} should be {p}",
            "move {o} so that it is {p}",
            "i want {o} to be {p}",
        )
        text = _say(rng, forms, o=name.text, p=rng.choice(PLACES[cell]))
    return text, Requirement.of(change.target)


def _destination(rng: random.Random, cell: Cell) -> str:
    """Where to: never "to the left", which could mean a little further left."""
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


def _word_resize(rng: random.Random, source: Scene, change: _Change) -> tuple[str, Requirement]:
    size = change.target.objects[change.index].size
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
    return _say(rng, forms, o=name_object(rng, source, change.index).text, x=word), Requirement.of(
        change.target
    )


def _word_background(rng: random.Random, source: Scene, change: _Change) -> tuple[str, Requirement]:
    background = change.target.background
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
        text = _say(rng, forms, o=everything, x=rng.choice(INDIRECT[background]))
    else:
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
        text = _say(rng, forms, o=everything, x=background_word(rng, background))
    return text, Requirement.of(change.target)


_INSTRUCTIONS: dict[str, Callable[[random.Random, Scene, _Change], tuple[str, Requirement]]] = {
    "recolor": _word_recolor,
    "reshape": _word_reshape,
    "remove": _word_remove,
    "add": _word_add,
    "move": _word_move,
    "resize": _word_resize,
    "background": _word_background,
}


# ---------------------------------------------------------------------------------------------- references


def sample_reference(rng: random.Random, kind: str, held_out: bool | None = False) -> Edit:
    """A random instruction about two or three pictures; `held_out` as in `sample_edit`."""
    while True:
        edit = _REFERENCES[kind](rng, held_out)
        if held_out is not None and edit.target.held_out != held_out:
            continue
        # a picture that already is what is asked for would make the instruction idle
        if not any(check(edit.requirement, source).exact for source in edit.sources):
            return edit


def _object_on_background(rng: random.Random, held_out: bool | None) -> Edit:
    one, two = (_sample_source(rng, held_out) for _ in range(2))
    i = rng.randrange(len(one.objects))
    pictures = _picture_names(rng, 2)
    forms = (
        "put {o} on the background of {b}",
        "place {o} on the background of {b}",
        "{o} on the background of {b}",
        "take {o} and put it on the background of {b}",
        "use the background of {b} for {o}",
        "the background of {b} with {o}",
        "give {o} the background of {b}",
        "only {o} on the background of {b}",
    )
    text = _say(rng, forms, o=_name_in_picture(rng, one, i, pictures[0]), b=pictures[1])
    target = Scene(objects=(one.objects[i],), background=two.background)
    return _reference("object_on_background", (one, two), finish(rng, text), target, origin=((0, i),))


def _object_into(rng: random.Random, held_out: bool | None) -> Edit:
    one = _sample_source(rng, held_out)
    two = _sample_source(rng, held_out, rng.randint(1, MAX_TARGET_OBJECTS - 1))
    i = rng.randrange(len(one.objects))
    obj = one.objects[i]
    pictures = _picture_names(rng, 2)
    forms = (
        "put {o} into {b}",
        "add {o} to {b}",
        "copy {o} into {b}",
        "insert {o} into {b}",
        "place {o} into {b}",
        "take {o} and put it into {b}",
        "{b} with {o}",
        "{o} should also be in {b}",
    )
    text = _say(rng, forms, o=_name_in_picture(rng, one, i, pictures[0]), b=pictures[1])
    taken = obj.cell in {o.cell for o in two.objects}
    if taken or rng.random() < 0.3:
        cell = _free_cell(rng, two)
        text += f"{rng.choice((', ', '; it should be '))}{rng.choice(PLACES[cell])}"
        if cell != obj.cell:
            obj = _moved(rng, obj, cell)
    count = len(two.objects)
    return _reference(
        "object_into",
        (one, two),
        finish(rng, text),
        replace(two, objects=(*two.objects, obj)),
        origin=(*((1, j) for j in range(count)), (0, i)),
        touched=frozenset({count} if obj != one.objects[i] else ()),
    )


def _two_objects_on_background(rng: random.Random, held_out: bool | None) -> Edit:
    one, two, three = (_sample_source(rng, held_out) for _ in range(3))
    i, j = rng.randrange(len(one.objects)), rng.randrange(len(two.objects))
    first, second = one.objects[i], two.objects[j]
    pictures = _picture_names(rng, 3)
    forms = (
        "put {a} and {o} on the background of {b}",
        "{a} and {o} on the background of {b}",
        "place {a} and {o} on the background of {b}",
        "take {a} and {o} and put them on the background of {b}",
        "the background of {b} with {a} and {o}",
        "use the background of {b} for {a} and {o}",
    )
    text = _say(
        rng,
        forms,
        a=_name_in_picture(rng, one, i, pictures[0]),
        o=_name_in_picture(rng, two, j, pictures[1]),
        b=pictures[2],
    )
    touched: frozenset[int] = frozenset()
    if first.cell == second.cell:
        second = _moved(rng, second, _free_cell(rng, Scene(objects=(first,), background="")))
        touched = frozenset({1})
        which = rng.choice(("the second object", "the second one", f"the object of {pictures[1]}"))
        text += f", {rng.choice(('', 'with '))}{which} {rng.choice(PLACES[second.cell])}"
    target = Scene(objects=(first, second), background=three.background)
    kind = "two_objects_on_background"
    return _reference(
        kind, (one, two, three), finish(rng, text), target, origin=((0, i), (1, j)), touched=touched
    )


def _reference(
    kind: str,
    sources: tuple[Scene, ...],
    instruction: str,
    target: Scene,
    *,
    origin: tuple[Origin, ...],
    touched: frozenset[int] = frozenset(),
) -> Edit:
    return Edit(
        kind=kind,
        sources=sources,
        instruction=instruction,
        target=target,
        requirement=Requirement.of(target),
        touched=touched,
        origin=origin,
    )


_REFERENCES: dict[str, Callable[[random.Random, bool | None], Edit]] = {
    "object_on_background": _object_on_background,
    "object_into": _object_into,
    "two_objects_on_background": _two_objects_on_background,
}


# ---------------------------------------------------------------------------------------------- looks


def sample_look(rng: random.Random, kind: str, held_out: bool | None = False) -> Edit:
    """What is where: the objects in a given order, one of them alone, or one of several pictures; `held_out` as in
    `sample_edit`. The order of objects tells nothing about their places here, so whoever answers must find each one."""
    while True:
        look = _LOOKS[kind](rng, held_out)
        if held_out is None or look.target.held_out == held_out:
            return look


def _in_order(rng: random.Random, held_out: bool | None) -> Edit:
    source = _sample_source(rng, held_out, rng.randint(2, 3))
    order = rng.sample(range(len(source.objects)), len(source.objects))
    names = [name_object(rng, source, i).text for i in order]
    listed = rng.choice((", ", ", then ")).join(names)
    forms = (
        "describe in this order: {o}",
        "what is there, in this order: {o}",
        "say where they are: {o}",
        "{o}: where and what",
    )
    target = replace(source, objects=tuple(source.objects[i] for i in order))
    text = finish(rng, _say(rng, forms, o=listed))
    return _reference("in_order", (source,), text, target, origin=tuple((0, i) for i in order))


def _only(rng: random.Random, held_out: bool | None) -> Edit:
    source = _sample_source(rng, held_out, rng.randint(2, 3))
    i = rng.randrange(len(source.objects))
    forms = (
        "only {o}",
        "keep only {o}",
        "nothing but {o}",
        "remove everything but {o}",
        "describe {o} only",
        "where is {o}",
        "{o} alone",
    )
    text = finish(rng, _say(rng, forms, o=name_object(rng, source, i).text))
    return _reference(
        "only", (source,), text, replace(source, objects=(source.objects[i],)), origin=((0, i),)
    )


def _which_picture(rng: random.Random, held_out: bool | None) -> Edit:
    sources = tuple(_sample_source(rng, held_out) for _ in range(rng.randint(2, 3)))
    chosen = rng.randrange(len(sources))
    forms = ("describe {b}", "{b}", "what is in {b}", "only {b}", "the same as {b}", "caption {b}")
    text = finish(rng, _say(rng, forms, b=_picture_names(rng, len(sources))[chosen]))
    origin = tuple((chosen, i) for i in range(len(sources[chosen].objects)))
    return _reference("which_picture", sources, text, sources[chosen], origin=origin)


_LOOKS: dict[str, Callable[[random.Random, bool | None], Edit]] = {
    "in_order": _in_order,
    "only": _only,
    "which_picture": _which_picture,
}


def _picture_names(rng: random.Random, count: int) -> list[str]:
    """One way of counting pictures throughout an instruction."""
    numbers, ordinals = ("one", "two", "three"), ("first", "second", "third")
    style = rng.random()
    if style < 0.5:
        return [f"picture {n}" for n in numbers[:count]]
    if style < 0.75:
        return [f"picture {n + 1}" for n in range(count)]
    return [f"the {n} picture" for n in ordinals[:count]]


def _name_in_picture(rng: random.Random, scene: Scene, index: int, picture: str) -> str:
    name = name_object(rng, scene, index, pronoun=False)
    # "on the left of picture one" would be a relation
    return (
        f"{name.text} {rng.choice(('from', 'in') if name.by_place else ('of', 'of', 'from', 'in'))} {picture}"
    )
