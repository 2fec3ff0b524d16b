"""The description in the answers of real language models: pytest tests/unit/vlm/test_answer.py"""

from __future__ import annotations

import random

import pytest

from unifusion_core.shapes.world.captions import caption, sentence_caption
from unifusion_core.shapes.world.scenes import sample_scene
from unifusion_core.vlm.answer import description_in, whole_sentences

FOX = "A red fox sits in deep snow under a pine tree."


@pytest.mark.parametrize(
    "answer",
    [
        f"Sure, here is the description of the image: {FOX}",
        f"Sure! Here's a detailed description:\n\n{FOX}",
        f"Certainly! {FOX}",
        f'Of course. Here is the rewritten prompt:\n\n"{FOX}"',
        f"<think>The user wants a fox. I should: describe it.</think>\n{FOX}",
        f"The user wants a fox.\n</think>\n\n{FOX}",
        f"**Description:** {FOX}",
        f"### Image description\n\nDescription: {FOX}".replace("### Image description\n\n", "### "),
        f"```text\n{FOX}\n```",
        f"{FOX}\n\nLet me know if you would like changes!",
        f"Here is the translation: {FOX}",
        "A **red fox** sits in *deep snow* under a pine tree.",
        f"---\n{FOX}\n---",
    ],
)
def test_what_is_not_the_description_is_cut(answer: str) -> None:
    assert description_in(answer) == FOX


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("Sure, here is a cat.", "a cat."),
        ("Here\u2019s the red fox in snow.", "the red fox in snow."),
        ("Here are two stars.", "two stars."),
        ("Here and there a star.", "Here and there a star."),
        ("a sign that says: here is a cat.", "a sign that says: here is a cat."),
    ],
)
def test_a_greeting_without_a_colon_is_cut(answer: str, text: str) -> None:
    assert description_in(answer) == text


def test_a_list_becomes_one_description() -> None:
    answer = "Here is the description:\n\n- a red fox\n- deep snow\n1. a pine tree in the back"

    assert description_in(answer) == "a red fox, deep snow, a pine tree in the back"


@pytest.mark.parametrize("answer", ["", "<think>hm", "Sure!", "```\n```"])
def test_an_answer_without_a_description_is_empty(answer: str) -> None:
    assert description_in(answer) == ""


def test_a_plain_description_is_left_as_it_is() -> None:
    rng = random.Random(0)
    for text in (
        *(write(sample_scene(rng)) for write in (caption, sentence_caption) for _ in range(200)),
        'A sign that reads "Sure: here is the image" above a door.',
        "Here stands a tower; its picture: a poster of 3 * 4 meters.",
        "The image shows a fox. It is 2.5 m long - rather large.",
        "A lighthouse at dusk.\n\nIts light falls on the sea.",
        "Great waves off a coast, 4:3, this is the picture of a storm",
    ):
        assert description_in(text) == text


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("A fox sits. It is red. Behind it, a", "A fox sits. It is red."),
        ('He says "Stop!" and then', 'He says "Stop!"'),
        ("A fox of 2.5 m", ""),
        ("A fox sits.", "A fox sits."),
    ],
)
def test_whole_sentences(text: str, kept: str) -> None:
    assert whole_sentences(text) == kept
