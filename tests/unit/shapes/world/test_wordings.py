"""Captions, prompts and what they fix."""

import random
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

from unifusion_core.shapes.world.captions import (
    brief_caption,
    caption,
    colorless_caption,
    parse_caption,
    sentence_caption,
)
from unifusion_core.shapes.world.lexicon import INDIRECT
from unifusion_core.shapes.world.prompts import (
    WORDING_KINDS,
    Wording,
    corpus,
    possible_kinds,
    with_equal_objects,
    word_any,
    word_scene,
)
from unifusion_core.shapes.world.requirements import Requirement, check
from unifusion_core.shapes.world.scenes import (
    BACKGROUNDS,
    COLORS,
    POSITION_NAMES,
    POSITIONS,
    SHAPES,
    SIZES,
    Scene,
    Traits,
    sample_object,
    sample_scene,
)

VALUES = {"shape": SHAPES, "color": tuple(COLORS), "size": tuple(SIZES), "cell": tuple(POSITION_NAMES)}


def wordings(kind: str, count: int = 300) -> Iterator[Wording]:
    rng = random.Random(kind)
    while count:
        scene = sample_scene(rng, held_out=None)
        if rng.random() < 0.4:
            scene = with_equal_objects(rng, scene)
        if kind in possible_kinds(scene):
            count -= 1
            yield word_scene(rng, scene, kind)


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
    return re.findall(rf"\b({longest_first})\b", plain(text))


# ---------------------------------------------------------------------------------------------- caption


def test_caption_is_canonical() -> None:
    scene = parse_caption("big red circle at top left, small blue square at center, white background.")
    assert scene is not None
    assert [o.cell for o in scene.objects] == [(0, 0), (1, 1)]
    assert caption(scene) == "big red circle at top left, small blue square at center, white background."


def test_parse_is_the_inverse_of_caption() -> None:
    rng = random.Random(0)
    for _ in range(500):
        scene = sample_scene(rng, held_out=None, max_objects=4)
        bare = replace(scene, objects=tuple(replace(o, traits=Traits()) for o in scene.objects))
        assert parse_caption(caption(scene)) == bare


def test_other_forms_of_a_caption() -> None:
    scene = parse_caption("big red circle at top left, small blue square at center, white background.")
    assert scene is not None
    assert brief_caption(scene) == "red circle at top left, blue square at center, white background."
    assert colorless_caption(scene) == "big circle at top left, small square at center, white background."
    assert sentence_caption(scene) == (
        "there is a big red circle at top left. there is a small blue square at center. the background is white."
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "white background.",
        "big red circle at top left, white background",
        "big red circle at top left.",
        "big red circle at top left , white background.",
        " big red circle at top left, white background.",
        "Big red circle at top left, white background.",
        "big red circle at top left, white background.\n",
        "big red circle at top left,  white background.",
        "big red circle at top left, red background.",
        "big white circle at top left, white background.",
        "big red circle at upper left, white background.",
        "big red circle at top left, nonsense, white background.",
        "big red circle at top, small blue star at top, white background.",
        "white background., big red circle at top",
        "".join(f"big red circle at {p}, " for p in list(POSITIONS)[:5]) + "white background.",
    ],
)
def test_parse_refuses_everything_else(text: str) -> None:
    assert parse_caption(text) is None


# ---------------------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize("kind", WORDING_KINDS)
def test_a_wording_keeps_the_scene_and_is_fulfilled_by_it(kind: str) -> None:
    rng = random.Random(kind)
    for _ in range(300):
        scene = with_equal_objects(rng, sample_scene(rng, held_out=None, num_objects=rng.choice((2, 3))))
        wording = word_scene(rng, scene, kind)
        assert wording.kind == kind
        assert wording.target.in_raster_order() == scene.in_raster_order()
        assert check(wording.requirement, wording.target).exact


