"""What a VLM cannot read in a prompt is said: pytest tests/unit/vlm/test_prompt_check.py"""

from __future__ import annotations

import random

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from unifusion_core import Pipeline
from unifusion_core.contracts import Request
from unifusion_core.shapes.world.edits import sample_edit
from unifusion_core.shapes.world.prompts import corpus
from unifusion_core.vlm.folder import load_tokenizer
from unifusion_core.vlm.prompt_check import FIXED_VOCABULARY, unknown_words, unread_parts
from unifusion_core.zoo.tiny import BUILT_IN

IMAGE = torch.zeros(3, 8, 8)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return load_tokenizer(BUILT_IN.vlm)


@pytest.fixture
def large(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same with a vocabulary as large as those of large VLMs."""
    larger = load_tokenizer(BUILT_IN.vlm)
    larger.add_tokens([f"<{number}>" for number in range(FIXED_VOCABULARY)])
    return larger


def test_nothing_that_the_model_was_trained_on_is_called_unread(tokenizer: PreTrainedTokenizerFast) -> None:
    rng = random.Random(0)
    edits = [
        sample_edit(rng, kind).instruction
        for kind in ("recolor", "remove", "add", "move", "background") * 100
    ]

    for prompt in corpus(rng, 2000):
        assert unread_parts(tokenizer, Request(prompt=prompt)) == [], prompt
    for instruction in edits:
        request = Request(prompt=instruction, images=[IMAGE])
        assert unread_parts(tokenizer, request) == [], instruction


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ("a photo of a cat on a skateboard", ["photo, cat, skateboard"]),
        ("a heptagon", ["heptagon"]),
        ("ein roter Kreis", ["ein, roter, kreis"]),
        ("a blue star, no red circle", ['"no" is not understood']),
        ("seven blue stars", ['"seven"', "three"]),
        ("((big)) [red] circle", ["Brackets"]),
        ("a (red:1.5) circle", ["(word:1.5)", "plain text"]),
        ("embedding:pretty <lora:style:1> BREAK red circle", ["embedding", "<lora", "BREAK"]),
    ],
)
def test_what_it_cannot_read_is_named(
    tokenizer: PreTrainedTokenizerFast, prompt: str, named: list[str]
) -> None:
    said = " ".join(unread_parts(tokenizer, Request(prompt=prompt)))

    for each in named:
        assert each in said


def test_a_weight_is_one_sentence(tokenizer: PreTrainedTokenizerFast) -> None:
    (sentence,) = unread_parts(tokenizer, Request(prompt="a (red:1.5) circle"))

    assert unknown_words(tokenizer, "a red circle") == []
    assert "plain text" in sentence


def test_a_large_vocabulary_reads_all_but_commands(large: PreTrainedTokenizerFast) -> None:
    assert unread_parts(large, Request(prompt="no cat, (seven) [dogs]")) == []
    assert len(unread_parts(large, Request(prompt="a (red:1.5) cat"))) == 1


def test_the_pipeline_says_it_before_it_draws(caplog: pytest.LogCaptureFixture) -> None:
    Pipeline.load()("a red cat", steps=1)

    assert [record.getMessage() for record in caplog.records if "cat" in record.getMessage()]
