"""DPG-Bench (TencentQQGYLab/ELLA, arXiv 2403.05135): dense prompts with yes-or-no questions that depend on each other.

A question counts 0 if one of its parents does. *Micro* is the mean over prompts after this rule. *Macro* is the mean over the
categories of questions, whose answers count before the rule, as in the public script; `macro_after_rule` counts them after it.
Each is given as the average over a prompt's images and for the best of them. Hard answers are yes or no; soft ones are the
judge's probability of yes, and a parent counts 0 below one half.

The public script skips the first question of the file. It counts here.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import numpy as np

from ...errors import ConfigError
from .benchmark import Answer, Answers, Benchmark, Item, Key, Question, Scores, images_of
from .bootstrap import Statistic, intervals, mean_of, ratio_of, value
from .judge import YES
from .soft_tifa import unexpected_answers

FILE = "dpg_bench.csv"
COLUMNS = ("item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language")
ASK = " Answer with yes or no."
HALF = 0.5
# paper, table of DPG-Bench: average and best of four of UniFusion
PAPER = {
    "macro": (0.731, 0.915),
    "micro": (0.787, 0.880),
    "entity - whole": (0.894, 0.989),
    "entity - part": (0.805, 0.938),
    "entity - state": (0.673, 0.943),
    "attribute - color": (0.803, 0.963),
    "attribute - size": (0.771, 0.930),
    "attribute - shape": (0.682, 0.879),
    "attribute - texture": (0.729, 0.926),
    "attribute - other": (0.698, 0.931),
    "relation - spatial": (0.712, 0.947),
    "relation - non-spatial": (0.643, 0.826),
    "global": (0.688, 0.898),
    "other - count": (0.791, 0.955),
    "other - text": (0.615, 0.771),
}
NOT_COMPARABLE = (
    "The paper's DPG-Bench rows were judged by Gemma-3-27B with a long chain of thought: they are beside these scores for "
    "orientation, and are not comparable with them."
)


class DPG(Benchmark):
    """DPG-Bench's table of questions, or one in its format."""

    name = "dpg"
    source = f"dpg_bench/{FILE} of github.com/TencentQQGYLab/ELLA"
    seeds = 4

    def read(self, data: Path) -> list[Item]:
        file = next((f for f in (data, data / FILE, data / "dpg_bench" / FILE) if f.is_file()), None)
        if file is None:
            raise self.missing(data, FILE)
        with file.open(encoding="utf-8", newline="") as opened:
            rows = csv.DictReader(opened)
            lacking = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
            if lacking:
                raise ConfigError(
                    f"{file} lacks the column {lacking[0]}: it is of another version than {self.source}"
                )
            by_prompt: dict[str, list[dict[str, str]]] = {}
            for number, row in enumerate(rows, start=2):
                if any(row[name] is None for name in COLUMNS):
                    raise ConfigError(f"{file}, line {number} is cut off: copy the file again")
                by_prompt.setdefault(row["item_id"], []).append(row)
        return [_item(file, name, rows) for name, rows in by_prompt.items()]

    def score(self, items: Sequence[Item], answers: Answers) -> Scores:
        images = images_of(items, answers)
        values: dict[str, float] = {}
        bounds: dict[str, tuple[float, float]] = {}
        tables: dict[str, dict[str, dict[str, float]]] = {"category": {}, "broad category": {}}
        of_images: dict[Key, float] = {}
        for kind in ("soft", "hard"):
            before, after = {}, {}
            for item, key in images:
                given = [_score(answers[key][q.text], q, kind) for q in item.questions]
                before[key], after[key] = given, apply_dependencies(given, item.labels["parents"])
            suffix = "" if kind == "soft" else "_hard"
            if kind == "soft":
                of_images = {key: fmean(own) for key, own in after.items()}
            table = _Table(images, before, after)
            statistics = {name + suffix: each for name, each in table.statistics().items()}
            count = len(table.prompts)
            values |= {name: value(statistic, count) for name, statistic in statistics.items()}
            bounds |= intervals(statistics, count)
            for title, by in (
                ("category", lambda c: c),
                ("broad category", lambda c: c.split("-")[0].strip()),
            ):
                for group in dict.fromkeys(by(category) for category in table.categories):
                    own = [c for c in table.categories if by(c) == group]
                    cell = tables[title].setdefault(group, {})
                    cell[f"average{suffix}"], cell[f"best{suffix}"], cell["questions"] = table.group(own)
        for category, (average, best) in PAPER.items():
            if category in tables["category"]:
                tables["category"][category] |= {"paper average": average, "paper best": best}
        return Scores(
            values=values,
            intervals=bounds,
            tables=tables,
            of_images=of_images,
            notes=(NOT_COMPARABLE, *unexpected_answers(images, answers)),
        )