@pytest.mark.parametrize("kind", WORDING_KINDS)
def test_whatever_is_fixed_is_missed_when_it_changes(kind: str) -> None:
    rng = random.Random(0)
    for wording in wordings(kind):
        target, requirement = wording.target, wording.requirement
        free = [c for c in POSITION_NAMES if c not in {o.cell for o in target.objects}]
        more = replace(target, objects=(*target.objects, sample_object(rng, rng.choice(free))))
        assert not check(requirement, more).exact
        assert not check(requirement, replace(target, objects=target.objects[1:])).exact
        if requirement.background:
            for background in set(BACKGROUNDS) - {requirement.background}:
                assert not check(requirement, replace(target, background=background)).exact
        for i, want in enumerate(requirement.objects):
            alone = replace(requirement, objects=(want,), relations=(), background=None)
            if any(
                check(alone, replace(target, objects=(o,))).exact
                for j, o in enumerate(target.objects)
                if j != i
            ):
                continue  # another object could take this one's part
            for attribute, values in VALUES.items():
                for value in values:
                    if getattr(want, attribute) in (None, value) or (
                        attribute == "cell" and value not in free
                    ):
                        continue
                    objects = list(target.objects)
                    objects[i] = replace(objects[i], **{attribute: value})
                    assert not check(requirement, replace(target, objects=tuple(objects))).exact, wording.text


@pytest.mark.parametrize("kind", ["full", "terse", "indirect", "caption"])
def test_the_text_says_what_is_fixed_in_order_and_nothing_else(kind: str) -> None:
    for wording in wordings(kind):
        wanted = wording.requirement.objects
        assert read(wording.text, SHAPES) == [o.shape for o in wanted], wording.text
        assert read(wording.text, tuple(COLORS)) == [o.color for o in wanted if o.color], wording.text
        assert read(wording.text, tuple(SIZES)) == [o.size for o in wanted if o.size], wording.text
        places = [POSITION_NAMES[o.cell] for o in wanted if o.cell]
        assert read(wording.text, tuple(POSITIONS)) == places, wording.text
        assert read(wording.text, tuple(BACKGROUNDS)) == [b for b in [wording.requirement.background] if b], (
            wording.text
        )
        assert not re.search(r"\b(left|right) of\b|above|over|below|under|beneath", wording.text)


def test_full_and_caption_fix_everything() -> None:
    for kind in ("full", "caption"):
        for wording in wordings(kind, 100):
            assert wording.requirement == Requirement.of(wording.target)


def test_terse_leaves_something_open_but_never_the_shape() -> None:
    for wording in wordings("terse"):
        assert wording.requirement != Requirement.of(wording.target)
        assert all(o.shape for o in wording.requirement.objects)


def test_texts_are_clean_and_varied() -> None:
    for kind in WORDING_KINDS:
        texts = [w.text for w in wordings(kind)]
        assert len(set(texts)) > 280
        for text in texts:
            assert not re.search(
                r"  |^ | $| [,.;:]|[,;:][,;:.]|\{|\}|None|\ba [aeiou]|\ban [^aeiou]", text
            ), text
            assert text.count("(") == 0


def test_relation_prompts_state_relations_that_hold() -> None:
    names = {"left": "left of", "right": "right of", "above": "above", "over": "above"}
    names |= {"below": "below", "under": "below", "beneath": "below"}
    seen = set()
    for wording in wordings("relation"):
        said = re.findall(
            r"\b(left|right)(?= of\b)|\b(above|over|below|under|beneath)\b", wording.text.lower()
        )
        relations = wording.requirement.relations
        assert [names[a or b] for a, b in said] == [r[1] for r in relations], wording.text
        assert relations[0][0] != relations[0][2]
        assert all(wording.requirement.objects[i].cell is None for i in (0, 1))
        seen |= {r[1] for r in relations}
        # objects appear in the order of first mention
        shapes = read(wording.text, SHAPES)
        assert list(dict.fromkeys(shapes)) == list(
            dict.fromkeys(o.shape for o in wording.requirement.objects)
        )
    assert seen == set(names.values())


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("{0} left of {1}", 0),
        ("left of {0} is {1}", 1),
        ("{0} with {1} left of it", 1),
        ("{0} is left of {1}", 0),
    ],
)
def test_the_grammar_of_relations_is_kept(text: str, first: int) -> None:
    """Each form of sentence, read by hand, agrees with the requirement."""
    found = 0
    for wording in wordings("relation", 1500):
        if len(wording.target.objects) != 2 or len({o.shape for o in wording.target.objects}) != 2:
            continue
        said = re.sub(r"to the left of", "left of", plain(wording.text)).replace("there is", "is").rstrip(".")
        a, b = (rf"an? [a-z ]*?{o.shape}" for o in wording.target.objects)
        if re.search(text.format(a, b), said):
            found += 1
            assert wording.requirement.relations == ((first, "left of", 1 - first),), wording.text
    assert found > 5


