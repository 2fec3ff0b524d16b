"""A VLM as judge: pytest tests/unit/evaluation/benchmarks/test_judge.py"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from unifusion_core.contracts import Request
from unifusion_core.errors import VLMError
from unifusion_core.evaluation.benchmarks.benchmark import Item, Question, Shown
from unifusion_core.evaluation.benchmarks.judge import AGAIN, NO, SIDE, YES, VLMJudge
from unifusion_core.evaluation.benchmarks.soft_tifa import one_word_question

ITEM = Item(id="a", prompt="a cup")


def shown(*, inputs: int = 0) -> Shown:
    images = torch.rand(1 + inputs, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return Shown(item=ITEM, output=images[0], inputs=tuple(images[1:]))


def probabilities(judge: VLMJudge, images: list[torch.Tensor], asked: str) -> dict[str, float]:
    """Token -> probability of being the first of the answer, from the chat of this question alone."""
    backbone = judge.backbone
    chat = backbone.prepare([Request(prompt=asked, images=images)], max_tiles=1)
    with torch.no_grad():
        logits = backbone.model(
            input_ids=chat.token_ids,
            attention_mask=chat.mask.long(),
            position_ids=backbone._position_ids(chat),
            **chat.pixel_inputs,
        ).logits[0, -1]
    shares = torch.softmax(logits, 0).tolist()
    return {str(backbone.tokenizer.decode([token])): share for token, share in enumerate(shares)}


def test_the_probability_is_that_of_all_accepted_first_tokens(judge: VLMJudge) -> None:
    questions = [one_word_question("Is it a cup?", "Yes"), one_word_question("How many cups?", "two")]
    answers = judge.answer(shown(), questions)
    for question, answer in zip(questions, answers, strict=True):
        by_token = probabilities(judge, [shown().output], question.text + " Answer in one word.")
        # " 2" starts with a space of its own here, which says nothing
        spelled = [s for s in question.accepted if s in by_token]
        assert len(spelled) >= 4
        assert answer.probability == pytest.approx(sum(by_token[s] for s in spelled), rel=1e-3)
        assert answer.text == max(by_token, key=lambda token: by_token[token]).strip()


def test_a_question_about_the_inputs_sees_them_too(judge: VLMJudge) -> None:
    about_all = Question(text="q", accepted=YES, sees="all")
    about_output = Question(text="q", accepted=YES)
    images = shown(inputs=1)
    both, alone = judge.answer(images, [about_all, about_output])
    in_order = probabilities(judge, [*images.inputs, images.output], "q")
    assert both.probability == pytest.approx(sum(in_order[s] for s in YES), rel=1e-3)
    assert both.probability != pytest.approx(alone.probability, rel=1e-3)


def test_more_questions_than_fit_at_once_are_answered_in_order(judge: VLMJudge) -> None:
    questions = [one_word_question(f"Is it {number}?", "Yes") for number in range(19)]
    together = [answer.probability for answer in judge.answer(shown(), questions)]
    alone = [judge.answer(shown(), [question])[0].probability for question in questions]
    assert together == pytest.approx(alone, rel=1e-3)


def test_an_answer_without_a_usable_form_is_asked_for_once_more(
    judge: VLMJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    prepare = judge.backbone.prepare
    monkeypatch.setattr(
        judge.backbone, "prepare", lambda r, *how: asked.append(r[0].prompt) or prepare(r, *how)
    )
    valid: list[bool] = [False, True]
    question = Question(text="rate", ask="Rate it.", max_new_tokens=3, is_valid=lambda text: valid.pop(0))
    (answer,) = judge.answer(shown(), [question])
    assert asked == ["Rate it.", "Rate it." + AGAIN]
    assert answer.probability is None
    asked.clear()
    # greedy: the same again, and the failure is kept as it is
    never = Question(text="rate", ask="Rate it.", max_new_tokens=3, is_valid=lambda text: False)
    assert judge.answer(shown(), [never]) == [answer]
    assert len(asked) == 2


def test_answers_that_start_alike_cannot_be_told_apart(
    judge: VLMJudge, build_judge: Callable[[list[str]], VLMJudge]
) -> None:
    counts = [one_word_question("How many?", number) for number in ("two", "three")]
    judge.check(counts)
    bytes_only = build_judge([])
    with pytest.raises(VLMError, match='"three" and "two" start with the same token of the judge other'):
        bytes_only.check(counts)


def test_an_answer_without_a_token_is_refused(judge: VLMJudge) -> None:
    with pytest.raises(VLMError, match='has no token for the answer " "'):
        judge.check([Question(text="q", accepted=(" ",))])


def test_the_identity_tells_weights_precision_and_tiles(judge_folder: Path) -> None:
    judge = VLMJudge.load(judge_folder)
    assert judge.identity == {
        "name": judge_folder.name,
        "family": "qwen3_vl",
        "fingerprint": judge.backbone.fingerprint,
        "dtype": "float32",
        # one tile: Qwen would count an object once per tile
        "max_tiles": 1,
        "tile_size": SIDE,
    }
    assert VLMJudge.load(judge_folder, dtype=torch.bfloat16).identity["dtype"] == "bfloat16"


def test_no_is_known_where_yes_is_right(judge: VLMJudge) -> None:
    assert set(judge.first_tokens((*YES, *NO)).values()) == {*YES, *NO}
