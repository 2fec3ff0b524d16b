"""Rewrites out of answers that hold more than a description, or were cut off: pytest tests/unit/vlm/test_rewriting_answers.py"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from unifusion_core.contracts import Request
from unifusion_core.errors import PromptError
from unifusion_core.vlm.backbone import VLMBackbone, Written
from unifusion_core.vlm.folder import load_vlm
from unifusion_core.vlm.rewrite import encode_requests, rewrite
from unifusion_core.zoo.tiny import BUILT_IN, TINY

SPEC, SETTINGS = TINY.config.vlm, TINY.rewriting
RED = Request(prompt="a red circle")
CAPTION = "big red circle at left, white background."


@pytest.fixture
def backbone() -> VLMBackbone:
    return load_vlm(BUILT_IN.vlm)


def answers(backbone: VLMBackbone, text: str, *, ended: bool = True) -> Callable[..., Written]:
    """The VLM's own `write`, with other words in its answer."""
    plain = backbone.write

    def write(*arguments: Any, **named: Any) -> Written:
        written = plain(*arguments, **named)
        return replace(written, texts=[text], ended=[ended])

    return write


@pytest.mark.parametrize("states", ["one_pass", "reencode"])
def test_the_condition_is_that_of_the_description_alone(
    backbone: VLMBackbone, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, states: Any
) -> None:
    monkeypatch.setattr(backbone, "write", answers(backbone, f"Sure, here is the description: **{CAPTION}**"))
    settings = replace(SETTINGS, states=states)

    with caplog.at_level(logging.WARNING):
        (done,) = rewrite(backbone, SPEC, [RED], settings)

    assert done.text == CAPTION
    expected = encode_requests(backbone, SPEC, [replace(RED, rewrite=CAPTION)], states=states)
    torch.testing.assert_close(done.features.states, expected.states, atol=1e-5, rtol=1e-5)
    assert "computed again" in caplog.text


def test_a_plain_answer_is_not_encoded_again(
    backbone: VLMBackbone, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = 0
    plain = backbone.encode

    def encode(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        return plain(*arguments, **named)

    monkeypatch.setattr(backbone, "encode", encode)
    (done,) = rewrite(backbone, SPEC, [RED], SETTINGS)

    assert done.text.endswith(".")
    assert calls == 0
    assert "computed again" not in caplog.text


def test_a_rewrite_that_was_cut_off_shows_its_words(
    backbone: VLMBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbone, "write", answers(backbone, f"{CAPTION} And a", ended=False))

    with pytest.raises(PromptError, match=f'So far it is: "{CAPTION} And a"'):
        rewrite(backbone, SPEC, [RED], SETTINGS)


def test_a_rewrite_that_was_cut_off_is_used_up_to_its_last_whole_sentence(
    backbone: VLMBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbone, "write", answers(backbone, f"{CAPTION} And a", ended=False))

    (done,) = rewrite(backbone, SPEC, [RED], replace(SETTINGS, cut_off="whole sentences"))

    assert done.text == CAPTION
    expected = encode_requests(backbone, SPEC, [replace(RED, rewrite=CAPTION)], states=SETTINGS.states)
    torch.testing.assert_close(done.features.states, expected.states, atol=1e-5, rtol=1e-5)


def test_an_answer_without_a_description_is_shown(
    backbone: VLMBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbone, "write", answers(backbone, "Sure!"))

    with pytest.raises(PromptError, match='"Sure!" describes nothing'):
        rewrite(backbone, SPEC, [RED], SETTINGS)
