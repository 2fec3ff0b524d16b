"""Edits of one image: what changes, forwards from a random source or backwards from a given target.

What an instruction does not mention keeps its unnamed traits; that distinguishes a faithful edit from a new image.
`edit_wordings` has the words, `references` the other instructions about images.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from .edit_wordings import MAX_TARGET_OBJECTS, Edit, Origin, word_edit
from .marks import with_marks
from .prompts import finish
from .references import REFERENCE_KINDS, sample_look, sample_reference
from .scenes import (
    BACKGROUNDS,
    COLORS,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    another,
    free_cell,
    moved,
    sample_object,
    sample_source,
    sample_traits,
)

EDIT_KINDS = ("recolor", "reshape", "remove", "add", "move", "resize", "background")
DESCRIBE_REQUESTS = (
    "describe the picture",
    "describe this picture",
    "what is in the picture",
    "what do you see",
    "caption",
    "caption the picture",
    "a caption for this picture",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    """An edit without its words; `index` of its object in the source ("add": in the target)."""

    target: Scene
    touched: frozenset[int]
    origin: tuple[Origin, ...]
    index: int = 0


def sample_edit(rng: random.Random, kind: str, held_out: bool | None = False) -> Edit:
    """A random edit.

    held_out  False: no held-out pair in source or target; True: at least one in the target; None: any pair
    """
    low, high = (2, 3) if kind == "remove" else (1, 2) if kind == "add" else (1, 3)
    while True:
        source = sample_source(rng, held_out, rng.randint(low, high))
        change = _CHANGES[kind](rng, source)
        if held_out is None or change.target.held_out == held_out:
            break
    return _put_into_words(rng, kind, source, change)


def sample_edit_into(rng: random.Random, target: Scene, shares: dict[str, float] | None = None) -> Edit:
    """A random edit that ends in this scene, from a source without held-out pairs; its objects may be in another order.

    The change is made backwards, so an image that was encoded once can be the target of any number of edits.

    shares  of the kinds, 1 if not named
    """
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
    instruction, requirement = word_edit(rng, kind, source, change.target, change.index)
    return Edit(
        kind=kind,
        sources=(source,),
        instruction=instruction,
        target=change.target,
        requirement=requirement,
        touched=change.touched,
        origin=change.origin,
    )


def sample_instruction(rng: random.Random, kind: str, held_out: bool | None = False) -> Edit:
    """A random edit, reference or look, by the name of its kind."""
    if kind in EDIT_KINDS:
        return sample_edit(rng, kind, held_out)
    return (sample_reference if kind in REFERENCE_KINDS else sample_look)(rng, kind, held_out)


def with_marked_sources(rng: random.Random, edit: Edit) -> Edit:
    """The edit with marks on its sources, and on the objects of its target that come from there."""
    sources = tuple(with_marks(rng, source) for source in edit.sources)
    objects = tuple(
        obj if origin is None else replace(obj, mark=sources[origin[0]].objects[origin[1]].mark)
        for obj, origin in zip(edit.target.objects, edit.origin, strict=True)
    )
    return replace(edit, sources=sources, target=replace(edit.target, objects=objects))


def describe_request(rng: random.Random) -> str:
    """A prompt that asks for a caption of an image; empty in six of ten cases."""
    return "" if rng.random() < 0.6 else finish(rng, rng.choice(DESCRIBE_REQUESTS))


def corpus(rng: random.Random, n: int) -> Iterator[str]:
    """`n` edits, references and requests for captions, held-out pairs included, as texts for a tokenizer."""
    for _ in range(n):
        kind = rng.choice((*EDIT_KINDS, *REFERENCE_KINDS, "describe"))
        yield describe_request(rng) if kind == "describe" else sample_instruction(rng, kind, None).instruction


def _origins(count: int) -> list[Origin]:
    return [(0, i) for i in range(count)]


def _change_object(
    change: Callable[[random.Random, Scene, SceneObject], SceneObject],
) -> Callable[..., _Change]:
    """A change of one random object, which keeps its place in the list."""

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
    # a shade belongs to its colour
    traits = replace(obj.traits, shade=sample_traits(rng).shade)
    return replace(obj, color=another(rng, COLORS, obj.color), traits=traits)


def _reshape(rng: random.Random, _: Scene, obj: SceneObject) -> SceneObject:
    return replace(obj, shape=another(rng, SHAPES, obj.shape))


def _resize(rng: random.Random, _: Scene, obj: SceneObject) -> SceneObject:
    traits = replace(obj.traits, scale=sample_traits(rng).scale)
    return replace(obj, size=another(rng, SIZES, obj.size), traits=traits)


def _move(rng: random.Random, source: Scene, obj: SceneObject) -> SceneObject:
    return moved(rng, obj, free_cell(rng, source))


def _remove(rng: random.Random, source: Scene) -> _Change:
    i = rng.randrange(len(source.objects))
    objects, origin = list(source.objects), _origins(len(source.objects))
    del objects[i], origin[i]
    target = replace(source, objects=tuple(objects))
    return _Change(target=target, touched=frozenset(), origin=tuple(origin), index=i)


def _add(rng: random.Random, source: Scene) -> _Change:
    count = len(source.objects)
    # the caller rejects unwanted pairs
    added = sample_object(rng, free_cell(rng, source), held_out=None)
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
    """A source in raster order and the change that turns it into `target`."""
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
    # the source of "remove" has one more object; every other kind is its own inverse
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
