"""The judge's exam, and a benchmark drawn in several ways: pytest tests/unit/evaluation/benchmarks/test_exam_and_ways.py"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from unifusion_core.errors import ConfigError
from unifusion_core.evaluation.benchmarks.benchmark import Answer, Item, Question, Way
from unifusion_core.evaluation.benchmarks.drift import Drift
from unifusion_core.evaluation.benchmarks.exam import Exam
from unifusion_core.evaluation.benchmarks.geneval2 import GenEval2
from unifusion_core.evaluation.benchmarks.judge import NO, YES
from unifusion_core.evaluation.benchmarks.reconstruct import Reconstruct
from unifusion_core.evaluation.benchmarks.references import References
from unifusion_core.evaluation.benchmarks.report import agreement, table
from unifusion_core.evaluation.benchmarks.ways import layers, paired_difference, verifi

# Exam ---------------------------------------------------------------------------------------------


@pytest.fixture
def exam(tmp_path: Path) -> list[Item]:
    """Thirty images with two questions each: one of yes, one of no."""
    lines = []
    for number in range(30):
        Image.new("RGB", (20, 10), "red").save(tmp_path / f"{number}.png")
        for question, answer in (("Is it red?", "yes"), ("Is it blue?", "no")):
            lines.append({"image": f"{number}.png", "question": question, "answer": answer, "skill": answer})
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Exam().read(tmp_path)


def answers_of(items: Sequence[Item], says: Callable[[Item, Question], str]) -> dict:
    return {
        (item.id, 0): {
            q.text: Answer(
                text=text, probability=float(text.lower() in [a.strip().lower() for a in q.accepted])
            )
            for q in item.questions
            for text in [says(item, q)]
        }
        for item in items
    }


def test_every_image_is_asked_again_as_a_gray_one(exam: list[Item]) -> None:
    seen, blind = exam[:2]
    assert (seen.id, blind.id) == ("0.png", "0.png.blind")
    assert seen.source == blind.source
    assert [q.accepted for q in seen.questions] == [YES, NO]
    (gray,) = blind.read_images()
    assert gray.shape == (3, 10, 20)
    assert torch.equal(gray, torch.full_like(gray, 0.5))


def test_a_judge_that_sees_passes(exam: list[Item]) -> None:
    def says(item: Item, question: Question) -> str:
        return "Yes" if item.labels["blind"] else ("Yes" if "red" in question.text else "No")

    scores = Exam().score(exam, answers_of(exam, says))
    assert scores.values["accuracy"] == 1.0
    assert scores.values["balanced_accuracy"] == 1.0
    assert scores.values["accuracy_without_image"] == 0.5
    assert scores.values["gain_from_image"] == 0.5
    assert scores.values["share_of_commonest_answer"] == 0.5
    assert "The judge sees" in scores.notes[0]


def test_a_judge_that_says_yes_to_everything_is_blind(exam: list[Item]) -> None:
    scores = Exam().score(exam, answers_of(exam, lambda item, question: "Yes"))
    assert scores.values["accuracy"] == 0.5
    assert scores.values["balanced_accuracy"] == 0.5
    assert scores.tables["truth"]["yes"] == {"right": 1.0, "questions": 30}
    assert scores.tables["truth"]["no"]["right"] == 0.0
    assert "The judge is blind" in scores.notes[0]


def test_a_judge_that_guesses_from_the_words_is_blind_however_right(exam: list[Item]) -> None:
    scores = Exam().score(
        exam, answers_of(exam, lambda item, question: "Yes" if "red" in question.text else "No")
    )
    assert scores.values["accuracy"] == 1.0
    assert "The judge is blind" in scores.notes[0]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ({"image": "0.png", "question": "q"}, 'lacks "answer"'),
        ({"image": "missing.png", "question": "q", "answer": "yes"}, "there is no image"),
    ],
)
def test_questions_that_cannot_be_asked_are_refused(tmp_path: Path, line: dict, sentence: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    (tmp_path / "questions.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(ConfigError, match=sentence):
        Exam().read(tmp_path)
    twice = json.dumps({"image": "0.png", "question": "q", "answer": "yes"}) + "\n"
    (tmp_path / "questions.jsonl").write_text(twice * 2)
    with pytest.raises(ConfigError, match="a second time"):
        Exam().read(tmp_path)


# Ways ---------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    lines = [
        {
            "prompt": f"{n} cups",
            "atom_count": 3,
            "vqa_list": [["Is there a cup?", "Yes"]],
            "skills": ["object"],
        }
        for n in range(4)
    ]
    path = tmp_path / "geneval2_data.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_each_item_is_drawn_once_per_way(data: Path) -> None:
    items = verifi(GenEval2(), style="detailed").read(data)
    assert len(items) == 12
    assert [(i.id, i.way.rewriting, i.way.style) for i in items[:3]] == [
        ("0001.rewritten", True, ""),
        ("0001.as-it-is", False, ""),
        ("0001.styled", True, "detailed"),
    ]
    assert {item.source for item in items[:3]} == {"0001"}


def test_another_system_text_is_paired_with_the_models_own(data: Path) -> None:
    benchmark = verifi(GenEval2(), system="Say it in ten words.")
    items = benchmark.read(data)
    assert [(i.id, i.way.rewriting, i.way.system) for i in items[:3]] == [
        ("0001.rewritten", True, ""),
        ("0001.as-it-is", False, ""),
        ("0001.other-system", True, "Say it in ten words."),
    ]
    good = {"Is there a cup?": Answer(text="Yes", probability=0.75)}
    poor = {"Is there a cup?": Answer(text="No", probability=0.25)}
    answers = {(i.id, 0): good if i.way.system else poor for i in items}
    scores = benchmark.score(items, answers)
    assert scores.values["other-system minus rewritten"] == pytest.approx(0.5)
    assert scores.intervals["other-system minus rewritten"] == pytest.approx((0.5, 0.5))


def test_layers_are_left_out_one_by_one(data: Path) -> None:
    items = layers(GenEval2(), (0, 2, 5)).read(data)
    assert [(i.id, i.way.layer_gains) for i in items[:4]] == [
        ("0001.all-layers", None),
        ("0001.without-0", (0.0, 1.0, 1.0)),
        ("0001.without-2", (1.0, 0.0, 1.0)),
        ("0001.without-5", (1.0, 1.0, 0.0)),
    ]


def test_the_items_own_tiles_and_rewriting_stay_where_a_way_leaves_them_open(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    items = layers(Reconstruct(), (0, 1)).read(tmp_path)
    assert items[0].way == Way(rewriting=False, max_tiles=1)
    assert items[-1].way == Way(rewriting=False, max_tiles=10, layer_gains=(1.0, 0.0))


def test_differences_are_taken_per_prompt(data: Path) -> None:
    benchmark = verifi(GenEval2())
    items = benchmark.read(data)
    # rewriting helps by a tenth, whatever the prompt
    easy = {f"000{n}": 0.2 * n for n in range(1, 5)}
    answers = {
        (item.id, 0): {
            "Is there a cup?": Answer(
                text="Yes", probability=easy[item.id[:4]] + 0.1 * item.id.endswith("rewritten")
            )
        }
        for item in items
    }
    scores = benchmark.score(items, answers)
    assert scores.values["geometric_mean, rewritten"] == pytest.approx(0.6)
    assert scores.values["geometric_mean, as-it-is"] == pytest.approx(0.5)
    assert scores.values["as-it-is minus rewritten"] == pytest.approx(-0.1)
    # paired: the spread of the prompts does not widen it
    assert scores.intervals["as-it-is minus rewritten"] == pytest.approx((-0.1, -0.1))
    low, high = scores.intervals["geometric_mean, rewritten"]
    assert high - low > 0.2
    assert scores.of_images[("0001.as-it-is", 0)] == pytest.approx(0.2)


def test_paired_differences_need_shared_images() -> None:
    one, other = {("a", 0): 1.0, ("a", 1): 0.5, ("b", 0): 0.0}, {("a", 0): 0.5, ("a", 1): 0.5, ("c", 0): 1.0}
    # the two images of a prompt count as one
    assert paired_difference(one, other)[0] == pytest.approx(0.25)
    assert paired_difference(one, {})[0] != paired_difference(one, {})[0]


def test_what_draws_nothing_has_no_ways() -> None:
    with pytest.raises(ConfigError, match="draws nothing that verifi could compare"):
        verifi(Exam())
    assert verifi(Drift()).own_judge() is not None


# Reports and files --------------------------------------------------------------------------------


def test_agreement_beyond_chance() -> None:
    assert agreement([("yes", "yes"), ("no", "no")]) == {"same": 1.0, "kappa": 1.0, "answers": 2}
    # by habit alone: 0.5
    half = agreement([("yes", "yes"), ("yes", "no"), ("no", "yes"), ("no", "no")])
    assert half == {"same": 0.5, "kappa": 0.0, "answers": 4}


def test_wide_tables_go_on_below() -> None:
    rows = {"a row with a very long name that does not fit": {f"column {n}": 0.5 for n in range(9)}}
    lines = table("title", rows)
    assert len(lines) == 6
    assert max(map(len, lines)) <= 100
    assert "column 8" in lines[-2]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"questions": []}, "give pairs of a question and its answer"),
        ({"images": ["2.png"]}, r"there is no image .*2\.png"),
        ({"images": []}, "has no image"),
    ],
)
def test_references_that_do_not_fit_are_refused(tmp_path: Path, changes: dict, sentence: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    line = {"id": "a", "prompt": "p", "images": ["1.png"], "questions": [["Is it red?", "yes"]]}
    (tmp_path / "references.jsonl").write_text(json.dumps(line) + "\n")
    (item,) = References().read(tmp_path)
    assert item.questions[0].accepted == YES
    (tmp_path / "references.jsonl").write_text(json.dumps(line | changes) + "\n")
    with pytest.raises(ConfigError, match=sentence):
        References().read(tmp_path)
