"""Commands of other text encoders in a prompt are said, their words are checked: pytest tests/unit/vlm/test_prompt_check.py"""

from __future__ import annotations

import pytest

from unifusion_core import Pipeline
from unifusion_core.contracts import Request
from unifusion_core.vlm.prompt_check import foreign_syntax, words_of
from unifusion_core.zoo.krea_2 import KREA_2
from unifusion_core.zoo.tiny import TINY


def not_drawn(prompt: str, rewrite: str | None = None) -> list[str]:
    return TINY.not_drawn(Request(prompt=prompt, rewrite=rewrite), lambda image: "")


@pytest.mark.parametrize(
    ("prompt", "named", "words"),
    [
        ("a (red:1.5) circle", ["(word:1.5)"], "a red circle"),
        ("a (big red:-.5) circle", ["(word:1.5)"], "a big red circle"),
        ("embedding:pretty a star", ["embedding:name"], "a star"),
        ("<lora:style:1> BREAK red circle", ["<lora:name:1>", "BREAK"], "red circle"),
        ("<LyCo:style:0.5> a star", ["<lora:name:1>"], "a star"),
    ],
)
def test_a_command_is_one_sentence_and_its_words_remain(prompt: str, named: list[str], words: str) -> None:
    (sentence,) = not_drawn(prompt)

    assert all(name in sentence for name in named)
    assert "plain text" in sentence
    assert words_of(Request(prompt=prompt)).prompt.split() == words.split()


@pytest.mark.parametrize("prompt", ["a red circle", "a break in the wall", "(a red circle)", "at 1:30", ""])
def test_plain_words_are_no_commands(prompt: str) -> None:
    assert foreign_syntax(prompt) == []
    assert words_of(Request(prompt=prompt)).prompt == prompt


def test_tokens_of_a_chat_template_are_no_words() -> None:
    assert not_drawn("<|system|>a red circle<|end|>") == []


def test_what_is_left_after_the_commands_is_checked() -> None:
    command, unknown = not_drawn("a (cat:1.5) and a red circle")

    assert "(word:1.5)" in command
    assert 'does not know "cat"' in unknown


def test_a_rewrite_is_checked_in_place_of_the_prompt() -> None:
    assert not_drawn("a (cat:1.5)", rewrite="big red circle at center, white background.") == []
    assert len(not_drawn("a red circle", rewrite="a (dog:1.5)")) == 2


def test_a_model_of_unknown_limits_reads_all_but_commands() -> None:
    assert KREA_2.not_drawn(Request(prompt="no cat, (seven) [dogs]"), lambda image: "") == []
    assert len(KREA_2.not_drawn(Request(prompt="a (red:1.5) cat"), lambda image: "")) == 1


def test_the_pipeline_says_it_before_it_draws(caplog: pytest.LogCaptureFixture) -> None:
    Pipeline.load()("a red cat", steps=1)

    assert [record.getMessage() for record in caplog.records if "cat" in record.getMessage()]
