"""Instructions that combine or select: references (objects and backgrounds of two or three images) and looks (which object is
where, or what is in which image).

The target of a look is part of its images, in the order asked for. The embedded VLM learns from looks to find each object.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from .edit_wordings import MAX_TARGET_OBJECTS, Edit, Origin, fill_in, name_images, name_in_image, name_object
from .lexicon import PLACES
from .prompts import finish
from .requirements import Requirement, check
from .scenes import Scene, free_cell, moved, sample_source

REFERENCE_KINDS = ("object_on_background", "object_into", "two_objects_on_background")
LOOK_KINDS = ("in_order", "only", "which_picture")


def sample_reference(rng: random.Random, kind: str, held_out: bool | None = False) -> Edit:
    """A random instruction about two or three images; `held_out` as in `edits.sample_edit`."""
    while True:
        edit = _REFERENCES[kind](rng, held_out)
        if held_out is not None and edit.target.held_out != held_out:
            continue
        # if an image already is what is asked for, the instruction asks for nothing
        if not any(check(edit.requirement, source).exact for source in edit.sources):
            return edit


def _object_on_background(rng: random.Random, held_out: bool | None) -> Edit:
    one, two = (sample_source(rng, held_out) for _ in range(2))
    i = rng.randrange(len(one.objects))
    images = name_images(rng, 2)
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
    text = fill_in(rng, forms, o=name_in_image(rng, one, i, images[0]), b=images[1])
    target = Scene(objects=(one.objects[i],), background=two.background)
    return _build("object_on_background", (one, two), finish(rng, text), target, origin=((0, i),))


def _object_into(rng: random.Random, held_out: bool | None) -> Edit:
    one = sample_source(rng, held_out)
    two = sample_source(rng, held_out, rng.randint(1, MAX_TARGET_OBJECTS - 1))
    i = rng.randrange(len(one.objects))
    obj = one.objects[i]
    images = name_images(rng, 2)
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
    text = fill_in(rng, forms, o=name_in_image(rng, one, i, images[0]), b=images[1])
    taken = obj.cell in {o.cell for o in two.objects}
    if taken or rng.random() < 0.3:
        cell = free_cell(rng, two)
        text += f"{rng.choice((', ', '; it should be '))}{rng.choice(PLACES[cell])}"
        if cell != obj.cell:
            obj = moved(rng, obj, cell)
    count = len(two.objects)
    return _build(
        "object_into",
        (one, two),
        finish(rng, text),
        replace(two, objects=(*two.objects, obj)),
        origin=(*((1, j) for j in range(count)), (0, i)),
        touched=frozenset({count} if obj != one.objects[i] else ()),
    )


def _two_objects_on_background(rng: random.Random, held_out: bool | None) -> Edit:
    one, two, three = (sample_source(rng, held_out) for _ in range(3))
    i, j = rng.randrange(len(one.objects)), rng.randrange(len(two.objects))
    first, second = one.objects[i], two.objects[j]
    images = name_images(rng, 3)
    forms = (
        "put {a} and {o} on the background of {b}",
        "{a} and {o} on the background of {b}",
        "place {a} and {o} on the background of {b}",
        "take {a} and {o} and put them on the background of {b}",
        "the background of {b} with {a} and {o}",
        "use the background of {b} for {a} and {o}",
    )
    text = fill_in(
        rng,
        forms,
        a=name_in_image(rng, one, i, images[0]),
        o=name_in_image(rng, two, j, images[1]),
        b=images[2],
    )
    touched: frozenset[int] = frozenset()
    if first.cell == second.cell:
        second = moved(rng, second, free_cell(rng, Scene(objects=(first,), background="")))
        touched = frozenset({1})
        which = rng.choice(("the second object", "the second one", f"the object of {images[1]}"))
        text += f", {rng.choice(('', 'with '))}{which} {rng.choice(PLACES[second.cell])}"
    target = Scene(objects=(first, second), background=three.background)
    kind = "two_objects_on_background"
    return _build(
        kind, (one, two, three), finish(rng, text), target, origin=((0, i), (1, j)), touched=touched
    )


def _build(
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


def sample_look(rng: random.Random, kind: str, held_out: bool | None = False) -> Edit:
    """A random question: the objects in a given order, one of them alone, or one of several images.

    The order of objects says nothing about their places, so the answer must find each one. `held_out` as in `edits.sample_edit`.
    """
    while True:
        look = _LOOKS[kind](rng, held_out)
        if held_out is None or look.target.held_out == held_out:
            return look


def _in_order(rng: random.Random, held_out: bool | None) -> Edit:
    source = sample_source(rng, held_out, rng.randint(2, 3))
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
    text = finish(rng, fill_in(rng, forms, o=listed))
    return _build("in_order", (source,), text, target, origin=tuple((0, i) for i in order))


def _only(rng: random.Random, held_out: bool | None) -> Edit:
    source = sample_source(rng, held_out, rng.randint(2, 3))
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
    text = finish(rng, fill_in(rng, forms, o=name_object(rng, source, i).text))
    return _build("only", (source,), text, replace(source, objects=(source.objects[i],)), origin=((0, i),))


def _which_picture(rng: random.Random, held_out: bool | None) -> Edit:
    sources = tuple(sample_source(rng, held_out) for _ in range(rng.randint(2, 3)))
    chosen = rng.randrange(len(sources))
    forms = ("describe {b}", "{b}", "what is in {b}", "only {b}", "the same as {b}", "caption {b}")
    text = finish(rng, fill_in(rng, forms, b=name_images(rng, len(sources))[chosen]))
    origin = tuple((chosen, i) for i in range(len(sources[chosen].objects)))
    return _build("which_picture", sources, text, sources[chosen], origin=origin)


_LOOKS: dict[str, Callable[[random.Random, bool | None], Edit]] = {
    "in_order": _in_order,
    "only": _only,
    "which_picture": _which_picture,
}
