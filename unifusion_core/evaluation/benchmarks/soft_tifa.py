"""Soft-TIFA (GenEval 2, arXiv 2512.16853): the judge's probabilities of the right answers, averaged.

The arithmetic mean over a prompt's questions estimates how many of its atoms are right, the geometric mean whether all are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from .benchmark import Answer, Answers, Item, Key, Question, Scores, images_of
from .bootstrap import mean_interval
from .judge import YES

ONE_WORD = " Answer in one word."
NUMBERS = {
    name: str(number)
    for number, name in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
}
# of answers that are none of the expected ones, above which a note says so
MANY_UNEXPECTED = 0.1


def spellings(answer: str) -> tuple[str, ...]:
    """What counts as this answer: "yes", and numbers as words and as digits, each with a capital and after a space."""
    if answer.lower() == "yes":
        return YES
    forms = (answer, answer.capitalize(), *([NUMBERS[answer.lower()]] if answer.lower() in NUMBERS else []))
    return tuple(dict.fromkeys(space + form for space in ("", " ") for form in forms))


def one_word_question(text: str, answer: str) -> Question:
    """A question with its right answer, asked for one word."""
    return Question(text=text, ask=text + ONE_WORD, accepted=spellings(answer))


def geometric_mean(values: Sequence[float]) -> float:
    """0 if one of the values is."""
    return 0.0 if min(values) <= 0 else math.exp(fmean(math.log(value) for value in values))


def score_images(
    items: Sequence[Item], answers: Answers, groups: Mapping[str, Callable[[Item], str]]
) -> Scores:
    """The three means over all images, with a table for each of `groups` (title -> the item's group).

    Questions may have a skill each: `item.labels["skills"]`, in their order.
    """
    images = images_of(items, answers)
    soft = {key: [_probability(answers[key][q.text]) for q in item.questions] for item, key in images}
    hard = {
        key: [float(answers[key][q.text].is_one_of(q.accepted)) for q in item.questions]
        for item, key in images
    }
    geometric = {key: geometric_mean(values) for key, values in soft.items()}
    arithmetic = {key: fmean(values) for key, values in soft.items()}
    tifa = {key: fmean(values) for key, values in hard.items()}
    columns = {"geometric_mean": geometric, "arithmetic_mean": arithmetic, "hard_mean": tifa}
    values = {name: fmean(column.values()) for name, column in columns.items()}
    intervals = {name: mean_interval(by_prompt(images, column)) for name, column in columns.items()}
    tables: dict[str, dict[str, dict[str, float]]] = {}
    for title, group_of in groups.items():
        keys: dict[str, list[Key]] = {}
        for item, key in images:
            keys.setdefault(group_of(item), []).append(key)
        tables[title] = {
            group: {name: fmean(column[key] for key in own) for name, column in columns.items()}
            | {"images": len(own)}
            for group, own in keys.items()
        }
    skills: dict[str, list[tuple[float, float]]] = {}
    for item, key in images:
        for skill, *pair in zip(item.labels.get("skills", ()), soft[key], hard[key], strict=False):
            skills.setdefault(skill, []).append((pair[0], pair[1]))
    if skills:
        tables["skill"] = {
            skill: {
                "arithmetic_mean": fmean(pair[0] for pair in pairs),
                "hard_mean": fmean(pair[1] for pair in pairs),
                "questions": len(pairs),
            }
            for skill, pairs in sorted(skills.items())
        }
    return Scores(
        values=values,
        intervals=intervals,
        tables=tables,
        of_images=geometric,
        notes=unexpected_answers(images, answers),
    )


def by_prompt(images: Sequence[tuple[Item, Key]], column: Mapping[Key, float]) -> list[float]:
    """The mean over each prompt's images: prompts are what is resampled."""
    of_prompt: dict[str, list[float]] = {}
    for item, key in images:
        of_prompt.setdefault(item.id, []).append(column[key])
    return [fmean(values) for values in of_prompt.values()]


def unexpected_answers(images: Sequence[tuple[Item, Key]], answers: Answers) -> tuple[str, ...]:
    """A sentence if many answers are neither yes, no nor a number: such a judge may not have understood."""
    expected = {"yes", "no", *NUMBERS, *NUMBERS.values()}
    given = [answers[key][q.text].text.lower().strip(".") for item, key in images for q in item.questions]
    wrong = sum(text not in expected for text in given)
    if wrong <= MANY_UNEXPECTED * len(given):
        return ()
    return (
        f"The judge gave {wrong} of {len(given)} answers in other words than yes, no or a number: run --suite judge "
        "before you trust "
        "it.",
    )


def _probability(answer: Answer) -> float:
    return answer.probability or 0.0
