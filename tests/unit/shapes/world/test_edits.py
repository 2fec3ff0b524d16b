"""Instructions about images, parsed by an independent reader."""

import random
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

from unifusion_core.shapes.world.edit_wordings import Edit, name_object
from unifusion_core.shapes.world.edits import (
    EDIT_KINDS,
    corpus,
    describe_request,
    sample_edit_into,
    sample_instruction,
)
from unifusion_core.shapes.world.lexicon import INDIRECT
from unifusion_core.shapes.world.references import LOOK_KINDS, REFERENCE_KINDS
from unifusion_core.shapes.world.requirements import Requirement, check
from unifusion_core.shapes.world.scenes import (
    BACKGROUNDS,
    COLORS,
    POSITIONS,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    sample_scene,
)

CHANGING_KINDS = (*EDIT_KINDS, *REFERENCE_KINDS)
ALL_KINDS = (*CHANGING_KINDS, *LOOK_KINDS)
Named = tuple[str, str, str, tuple[int, int]]


def edits(kind: str, count: int = 300) -> Iterator[Edit]:
    rng = random.Random(kind)
    for i in range(count):
        yield sample_instruction(rng, kind, (False, True, None)[i % 3])


def named(obj: SceneObject) -> Named:
    return obj.shape, obj.color, obj.size, obj.cell


def plain(text: str) -> str:
    """The text with every indirect expression and synonym made plain; independent of the code under test."""
    text = text.lower()
    for word, phrases in INDIRECT.items():
        for phrase in sorted(phrases, key=len, reverse=True):
            if word in COLORS:
                bare = phrase.split()[-1].replace("grapes", "grape")
                text = re.sub(rf"the colou?r of {phrase}\b|\b{bare} colou?red", word, text)
            else:
                text = re.sub(rf"\b{phrase}\b", word, text)
    synonyms = {
        "tiny|little": "small",
        "large|huge": "big",
        "upper": "top",
        "lower": "bottom",
        "grey": "gray",
    }
    synonyms |= {"middle|centre": "center"}
    for words, word in synonyms.items():
        text = re.sub(rf"\b({words})\b", word, text)
    return re.sub(r"\bcenter (left|right)|\b(top|bottom) center", lambda m: m[1] or m[2], text)


def read(text: str, words: tuple[str, ...]) -> list[str]:
    longest_first = "|".join(sorted(words, key=len, reverse=True))
    return re.findall(rf"\b({longest_first})\b", text)


def matching(text: str, scene: Scene) -> list[int]:
    """All objects of the scene that a name (in plain words) could mean."""
    return [
        i
        for i, o in enumerate(scene.objects)
        if all(o.shape == w for w in read(text, SHAPES))
        and all(o.color == w for w in read(text, tuple(COLORS)))
        and all(o.size == w for w in read(text, tuple(SIZES)))
        and all(o.cell == POSITIONS[w] for w in read(text, tuple(POSITIONS)))
    ]


def follow(kind: str, instruction: str, source: Scene) -> tuple[list[Named], str]:
    """What a reader who knows only the instruction and the picture would draw, by named properties."""
    text = plain(instruction)
    objects, background = [named(o) for o in source.objects], source.background
    if kind == "background":
        (background,) = read(text, tuple(BACKGROUNDS))
        return objects, background
    if kind == "add":
        (shape,), (color,), (place,) = (read(text, w) for w in (SHAPES, tuple(COLORS), tuple(POSITIONS)))
        size = (read(text, tuple(SIZES)) or ["open"])[0]
        return [*objects, (shape, color, size, POSITIONS[place])], background

    vocabulary = {"recolor": tuple(COLORS), "reshape": SHAPES, "move": tuple(POSITIONS)}.get(kind)
    new = ""
    if kind == "reshape" and "instead of" in text:  # the new one comes first
        new, text = read(text, SHAPES)[0], text.partition("instead of")[2]
    elif vocabulary:  # the new one comes last
        new = read(text, vocabulary)[-1]
        text = text[: text.rindex(new)]
    elif kind == "resize":
        grows = re.compile(r"bigger|larger|enlarge|increase|scale .* up|grow|big\.?$")
        shrinks = re.compile(r"smaller|shrink|reduce|scale .* down|small\.?$")
        assert bool(grows.search(text)) != bool(shrinks.search(text)), instruction
        new = "big" if grows.search(text) else "small"
        text = re.sub(r"(big|small)\.?$", "", text)
    (i,) = matching(text, source)  # never two
    shape, color, size, cell = objects[i]
    if kind == "remove":
        del objects[i]
    else:
        objects[i] = {
            "recolor": (shape, new, size, cell),
            "reshape": (new, color, size, cell),
            "resize": (shape, color, new, cell),
            "move": (shape, color, size, POSITIONS.get(new, cell)),
        }[kind]
    return objects, background


