"""Prompts for scenes in many wordings, each with what it fixes.

A prompt is written from its `Requirement`, so the two cannot disagree.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from .captions import caption
from .lexicon import BARE_PLACES, INDIRECT, NUMBERS, OPENINGS, PLACES, PLURALS, RELATION_WORDS, SIZE_WORDS
from .requirements import RELATIONS, Cell, ObjectRequirement, Relation, Requirement
from .scenes import Scene, SceneObject, sample_scene

WORDING_KINDS = ("full", "terse", "relation", "count", "indirect", "caption")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """A prompt, what it fixes, and the scene it was written for; objects are in the order of mention."""

    text: str
    target: Scene
    requirement: Requirement
    kind: str


def word_scene(rng: random.Random, scene: Scene, kind: str) -> Wording:
    """A prompt of this kind; what it leaves open is in the target as in the scene. Raises ValueError for an impossible kind."""
    if kind not in possible_kinds(scene):
        raise ValueError(
            f"a scene of {len(scene.objects)} objects cannot be worded as {kind!r}: choose one of "
            f"{', '.join(possible_kinds(scene))}"
        )
    if kind == "caption":
        return Wording(text=caption(scene), target=scene, requirement=Requirement.of(scene), kind=kind)
    if kind == "relation":
        return _word_relation(rng, scene)
    if kind == "count":
        return _word_count(rng, scene)
    target = replace(scene, objects=tuple(rng.sample(scene.objects, len(scene.objects))))
    terse = kind == "terse" or (kind == "indirect" and rng.random() < 0.5)
    requirement = _leave_out(rng, Requirement.of(target)) if terse else Requirement.of(target)
    indirect = choose_indirect(rng, requirement) if kind == "indirect" else frozenset()
    return Wording(text=_write(rng, requirement, indirect), target=target, requirement=requirement, kind=kind)


def possible_kinds(scene: Scene) -> tuple[str, ...]:
    """The kinds of prompts that can be written for this scene."""
    kinds = ["full", "terse", "indirect", "caption"]
    if 2 <= len(scene.objects) <= 3:
        kinds.append("relation")
    if len({(o.color, o.shape) for o in scene.objects}) < len(scene.objects):
        kinds.append("count")
    return tuple(kinds)


def word_any(rng: random.Random, scene: Scene, kinds: Sequence[str] = WORDING_KINDS) -> Wording:
    """A prompt of a random kind, uniform over those of `kinds` that are possible for the scene."""
    possible = possible_kinds(scene)
    return word_scene(rng, scene, rng.choice([kind for kind in kinds if kind in possible]))


def with_equal_objects(rng: random.Random, scene: Scene) -> Scene:
    """The scene with some objects given the same colour and shape, as "count" needs; random scenes rarely have any.

    If the scene has a held-out pair, that pair is the repeated one.
    """
    count = len(scene.objects)
    if count < 2:
        return scene
    model = rng.choice([o for o in scene.objects if o.held_out == scene.held_out])
    objects = list(scene.objects)
    others = [i for i, o in enumerate(objects) if o is not model]
    for i in rng.sample(others, rng.randint(1, len(others))):
        objects[i] = replace(objects[i], color=model.color, shape=model.shape)
    return replace(scene, objects=tuple(objects))


def corpus(rng: random.Random, n: int) -> Iterator[str]:
    """`n` prompts of every kind, held-out pairs included, as texts for a tokenizer."""
    for _ in range(n):
        scene = sample_scene(rng, held_out=None)
        if rng.random() < 0.2:
            scene = with_equal_objects(rng, scene)
        yield word_any(rng, scene).text


def choose_indirect(rng: random.Random, requirement: Requirement) -> frozenset[str]:
    """The required words that are replaced by indirect ones: at least one, and each throughout the prompt."""
    words = [w for o in requirement.objects for w in (o.color, o.shape)] + [requirement.background]
    usable = sorted({w for w in words if w is not None})
    return frozenset(w for w in usable if rng.random() < 0.4) or frozenset({rng.choice(usable)})


def _leave_out(rng: random.Random, requirement: Requirement) -> Requirement:
    """The requirement with at least one of sizes, places, background and (rarely) colours left open."""
    # for no object, for some, or for all
    sizes, places = (rng.choice((0.0, 0.5, 1.0)) for _ in range(2))
    objects = tuple(
        replace(
            o,
            size=None if rng.random() < sizes else o.size,
            cell=None if rng.random() < places else o.cell,
            color=None if rng.random() < 0.06 else o.color,
        )
        for o in requirement.objects
    )
    background = None if objects == requirement.objects or rng.random() < 0.5 else requirement.background
    return replace(requirement, objects=objects, background=background)


def _write(rng: random.Random, requirement: Requirement, indirect: Collection[str]) -> str:
    """One text for objects without relations."""
    objects = requirement.objects
    article = rng.random() < 0.65
    places_first = rng.random() < 0.15 and all(o.cell is not None for o in objects)
    # "a circle, red and big, in the middle"
    commas = not places_first and rng.random() < 0.15
    phrases = []
    style = rng.random()
    for obj in objects:
        phrase = describe(rng, obj, article=article, indirect=indirect, commas=commas)
        if obj.cell is None:
            phrases.append(phrase)
        elif places_first and style < 0.4:
            phrases.append(f"{rng.choice(BARE_PLACES[obj.cell])}: {phrase}")
        elif places_first:
            phrases.append(f"{rng.choice(PLACES[obj.cell])} {phrase}")
        elif commas:
            phrases.append(f"{phrase}, {rng.choice(PLACES[obj.cell])}")
        else:
            phrases.append(f"{phrase} {rng.choice((BARE_PLACES if style < 0.25 else PLACES)[obj.cell])}")
    # objects that contain commas are separated by semicolons
    separators = (
        ("; ",) if commas else (", ", " and ") if places_first else (", ", ", ", " and ", " with ", " plus ")
    )
    text = _join(rng, phrases, separators)
    return assemble(rng, text, requirement.background, indirect=indirect, opening=not places_first)


def _join(rng: random.Random, phrases: Sequence[str], separators: Sequence[str]) -> str:
    separator = rng.choice(separators)
    if separator == ", " and len(phrases) > 1 and rng.random() < 0.6:
        return ", ".join(phrases[:-1]) + rng.choice((" and ", ", and ")) + phrases[-1]
    return separator.join(phrases)


def describe(
    rng: random.Random,
    want: ObjectRequirement,
    *,
    article: bool = True,
    indirect: Collection[str] = (),
    commas: bool = False,
    plain: bool = False,
) -> str:
    """A noun phrase for all that is required except the place; `plain` puts every adjective before the noun."""
    noun = want.shape or "shape"
    if noun in indirect:
        noun = rng.choice(INDIRECT[noun])
    before: list[str] = []
    after: list[str] = []
    trailing = ""
    if want.size is not None:
        (after if not plain and rng.random() < 0.1 else before).append(rng.choice(SIZE_WORDS[want.size]))
    if want.color in indirect:
        thing = rng.choice(INDIRECT[want.color or ""])
        if rng.random() < 0.3:
            bare = thing.split()[-1].replace("grapes", "grape")
            before.append(f"{bare} {rng.choice(('coloured', 'colored'))}")
        else:
            trailing = f" {rng.choice(('', '', 'in ', 'with ', 'of '))}the {color_word(rng)} of {thing}"
    elif want.color is not None:
        if plain or rng.random() < 0.85:
            before.append(want.color)
        elif rng.random() < 0.4:
            trailing = " " + rng.choice(("in {}", "of {} {c}", "in the {c} {}")).format(
                want.color, c=color_word(rng)
            )
        else:
            after.append(want.color)
    if commas:
        before, after = [], [*before, *after]
    if len(before) == 2 and rng.random() < 0.08:
        before.reverse()
    said = " and ".join(rng.sample(after, len(after)))
    if said:
        said = f", {said}" if commas else f" {rng.choice(('that is', 'which is'))} {said}"
    phrase = " ".join([*before, noun]) + trailing + said
    return with_article(phrase) if article else phrase


def with_article(phrase: str) -> str:
    """ "a circle", "an orange circle"."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def color_word(rng: random.Random) -> str:
    """The word for colour in a random spelling."""
    return rng.choice(("color", "colour"))


