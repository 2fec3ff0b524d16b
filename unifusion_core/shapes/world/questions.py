"""Questions about scenes in the form of GenEval 2's, their answers, and the parser that finds the answer for any scene."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from .lexicon import PLURALS
from .prompts import with_article
from .requirements import RELATIONS, ObjectRequirement, Requirement
from .scenes import BACKGROUNDS, COLORS, POSITION_NAMES, POSITIONS, SHAPES, SIZES, Scene, SceneObject

YES, NO = "Yes", "No"
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_SINGULAR = {plural: shape for shape, plural in PLURALS.items()}
_COLOR, _SHAPE = f"(?:({'|'.join(COLORS)}) )?", f"({'|'.join(SHAPES)})"
_OBJECT = _COLOR + _SHAPE


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneQuestion:
    """A question that a prompt fixes the answer of.

    skill     as GenEval 2 names it: object, count, attribute, position
    category  as DPG-Bench names it
    parents   places, in the list of the prompt's questions, of those that this one presupposes
    """

    text: str
    answer: str
    skill: str
    category: str
    parents: tuple[int, ...] = ()


def questions_of(requirement: Requirement) -> list[SceneQuestion]:
    """Questions about everything that a prompt fixes; the answers are what it asks for."""
    asked: list[SceneQuestion] = []
    first: dict[str, int] = {}

    def add(text: str, answer: str, skill: str, category: str, *parents: str) -> None:
        if text not in {question.text for question in asked}:
            places = tuple(first[name] for name in parents)
            asked.append(
                SceneQuestion(text=text, answer=answer, skill=skill, category=category, parents=places)
            )

    for want in requirement.objects:
        name = _name(want)
        if name not in first:
            first[name] = len(asked)
            add(f"Is there {with_article(name)} in the image?", YES, "object", "entity - whole")
            # not where an object of an open colour may be one of them
            if want.color is None or all(o.color for o in requirement.objects if o.shape == want.shape):
                same = [
                    o for o in requirement.objects if o.shape == want.shape and want.color in (None, o.color)
                ]
                plural = name.removesuffix(str(want.shape)) + PLURALS[str(want.shape)]
                text = f"How many {plural} are in the image?"
                add(text, NUMBERS[len(same)], "count", "other - count", name)
        if want.size is not None:
            text = f"Is there a {want.size} {name} in the image?"
            add(text, YES, "attribute", "attribute - size", name)
        if want.cell is not None:
            text = f"Is there {with_article(name)} at the {POSITION_NAMES[want.cell]} of the image?"
            add(text, YES, "position", "relation - spatial", name)
    for i, relation, j in requirement.relations:
        a, b = (_name(requirement.objects[place]) for place in (i, j))
        text = f"Is {with_article(a)} {relation} {with_article(b)}?"
        add(text, YES, "position", "relation - spatial", a, b)
    if requirement.background is not None:
        add(f"Is the background {requirement.background}?", YES, "attribute", "global")
    return asked


def _name(want: ObjectRequirement) -> str:
    return f"{want.color} {want.shape}" if want.color else str(want.shape)


def answer(text: str, scene: Scene) -> str | None:
    """The right answer for a scene: "Yes", "No" or a number word; None for a question of another form."""
    for pattern, find in _FORMS:
        if match := pattern.fullmatch(text):
            return find(match, scene)
    return None


def _yes(right: bool) -> str:
    return YES if right else NO


def _matching(scene: Scene, color: str | None, shape: str) -> list[SceneObject]:
    return [o for o in scene.objects if o.shape == shape and color in (None, o.color)]


def _count(match: re.Match[str], scene: Scene) -> str:
    return NUMBERS[len(_matching(scene, match[1], _SINGULAR[match[2]]))]


def _exists(match: re.Match[str], scene: Scene) -> str:
    size, color, shape, place = match.groups()
    found = _matching(scene, color, shape)
    found = [o for o in found if size in (None, o.size) and place in (None, o.position)]
    return _yes(bool(found))


def _related(match: re.Match[str], scene: Scene) -> str:
    holds = RELATIONS[match[3]]
    pairs = (
        (a, b) for a in _matching(scene, match[1], match[2]) for b in _matching(scene, match[4], match[5])
    )
    return _yes(any(a is not b and holds(a.cell, b.cell) for a, b in pairs))


def _background(match: re.Match[str], scene: Scene) -> str:
    return _yes(scene.background == match[1])


_FORMS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str], Scene], str]], ...] = (
    (re.compile(rf"How many {_COLOR}({'|'.join(_SINGULAR)}) are in the image\?"), _count),
    (
        re.compile(
            rf"Is there an? (?:({'|'.join(SIZES)}) )?{_OBJECT} (?:at the ({'|'.join(POSITIONS)}) of|in) the image\?"
        ),
        _exists,
    ),
    (re.compile(rf"Is an? {_OBJECT} ({'|'.join(RELATIONS)}) an? {_OBJECT}\?"), _related),
    (re.compile(rf"Is the background ({'|'.join(BACKGROUNDS)})\?"), _background),
)