@pytest.mark.parametrize("kind", EDIT_KINDS)
def test_the_instruction_alone_leads_to_the_target(kind: str) -> None:
    for edit in edits(kind):
        objects, background = follow(kind, edit.instruction, edit.sources[0])
        target = [named(o) for o in edit.target.objects]
        if objects and objects[-1][2] == "open":
            assert edit.requirement.objects[-1].size is None
            target[-1] = (target[-1][0], target[-1][1], "open", target[-1][3])
        assert objects == target, edit.instruction
        assert background == edit.target.background


@pytest.mark.parametrize("kind", REFERENCE_KINDS)
def test_references_name_one_object_in_each_picture(kind: str) -> None:
    picture = r"(?:of|from|in) (?:picture (one|two|1|2)\b|the (first|second) picture)"
    numbers = {"one": 0, "1": 0, "first": 0, "two": 1, "2": 1, "second": 1}
    for edit in edits(kind):
        text = plain(edit.instruction)
        found = {}
        for name, number, ordinal in re.findall(
            rf"(\bthe (?:(?!\bthe\b|background|picture).)*?(?:the [a-z ]*?)?) {picture}", text
        ):
            if "background" not in name:
                found.setdefault(numbers[number or ordinal], name)
        wanted = {o[0]: o[1] for o in edit.origin if o is not None and (kind != "object_into" or o[0] == 0)}
        for source, index in wanted.items():
            assert matching(found[source], edit.sources[source]) == [index], (edit.instruction, found)


@pytest.mark.parametrize("kind", REFERENCE_KINDS)
def test_references_take_objects_and_background_from_the_right_pictures(kind: str) -> None:
    for edit in edits(kind):
        assert len(edit.sources) == (3 if kind == "two_objects_on_background" else 2)
        assert edit.target.background == edit.sources[1 if kind == "object_into" else -1].background
        from_pictures = [o[0] for o in edit.origin if o is not None]
        if kind == "object_on_background":
            assert from_pictures == [0]
        elif kind == "object_into":
            assert edit.origin == (
                *((1, j) for j in range(len(edit.sources[1].objects))),
                (0, edit.origin[-1][1]),
            )
        else:
            assert from_pictures == [0, 1]
        if edit.touched:  # a changed place is always named, last
            assert read(plain(edit.instruction), tuple(POSITIONS))[-1] == edit.target.objects[-1].position


@pytest.mark.parametrize("kind", CHANGING_KINDS)
def test_the_target_fulfils_and_no_source_does(kind: str) -> None:
    for edit in edits(kind):
        assert edit.kind == kind
        assert check(edit.requirement, edit.target).exact
        assert not any(check(edit.requirement, s).exact for s in edit.sources), edit.instruction
        full = Requirement.of(edit.target)
        if kind != "add":
            assert edit.requirement == full


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_untouched_objects_keep_every_trait(kind: str) -> None:
    for edit in edits(kind):
        assert len(edit.origin) == len(edit.target.objects)
        for i, (obj, origin) in enumerate(zip(edit.target.objects, edit.origin, strict=True)):
            if origin is None:
                assert kind == "add"
                assert i in edit.touched
                continue
            source = edit.sources[origin[0]].objects[origin[1]]
            assert (obj == source) == (i not in edit.touched)


@pytest.mark.parametrize(
    ("kind", "changed", "fresh"),
    [
        ("recolor", "color", {"shade"}),
        ("reshape", "shape", set()),
        ("resize", "size", {"scale"}),
        ("move", "cell", {"dx", "dy"}),
    ],
)
def test_a_changed_object_changes_in_one_respect(kind: str, changed: str, fresh: set[str]) -> None:
    for edit in edits(kind):
        (i,) = edit.touched
        before, after = edit.sources[0].objects[i], edit.target.objects[i]
        assert {a for a in ("shape", "color", "size", "cell") if getattr(before, a) != getattr(after, a)} == {
            changed
        }
        kept = {"dx", "dy", "scale", "shade"} - fresh
        assert all(getattr(before.traits, t) == getattr(after.traits, t) for t in kept)
        assert before.traits != after.traits or not fresh


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_scenes_are_well_formed(kind: str) -> None:
    for edit in edits(kind):
        for scene in (*edit.sources, edit.target):
            assert 1 <= len(scene.objects) <= 3
            assert len({o.cell for o in scene.objects}) == len(scene.objects)
        assert all(s == s.in_raster_order() for s in edit.sources)
        if kind in EDIT_KINDS:
            assert len(edit.target.objects) - len(edit.sources[0].objects) == {"add": 1, "remove": -1}.get(
                kind, 0
            )


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_held_out_modes(kind: str) -> None:
    rng = random.Random(0)
    for _ in range(200):
        edit = sample_instruction(rng, kind, False)
        assert not any(s.held_out for s in (*edit.sources, edit.target))
        assert sample_instruction(rng, kind, True).target.held_out