def background_word(rng: random.Random, background: str) -> str:
    """The name of a background; "gray" may become "grey"."""
    return "grey" if background == "gray" and rng.random() < 0.4 else background


def assemble(
    rng: random.Random,
    objects: str,
    background: str | None,
    *,
    indirect: Collection[str] = (),
    opening: bool = True,
) -> str:
    """The whole prompt: an optional opening, the objects, and the background before or after them."""
    start = rng.choice(OPENINGS) if opening else ""
    text = f"{start} {objects}".strip()
    if background is None:
        return finish(rng, text)
    first = rng.random() < 0.2
    b = background_word(rng, background)
    form = rng.random()
    if background in indirect:
        where = rng.choice(INDIRECT[background])
        text = f"{where}, {text}" if first else f"{text}{rng.choice((' ', ' ', ', '))}{where}"
    elif form < 0.5:
        where = rng.choice(
            (
                "on a {} background",
                "on a {} background",
                "on {} background",
                "on {}",
                "with a {} background",
                "against a {} background",
                "in front of a {} background",
            )
        ).format(b)
        text = f"{where}, {text}" if first else f"{text}{rng.choice((' ', ' ', ', '))}{where}"
    elif form < 0.8:
        what = rng.choice(("{} background", "{} background", "background {}", "background: {}")).format(b)
        text = f"{what}{rng.choice((', ', '; '))}{text}" if first else f"{text}, {what}"
    else:
        what = rng.choice(
            (
                "the background is {}",
                "the background should be {}",
                "the {c} of the background is {}",
                "make the background {}",
            )
        ).format(b, c=color_word(rng))
        text = f"{what}. {text}" if first else f"{text}{rng.choice(('. ', ', '))}{what}"
    return finish(rng, text)