def test_count_prompts_name_the_group_once() -> None:
    numbers = {"two": 2, "2": 2, "three": 3, "3": 3}
    for wording in wordings("count"):
        match = re.search(
            r"\b(two|three|2|3)\b[a-z ]*?(\w+?)(es|s)\b", wording.text.lower().replace("crosses", "cross-es")
        )
        assert match, wording.text
        pairs = [(o.color, o.shape) for o in wording.requirement.objects]
        assert numbers[match[1]] in {pairs.count(p) for p in pairs}
        assert None not in sum(pairs, ())
        for i, obj in enumerate(wording.target.objects):  # no object can be recoloured unnoticed
            objects = list(wording.target.objects)
            objects[i] = replace(obj, color=next(c for c in COLORS if c not in {o.color for o in objects}))
            assert not check(wording.requirement, replace(wording.target, objects=tuple(objects))).exact
        places = [POSITION_NAMES[o.cell] for o in wording.requirement.objects if o.cell]
        assert read(wording.text, tuple(POSITIONS)) == places, wording.text


def test_indirect_prompts_never_say_the_plain_word() -> None:
    for wording in wordings("indirect"):
        text = wording.text.lower()
        wanted = wording.requirement
        required = {w for o in wanted.objects for w in (o.color, o.shape, wanted.background) if w}
        said = {w for w in required if re.search(rf"\b{w}\b", text.replace("grey", "gray"))}
        assert said < required, text
        for word in required - said:
            bare = [p.split()[-1].replace("grapes", "grape") if word in COLORS else p for p in INDIRECT[word]]
            assert any(p in text for p in bare), text


def test_other_prompts_never_speak_indirectly() -> None:
    phrases = "|".join(p for ps in INDIRECT.values() for p in ps)
    for kind in set(WORDING_KINDS) - {"indirect"}:
        for wording in wordings(kind, 100):
            assert not re.search(rf"\b({phrases})\b", wording.text.lower()), wording.text


def test_every_indirect_expression_occurs() -> None:
    text = "\n".join(w.text.lower() for w in wordings("indirect", 1500))
    for phrases in INDIRECT.values():
        for phrase in phrases:
            assert re.search(rf"\b{phrase}\b", text), phrase


def test_the_list_of_indirect_words_covers_every_plain_word() -> None:
    assert set(INDIRECT) == {*COLORS, *SHAPES, *BACKGROUNDS}
    every = [p for phrases in INDIRECT.values() for p in phrases]
    assert len(set(every)) == len(every)


def test_word_any_takes_what_is_possible() -> None:
    rng = random.Random(0)
    single = sample_scene(rng, num_objects=1)
    assert {word_any(rng, single).kind for _ in range(100)} == {"full", "terse", "indirect", "caption"}
    with pytest.raises(ValueError, match="count"):
        word_scene(rng, single, "count")


def test_same_seed_same_text() -> None:
    assert list(corpus(random.Random(3), 50)) == list(corpus(random.Random(3), 50))


def test_equal_objects_keep_cells_and_sizes() -> None:
    rng = random.Random(0)
    for _ in range(100):
        scene: Scene = sample_scene(rng, num_objects=3, held_out=rng.random() < 0.5)
        equal = with_equal_objects(rng, scene)
        assert [(o.cell, o.size) for o in equal.objects] == [(o.cell, o.size) for o in scene.objects]
        assert "count" in possible_kinds(equal)
        assert equal.held_out == scene.held_out