def test_a_name_means_one_object_and_places_are_not_vague() -> None:
    rng = random.Random(0)
    for _ in range(1500):
        scene = sample_scene(rng, held_out=None)
        if rng.random() < 0.5:  # alike in all but the place: only the place is left to name it by
            first = scene.objects[0]
            scene = replace(scene, objects=tuple(replace(first, cell=o.cell) for o in scene.objects))
        index = rng.randrange(len(scene.objects))
        name = name_object(rng, scene, index)
        assert matching(plain(name.text), scene) == [index] or name.text == "it", name.text
        row, column = scene.objects[index].cell
        if re.search(r" (at|on) (the )?(left|right)( side| edge)?$", name.text):
            assert [o.cell[1] for o in scene.objects].count(column) == 1
        if re.search(r" (at|on) (the )?(top|bottom)( edge)?$", name.text):
            assert [o.cell[0] for o in scene.objects].count(row) == 1
        if name.text in ("it", "the object", "the shape"):
            assert len(scene.objects) == 1
        assert name.by_place == bool(read(plain(name.text), tuple(POSITIONS)))


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_instructions_are_clean_and_varied(kind: str) -> None:
    texts = [e.instruction for e in edits(kind)]
    assert len(set(texts)) > {"background": 100, "which_picture": 40}.get(kind, 250)
    for text in texts:
        assert not re.search(
            r"  |^ | $| [,.;:]|[,;:][,;:.]|\{|\}|None|\ba [aeiou]|\ban [^aeiou]|(colou?r|size) of it\b", text
        ), text
        assert "and put it into picture two, and put" not in text


def test_describe_request_is_mostly_empty() -> None:
    rng = random.Random(0)
    requests = [describe_request(rng) for _ in range(300)]
    assert 0.4 < requests.count("") / len(requests) < 0.8
    assert len(set(requests)) > 5


def test_same_seed_same_instructions() -> None:
    assert list(corpus(random.Random(3), 50)) == list(corpus(random.Random(3), 50))


def test_an_edit_made_backwards_leads_into_the_scene() -> None:
    rng = random.Random(0)
    kinds = set()
    for _ in range(600):
        scene = sample_scene(rng, held_out=False)
        edit = sample_edit_into(rng, scene)
        kinds.add(edit.kind)
        (source,) = edit.sources
        assert edit.target.in_raster_order() == scene.in_raster_order()
        assert source == source.in_raster_order()
        assert not source.held_out
        objects, background = follow(edit.kind, edit.instruction, source)
        assert [o[:2] for o in objects] == [named(o)[:2] for o in edit.target.objects], edit.instruction
        assert background == scene.background
        for i, (obj, origin) in enumerate(zip(edit.target.objects, edit.origin, strict=True)):
            assert (origin is not None and obj == source.objects[origin[1]]) == (i not in edit.touched)
    assert kinds == set(EDIT_KINDS)
    none_but_move = dict.fromkeys(EDIT_KINDS, 0.0) | {"move": 1.0}
    assert {sample_edit_into(rng, scene, none_but_move).kind for _ in range(20)} == {"move"}


def test_objects_are_described_in_the_order_they_are_asked_for() -> None:
    orders = set()
    for look in edits("in_order"):
        text = plain(look.instruction)
        (source,) = look.sources
        listed = re.search(r"(?:order|they are): (.*)|(.*): where and what", text)
        assert listed
        asked = re.split(r", (?:then )?(?=the )", listed[1] or listed[2])
        assert [matching(name, source) for name in asked] == [[o[1]] for o in look.origin if o]
        orders.add(tuple(o[1] for o in look.origin if o))
    assert {(0, 1), (1, 0), (2, 1, 0), (1, 2, 0)} <= orders
