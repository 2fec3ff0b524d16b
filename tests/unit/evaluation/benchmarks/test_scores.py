"""Scores from invented answers, against values computed by hand: pytest tests/unit/evaluation/benchmarks/test_scores.py"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from unifusion_core.errors import ConfigError
from unifusion_core.evaluation.benchmarks.benchmark import Answer, Benchmark, Item
from unifusion_core.evaluation.benchmarks.bootstrap import mean_interval
from unifusion_core.evaluation.benchmarks.dpg import DPG, PAPER, apply_dependencies
from unifusion_core.evaluation.benchmarks.gedit import CONSISTENCY, QUALITY, GEdit, parse_ratings
from unifusion_core.evaluation.benchmarks.geneval2 import GenEval2
from unifusion_core.evaluation.benchmarks.soft_tifa import geometric_mean, spellings

COLUMNS = ("item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language")


def write_geneval2(path: Path, lines: Sequence[dict]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def a_line(**changes: object) -> dict:
    line = {
        "prompt": "two red cups and a dog",
        "atom_count": 4,
        "vqa_list": [["How many cups are in the image?", "two"], ["Are the cups red?", "Yes"]],
        "skills": ["count", "attribute"],
    }
    return line | changes


def write_dpg(path: Path, rows: Sequence[Sequence[object]], columns: Sequence[str] = COLUMNS) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def answered(items: Sequence[Item], *, yes: dict[str, Sequence[float]]) -> dict:
    """Per item and seed the answers with these probabilities of yes, in the order of its questions; `yes`: id -> per seed."""
    return {
        (item.id, seed): {
            q.text: Answer(text="Yes" if p >= 0.5 else "No", probability=p)
            for q, p in zip(item.questions, row, strict=True)
        }
        for item in items
        for seed, row in enumerate(yes[item.id])
    }


# GenEval 2 ----------------------------------------------------------------------------------------


def test_soft_tifa_is_the_mean_of_probabilities_and_of_geometric_means(tmp_path: Path) -> None:
    other = a_line(prompt="a dog", atom_count=3, vqa_list=[["Is there a dog?", "Yes"]], skills=["object"])
    benchmark = GenEval2()
    items = benchmark.read(write_geneval2(tmp_path / "geneval2_data.jsonl", [a_line(), other]))
    answers = {
        ("0001", 0): {
            "How many cups are in the image?": Answer(text="2", probability=0.25),
            "Are the cups red?": Answer(text="No", probability=0.04),
        },
        ("0002", 0): {"Is there a dog?": Answer(text="yes", probability=0.9)},
    }
    scores = benchmark.score(items, answers)
    # sqrt(0.25 * 0.04) = 0.1; (0.25 + 0.04) / 2 = 0.145
    assert scores.values["geometric_mean"] == pytest.approx((0.1 + 0.9) / 2)
    assert scores.values["arithmetic_mean"] == pytest.approx((0.145 + 0.9) / 2)
    assert scores.values["hard_mean"] == pytest.approx((0.5 + 1) / 2)
    assert next(iter(scores.values)) == "geometric_mean"
    assert scores.tables["skill"]["count"]["arithmetic_mean"] == pytest.approx(0.25)
    assert scores.tables["skill"]["attribute"]["arithmetic_mean"] == pytest.approx(0.04)
    assert scores.tables["atoms"]["4"]["geometric_mean"] == pytest.approx(0.1)
    assert scores.tables["atoms"]["3"]["images"] == 1
    assert "CC BY-NC" in benchmark.licence


def test_a_question_that_a_prompt_asks_twice_counts_twice(tmp_path: Path) -> None:
    pairs = [["Are they red?", "Yes"], ["Are they red?", "Yes"], ["Is there a cup?", "Yes"]]
    line = a_line(vqa_list=pairs, skills=["attribute", "attribute", "object"])
    items = GenEval2().read(write_geneval2(tmp_path / "geneval2_data.jsonl", [line]))
    given = {
        "Are they red?": Answer(text="No", probability=0.0),
        "Is there a cup?": Answer(text="Yes", probability=1.0),
    }
    scores = GenEval2().score(items, {("0001", 0): given})
    assert scores.values["arithmetic_mean"] == pytest.approx(1 / 3)
    assert scores.tables["skill"]["attribute"]["questions"] == 2


def test_accepted_spellings_are_those_of_the_public_script() -> None:
    assert set(spellings("Yes")) == {"Yes", "yes", " yes", " Yes"}
    assert set(spellings("six")) == {"six", "Six", " six", " Six", "6", " 6"}


def test_geometric_mean_of_a_zero_is_zero() -> None:
    assert geometric_mean([0.0, 1.0]) == 0
    assert geometric_mean([0.5, 0.5, 0.5]) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ({"prompt": "a"}, "line 1 lacks atom_count, skills, vqa_list: the file is of another version"),
        (a_line(skills=["count"]), "has 2 questions and 1 skills"),
    ],
)
def test_a_file_of_another_version_is_refused(tmp_path: Path, line: dict, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        GenEval2().read(write_geneval2(tmp_path / "geneval2_data.jsonl", [line]))


def test_a_file_that_is_missing_or_cut_off_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"github\.com/facebookresearch/GenEval2"):
        GenEval2().read(tmp_path)
    file = tmp_path / "geneval2_data.jsonl"
    file.write_text(json.dumps(a_line()) + "\n" + json.dumps(a_line())[:40])
    with pytest.raises(ConfigError, match=r"line 2 is no JSON .*cut off or damaged"):
        GenEval2().read(file)


# DPG-Bench ----------------------------------------------------------------------------------------


def test_a_question_counts_zero_if_a_parent_does() -> None:
    # 0 <- 1 <- 2, and 3 of nobody
    parents = [[], [0], [1], []]
    assert apply_dependencies([1, 1, 1, 1], parents) == [1, 1, 1, 1]
    assert apply_dependencies([0, 1, 1, 1], parents) == [0, 0, 0, 1]
    assert apply_dependencies([1, 0, 1, 0], parents) == [1, 0, 0, 0]
    # soft: below one half is no
    assert apply_dependencies([0.4, 0.9, 0.9, 0.3], parents) == [0.4, 0, 0, 0.3]
    assert apply_dependencies([0.6, 0.7, 0.9, 0.3], parents) == [0.6, 0.7, 0.9, 0.3]


def test_dpg_micro_macro_and_best_of_several_by_hand(tmp_path: Path) -> None:
    rows = [
        ("p", "a red cup", 1, "0", "entity - whole (cup)", "Is there a cup?"),
        ("p", "a red cup", 2, "1", "attribute - color (cup, red)", "Is the cup red?"),
        ("q", "two dogs", 1, "0", "entity - whole (dogs)", "Are there dogs?"),
        ("q", "two dogs", 2, "1", "other - count (dogs, 2)", "Are there two dogs?"),
        ("q", "two dogs", 3, "0", "global - (photo)", "Is this a photo?"),
    ]
    benchmark = DPG()
    items = benchmark.read(write_dpg(tmp_path / "dpg_bench.csv", rows))
    # the first row counts
    assert [len(item.questions) for item in items] == [2, 3]
    yes = {"p": [(0, 1), (1, 1)], "q": [(1, 0, 1), (1, 1, 0)]}
    scores = benchmark.score(items, answered(items, yes=yes))
    # p: the colour counts 0 in the first image, as its cup is missing: 0 and 1; q: 2/3 and 2/3
    assert scores.values["micro"] == pytest.approx((0.5 + 2 / 3) / 2)
    assert scores.values["micro_best"] == pytest.approx((1 + 2 / 3) / 2)
    # before the rule: whole (0.5 + 1) / 2, color 1, count 0.5, global 0.5
    assert scores.values["macro"] == pytest.approx((0.75 + 1 + 0.5 + 0.5) / 4)
    # color 0.5 after it
    assert scores.values["macro_after_rule"] == pytest.approx((0.75 + 0.5 + 0.5 + 0.5) / 4)
    assert scores.values["macro_best"] == pytest.approx(1.0)
    assert scores.tables["category"]["attribute - color"]["average"] == pytest.approx(1.0)
    assert scores.tables["broad category"]["entity"]["questions"] == 2
    assert scores.values["micro_hard"] == scores.values["micro"]
    assert any("Gemma-3-27B" in note and "not comparable" in note for note in scores.notes)


def test_soft_answers_keep_their_probability(tmp_path: Path) -> None:
    rows = [
        ("p", "a red cup", 1, "0", "entity - whole (cup)", "Is there a cup?"),
        ("p", "a red cup", 2, "1", "attribute - color (cup, red)", "Is the cup red?"),
    ]
    items = DPG().read(write_dpg(tmp_path / "dpg_bench.csv", rows))
    scores = DPG().score(items, answered(items, yes={"p": [(0.75, 0.5)]}))
    assert scores.values["micro"] == pytest.approx(0.625)
    assert scores.values["micro_hard"] == 1.0


def test_the_papers_table_comes_out_of_answers_with_its_means(tmp_path: Path) -> None:
    """A thousand prompts with a question per category: averages and bests are shares of prompts."""
    categories = [name for name in PAPER if name not in ("macro", "micro")]
    rows = [
        (number, "a", place, "0", f"{'global -' if name == 'global' else name} (x)", f"Is the {name} right?")
        for number in range(1000)
        for place, name in enumerate(categories, start=1)
    ]
    items = DPG().read(write_dpg(tmp_path / "dpg_bench.csv", rows))
    yes = {str(number): [[0.0] * len(categories) for _ in range(4)] for number in range(1000)}
    for place, name in enumerate(categories):
        average, best = (round(1000 * share) for share in PAPER[name])
        # of 4000 answers 4 x average are yes; those of `best` prompts have at least one
        extra = 4 * average - best
        for number in range(best):
            for seed in range(1 + min(3, max(0, extra - 3 * number))):
                yes[str(number)][seed][place] = 1.0
    scores = DPG().score(items, answered(items, yes=yes))
    for name in categories:
        row = scores.tables["category"][name]
        assert row["average"] == pytest.approx(PAPER[name][0], abs=1e-9), name
        assert row["best"] == pytest.approx(PAPER[name][1], abs=1e-9), name
        assert (row["paper average"], row["paper best"]) == PAPER[name]
    # the paper's macro rows are the means of its categories: they are what ours are
    assert scores.values["macro"] == pytest.approx(PAPER["macro"][0], abs=6e-4)
    assert scores.values["macro_best"] == pytest.approx(PAPER["macro"][1], abs=6e-4)


@pytest.mark.parametrize(
    ("rows", "columns", "sentence"),
    [
        ([], COLUMNS[:-1], "lacks the column question_natural_language: it is of another version"),
        ([("p", "a", 1, "0", "entity")], COLUMNS, "line 2 is cut off"),
        (
            [("p", "a", 1, "2", "entity - whole (x)", "Is it?")],
            COLUMNS,
            "depends on question 2, which it lacks",
        ),
        ([("p", "a", "one", "0", "entity - whole (x)", "Is it?")], COLUMNS, "that is no number"),
        ([("p", "a", 1, "0", "e", "Is it?")] * 2, COLUMNS, "has a proposition_id twice"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(
    tmp_path: Path, rows: list, columns: Sequence[str], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        DPG().read(write_dpg(tmp_path / "dpg_bench.csv", rows, columns))


# GEdit-Bench --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ratings"),
    [
        ('{"score": [7, 9], "reasoning": "good"}', [7, 9]),
        ('Here it is:\n```json\n{"score": [0, 10]}\n```', [0, 10]),
        ("[3, 4]", [3, 4]),
        ('{"score": [7]}', None),
        ('{"score": [7, 11]}', None),
        ('{"score": [7, true]}', None),
        ('{"score": "7, 8"}', None),
        ("I would say seven.", None),
        ("", None),
    ],
)
def test_only_two_ratings_from_0_to_10_are_read(text: str, ratings: list[float] | None) -> None:
    assert parse_ratings(text) == ratings


def test_gedit_takes_the_lowest_rating_and_averages_per_type() -> None:
    def item(name: str, kind: str, *, common: bool = False) -> Item:
        return Item(id=name, prompt="", labels={"type": kind, "intersection": common})

    def given(consistency: object, quality: object) -> dict[str, Answer]:
        return {
            CONSISTENCY: Answer(text=json.dumps({"score": consistency})),
            QUALITY: Answer(text=json.dumps({"score": quality})),
        }

    items = [item("a", "add", common=True), item("b", "add"), item("c", "remove"), item("d", "remove")]
    answers = {
        ("a", 0): given([4, 9], [9, 10]),
        ("b", 0): given([1, 1], [4, 4]),
        ("c", 0): given([9, 9], [9, 9]),
        # an answer without ratings
        ("d", 0): given("none", [9, 9]),
    }
    scores = GEdit().score(items, answers)
    # a: sqrt(4 x 9) = 6, b: sqrt(1 x 4) = 2, c: 9
    assert scores.values["overall"] == pytest.approx(((6 + 2) / 2 + 9) / 2)
    assert scores.values["semantic_consistency"] == pytest.approx(((4 + 1) / 2 + 9) / 2)
    assert scores.values["quality"] == pytest.approx(((9 + 4) / 2 + 9) / 2)
    assert scores.values["failed_answers"] == 1
    assert scores.values["overall_with_failures_as_0"] == pytest.approx(scores.values["overall"] * 3 / 4)
    assert scores.tables["type"]["add"] == pytest.approx(
        {"images": 2, "semantic_consistency": 2.5, "quality": 6.5, "overall": 4}
    )
    assert scores.tables["intersection"]["all types"]["overall"] == pytest.approx(6)
    assert ("d", 0) not in scores.of_images


def test_gedit_without_a_usable_answer_says_so() -> None:
    item = Item(id="a", prompt="", labels={"type": "add", "intersection": False})
    scores = GEdit().score([item], {("a", 0): {CONSISTENCY: Answer(text="x"), QUALITY: Answer(text="y")}})
    assert math.isnan(scores.values["overall"])
    assert "answers in JSON" in scores.notes[0]


def test_gedit_needs_its_columns_and_a_language(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="choose en or cn"):
        GEdit("de")
    with pytest.raises(
        ConfigError, match="has no parquet file: the suite gedit needs the dataset stepfun-ai"
    ):
        GEdit().read(tmp_path)


# All ----------------------------------------------------------------------------------------------


def test_the_interval_of_a_mean_covers_it_and_shrinks_with_more_prompts() -> None:
    few, many = [0.0, 1.0] * 10, [0.0, 1.0] * 1000
    low, high = mean_interval(few)
    # 1.96 x 0.5 / sqrt(20) = 0.22
    assert (low, high) == pytest.approx((0.28, 0.72), abs=0.04)
    assert mean_interval(many)[1] - mean_interval(many)[0] < 0.06
    assert mean_interval(few) == (low, high)


@pytest.mark.parametrize("benchmark", [GenEval2(), DPG()])
def test_many_unexpected_answers_are_told(benchmark: Benchmark, tmp_path: Path) -> None:
    write_geneval2(tmp_path / "geneval2_data.jsonl", [a_line()])
    write_dpg(tmp_path / "dpg_bench.csv", [("p", "a", 1, "0", "entity - whole (x)", "Is it?")])
    items = benchmark.read(tmp_path)
    answers = {
        (i.id, 0): {q.text: Answer(text="banana", probability=0.1) for q in i.questions} for i in items
    }
    assert any("run --suite judge" in note for note in benchmark.score(items, answers).notes)