def apply_dependencies(scores: Sequence[float], parents: Sequence[Sequence[int]]) -> list[float]:
    """Scores after the rule: 0 if a parent counts 0 (below one half), by then. `parents`: places of each question's parents."""
    after = list(scores)
    for place, of_question in enumerate(parents):
        if any(after[parent] < HALF for parent in of_question):
            after[place] = 0.0
    return after


class _Table:
    """Sums per prompt, so that prompts can be resampled."""

    def __init__(
        self,
        images: Sequence[tuple[Item, Key]],
        before: dict[Key, list[float]],
        after: dict[Key, list[float]],
    ) -> None:
        self.prompts = list(dict.fromkeys(item.id for item, _ in images))
        items = {item.id: item for item, _ in images}
        self.categories = list(dict.fromkeys(c for item, _ in images for c in item.labels["categories"]))
        keys = {name: [key for item, key in images if item.id == name] for name in self.prompts}
        shape = (len(self.prompts), len(self.categories))
        self.count = np.zeros(shape)
        # before or after the rule -> average and best over a prompt's images
        self.sums = {name: np.zeros((2, *shape)) for name in ("before", "after")}
        self.micro = np.zeros((2, len(self.prompts)))
        for row, name in enumerate(self.prompts):
            of_prompt = np.array([[fmean(after[key])] for key in keys[name]])
            self.micro[:, row] = of_prompt.mean(), of_prompt.max()
            columns = [self.categories.index(c) for c in items[name].labels["categories"]]
            for moment, scores in (("before", before), ("after", after)):
                # images x questions
                given = np.array([scores[key] for key in keys[name]])
                for column, average, best in zip(columns, given.mean(0), given.max(0), strict=True):
                    self.sums[moment][:, row, column] += average, best
            np.add.at(self.count[row], columns, 1)

    def statistics(self) -> dict[str, Statistic]:
        """The scores as functions of how often each prompt counts."""
        found = {}
        for which, suffix in enumerate(("", "_best")):
            found |= {
                f"micro{suffix}": mean_of(self.micro[which]),
                f"macro{suffix}": ratio_of(self.sums["before"][which], self.count),
                f"macro_after_rule{suffix}": ratio_of(self.sums["after"][which], self.count),
            }
        return found

    def group(self, categories: Sequence[str]) -> tuple[float, float, int]:
        """Average, best and number of questions of some categories together, before the rule."""
        columns = [self.categories.index(c) for c in categories]
        questions = self.count[:, columns].sum()
        average, best = (self.sums["before"][which][:, columns].sum() / questions for which in (0, 1))
        return float(average), float(best), int(questions)


def _item(file: Path, name: str, rows: Sequence[dict[str, str]]) -> Item:
    where = f"{file}, item {name}"
    try:
        numbers = [int(row["proposition_id"]) for row in rows]
        dependencies = [[int(part) for part in row["dependency"].split(",")] for row in rows]
    except ValueError as error:
        raise ConfigError(
            f"{where} has a proposition_id or a dependency that is no number ({error}): copy the file again"
        ) from error
    places = {number: place for place, number in enumerate(numbers)}
    unknown = [d for own in dependencies for d in own if d and d not in places]
    if unknown or len(places) < len(rows):
        raise ConfigError(
            f"{where} depends on question {unknown[0]}, which it lacks: copy the file again"
            if unknown
            else f"{where} has a proposition_id twice: copy the file again"
        )
    texts: set[str] = set()
    questions = []
    for number, row in zip(numbers, rows, strict=True):
        text = row["question_natural_language"].strip()
        # an answer is found by its question, so one that is asked twice gets its number
        shown = f"{text} [{number}]" if text in texts else text
        texts.add(text)
        questions.append(Question(text=shown, ask=text + ASK, accepted=YES))
    return Item(
        id=name,
        prompt=rows[0]["text"],
        questions=tuple(questions),
        labels={
            "categories": [_category(row["tuple"]) for row in rows],
            "parents": [[places[d] for d in own if d] for own in dependencies],
        },
    )


def _category(written: str) -> str:
    """ "attribute - color (hat, red)" -> "attribute - color"; "global - (style)" -> "global"."""
    return written.split("(", maxsplit=1)[0].strip().removesuffix("-").strip()


def _score(answer: Answer, question: Question, kind: str) -> float:
    if kind == "hard":
        return float(answer.is_one_of(question.accepted))
    return answer.probability or 0.0