def finish(rng: random.Random, text: str) -> str:
    """The text with a capital letter at the start and a full stop at the end, each at random."""
    if rng.random() < 0.15:
        text = text[0].upper() + text[1:]
    return text + "." if rng.random() < 0.3 else text


def _word_relation(rng: random.Random, scene: Scene) -> Wording:
    """Two objects placed by a relation that holds; a third is placed by a relation, by its place, or not at all."""
    target = replace(scene, objects=tuple(rng.sample(scene.objects, len(scene.objects))))
    wants = [_partly(rng, o) for o in target.objects]
    names = [_definite(i, wants) for i in range(len(wants))]
    a, b, *_ = phrases = [describe(rng, want, plain=True) for want in wants]
    relation = _true_relation(rng, target.objects, 0, 1)
    opening = True
    forms = ["of", "reverse", "with"]
    if names[0] and names[1]:
        forms.append("after")
    form = rng.choice(forms)
    words = rng.choice(RELATION_WORDS[relation[1]])
    if form == "of":
        opening = rng.random() < 0.7
        text = f"{a} {words} {b}" if opening else f"{a} is {words} {b}"
    elif form == "reverse":
        opening = False
        relation = _true_relation(rng, target.objects, 1, 0)
        text = f"{rng.choice(RELATION_WORDS[relation[1]])} {a} {rng.choice(('is', 'there is'))} {b}"
    elif form == "with":
        relation = _true_relation(rng, target.objects, 1, 0)
        text = f"{a} with {b} {rng.choice(RELATION_WORDS[relation[1]])} it"
    else:
        text = f"{a} and {b}, the {names[0]} {rng.choice(('is ', ''))}{words} the {names[1]}"
    relations = [relation]

    if len(phrases) == 3:
        c, anchor = phrases[2], rng.choice((0, 1))
        chain = rng.random()
        if chain < 0.65 and names[anchor]:
            forwards = rng.random() < 0.6
            pair = (2, anchor) if forwards else (anchor, 2)
            relations.append(_true_relation(rng, target.objects, *pair))
            words = rng.choice(RELATION_WORDS[relations[1][1]])
            if forwards:
                text += rng.choice(
                    (f", and {c} is {words} the {names[anchor]}", f", {c} {words} the {names[anchor]}")
                )
            else:
                text += f"{rng.choice((', ', '; ', '. '))}the {names[anchor]} is {words} {c}"
        elif chain < 0.85:
            wants[2] = replace(wants[2], cell=target.objects[2].cell)
            place = _place_suffix(rng, wants[2].cell)
            text += f"{rng.choice(('. ', ', ', '; '))}there is also {c}{place}"
        else:
            text += rng.choice((f". there is also {c}", f", there is also {c}", f", and somewhere else {c}"))
    background = scene.background if rng.random() < 0.5 else None
    return Wording(
        text=assemble(rng, text, background, opening=opening),
        target=target,
        requirement=Requirement(objects=tuple(wants), relations=tuple(relations), background=background),
        kind="relation",
    )


