"""A judge's own exam: questions about images whose answers are known, asked with the image and again with a gray one in its
place.

A judge whose answers are no better with the image is blind, however often it is right: many questions can be guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np
import torch

from ...errors import ConfigError
from ...images import read_image_file
from .benchmark import Answers, Benchmark, Item, Question, Scores, images_of
from .bootstrap import intervals, ratio_of, value
from .json_lines import read_json_lines
from .judge import NO
from .soft_tifa import ONE_WORD, one_word_question, unexpected_answers

FILE = "questions.jsonl"
FORM = '{"image": "1.png", "question": "Is there a dog?", "answer": "no"}'
BLIND = "blind"


class Exam(Benchmark):
    """A folder of images and a JSONL file with a question per line."""

    name = "judge"
    source = f'a folder with images and {FILE}, lines of {FORM}, if you like with "skill"'
    draws = False

    def read(self, data: Path) -> list[Item]:
        file = data / FILE if data.is_dir() else data
        if not file.exists():
            raise self.missing(data, FILE)
        by_image: dict[str, dict[str, Mapping]] = {}
        for number, line in enumerate(read_json_lines(file), start=1):
            where = f"{file}, line {number}"
            lacking = [name for name in ("image", "question", "answer") if name not in line]
            if lacking:
                raise ConfigError(f'{where} lacks "{lacking[0]}": write lines like {FORM}')
            if not (file.parent / str(line["image"])).exists():
                raise ConfigError(f"{where}: there is no image {file.parent / str(line['image'])}")
            of_image = by_image.setdefault(str(line["image"]), {})
            if line["question"] in of_image:
                raise ConfigError(f'{where} asks "{line["question"]}" of {line["image"]} a second time')
            of_image[str(line["question"])] = line
        items = []
        for name, lines in by_image.items():
            read = partial(read_image_file, file.parent / name)
            labels = {
                "skills": [str(line.get("skill", "all")) for line in lines.values()],
                "answers": [str(line["answer"]).lower() for line in lines.values()],
            }
            questions = tuple(_question(text, str(line["answer"])) for text, line in lines.items())
            stem = name.replace("/", "-")
            for suffix, image in (("", read), (f".{BLIND}", partial(_gray, read))):
                items.append(
                    Item(
                        id=stem + suffix,
                        source=stem,
                        prompt="",
                        images=(image,),
                        questions=questions,
                        labels=labels | {BLIND: bool(suffix)},
                    )
                )
        return items

    def score(self, items: Sequence[Item], answers: Answers) -> Scores:
        images = images_of(items, answers)
        # per image: right (0 or 1) for each question, with the image and without
        right: dict[bool, list[list[float]]] = {False: [], True: []}
        soft, truths, skills, of_images = [], [], [], {}
        for item, key in images:
            given = [answers[key][q.text] for q in item.questions]
            own = [float(a.is_one_of(q.accepted)) for a, q in zip(given, item.questions, strict=True)]
            right[item.labels[BLIND]].append(own)
            if not item.labels[BLIND]:
                soft.append([a.probability or 0.0 for a in given])
                truths.append(item.labels["answers"])
                skills.append(item.labels["skills"])
                of_images[key] = fmean(own)
        seeing, blind = right[False], right[True]
        flat = [
            (t, r)
            for of_image, own in zip(truths, seeing, strict=True)
            for t, r in zip(of_image, own, strict=True)
        ]
        classes = sorted({truth for truth, _ in flat})

        count = len(seeing)
        asked = [len(of_image) for of_image in seeing]
        # images x classes: right answers, and questions
        by_class = np.zeros((2, count, len(classes)))
        for place, (of_image, own) in enumerate(zip(truths, seeing, strict=True)):
            for truth, r in zip(of_image, own, strict=True):
                by_class[:, place, classes.index(truth)] += r, 1
        sums = {
            name: np.array([sum(own) for own in of]) for name, of in (("seeing", seeing), ("blind", blind))
        }
        statistics = {
            "accuracy": ratio_of(sums["seeing"], asked),
            "balanced_accuracy": ratio_of(*by_class),
            "probability_of_truth": ratio_of([sum(own) for own in soft], asked),
            "accuracy_without_image": ratio_of(sums["blind"], asked),
            "gain_from_image": ratio_of(sums["seeing"] - sums["blind"], asked),
        }
        values = {name: value(statistic, count) for name, statistic in statistics.items()}
        bounds = intervals(statistics, count)
        values["share_of_commonest_answer"] = max(sum(t == c for t, _ in flat) for c in classes) / len(flat)
        by_skill: dict[str, list[float]] = {}
        for of_image, own in zip(skills, seeing, strict=True):
            for skill, r in zip(of_image, own, strict=True):
                by_skill.setdefault(skill, []).append(r)
        tables = {
            "truth": {
                c: {"right": fmean(r for t, r in flat if t == c), "questions": sum(t == c for t, _ in flat)}
                for c in classes
            },
            "skill": {s: {"right": fmean(own), "questions": len(own)} for s, own in sorted(by_skill.items())},
        }
        low, _ = bounds["gain_from_image"]
        verdict = (
            "The judge sees: it is right more often with the image than with a gray one."
            if low > 0
            else "The judge is blind: it is not right more often with the image than with a gray one. Do not trust its scores."
        )
        return Scores(
            values=values,
            intervals=bounds,
            tables=tables,
            of_images=of_images,
            notes=(verdict, *unexpected_answers(images, answers)),
        )


def _question(text: str, answer: str) -> Question:
    if answer.lower() == "no":
        return Question(text=text, ask=text + ONE_WORD, accepted=NO)
    return one_word_question(text, answer)


def _gray(read: partial) -> torch.Tensor:
    return torch.full_like(read(), 0.5)