def _partly(rng: random.Random, obj: SceneObject) -> ObjectRequirement:
    return ObjectRequirement(
        shape=obj.shape,
        color=obj.color if rng.random() < 0.92 else None,
        size=obj.size if rng.random() < 0.4 else None,
    )


def _definite(index: int, wants: Sequence[ObjectRequirement]) -> str | None:
    """The words after "the" that identify this object of the prompt; None if no short ones do."""
    want = wants[index]
    same = [w for i, w in enumerate(wants) if i != index and w.shape == want.shape]
    if not same:
        return want.shape
    if want.color is not None and all(w.color not in (None, want.color) for w in same):
        return f"{want.color} {want.shape}"
    return None


def _true_relation(rng: random.Random, objects: Sequence[SceneObject], i: int, j: int) -> Relation:
    """A random relation that holds between two objects; objects in distinct cells always have one."""
    return (
        i,
        rng.choice([name for name, holds in RELATIONS.items() if holds(objects[i].cell, objects[j].cell)]),
        j,
    )


def _word_count(rng: random.Random, scene: Scene) -> Wording:
    """Objects of equal colour and shape as one group: "two red circles, one at the top and one at right"."""
    counts = Counter((o.color, o.shape) for o in scene.objects)
    ordered: list[SceneObject] = []
    wants: list[ObjectRequirement] = []
    phrases: list[str] = []
    with_places = rng.random() < 0.6
    for pair in rng.sample(sorted(counts), len(counts)):
        group = [o for o in scene.objects if (o.color, o.shape) == pair]
        rng.shuffle(group)
        if len(group) > 1:
            phrase, group_wants = _word_group(rng, group, with_places=with_places)
        else:
            want = replace(_partly(rng, group[0]), color=pair[0], cell=group[0].cell if with_places else None)
            phrase, group_wants = describe(rng, want, plain=True) + _place_suffix(rng, want.cell), [want]
        ordered += group
        wants += group_wants
        phrases.append(phrase)
    nested = any("," in p or ":" in p for p in phrases)
    text = _join(rng, phrases, ("; ", ", and ", ", plus ") if nested else (", ", " and ", " plus "))
    background = scene.background if rng.random() < 0.6 else None
    return Wording(
        text=assemble(rng, text, background),
        target=replace(scene, objects=tuple(ordered)),
        requirement=Requirement(objects=tuple(wants), background=background),
        kind="count",
    )


def _word_group(
    rng: random.Random, group: Sequence[SceneObject], *, with_places: bool
) -> tuple[str, list[ObjectRequirement]]:
    """A group of equal objects: a common size or one each; places for all, for the first one, or for none."""
    shared = len({o.size for o in group}) == 1 and rng.random() < 0.6
    one_by_one = len({o.size for o in group}) > 1 and rng.random() < 0.6
    num_placed = rng.choice((1, len(group), len(group))) if with_places else 0
    wants = [
        ObjectRequirement(
            shape=o.shape,
            color=o.color,
            size=o.size if shared or one_by_one else None,
            cell=o.cell if i < num_placed else None,
        )
        for i, o in enumerate(group)
    ]
    size = f"{rng.choice(SIZE_WORDS[group[0].size])} " if shared else ""
    number, plural = rng.choice(NUMBERS[len(group)]), PLURALS[group[0].shape]
    head = rng.choice(
        (f"{number} {size}{group[0].color} {plural}",) * 3 + (f"{number} {size}{plural} in {group[0].color}",)
    )
    items = []
    for want in wants:
        one = f"a {rng.choice(SIZE_WORDS[want.size])} one" if one_by_one and want.size else "one"
        if one != "one" or want.cell is not None:
            items.append(one + _place_suffix(rng, want.cell))
    if not items:
        return head, wants
    if len(items) == 2 and items[1].startswith("one ") and rng.random() < 0.5 and len(group) == 2:
        items[1] = "the other" + items[1].removeprefix("one")
    listed = " and ".join(items) if len(items) < 3 else f"{', '.join(items[:-1])} and {items[-1]}"
    return f"{head}{rng.choice((', ', ', ', ': '))}{listed}", wants


def _place_suffix(rng: random.Random, cell: Cell | None) -> str:
    return "" if cell is None else f" {rng.choice(PLACES[cell])}"
