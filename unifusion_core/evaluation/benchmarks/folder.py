"""The folder of a run: images, answers and what they were made with. Whatever is in it is kept when a run goes on.

settings.json           what the images were drawn with; another model or another schedule is refused
images/ID-SEED.png      the drawn image; ID-SEED.txt in its place says why it could not be drawn
judge.json              the judge's identity; answers of another judge are refused
answers.jsonl           {"id", "seed", "question", "answer", "probability"} per line, in the order of the items
answers-PROCESS.jsonl   answers of a process that has not ended yet
report.json, sheet.png, page.html
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...errors import ConfigError
from ...images import Pixels, read_image_file, write_image_file
from .benchmark import Answer, Item, Key

logger = logging.getLogger(__name__)

ANSWER_KEYS = ("id", "seed", "question", "answer", "probability")


@dataclass(frozen=True)
class RunFolder:
    """The files of a run. `drawn_in`: the folder of the images, if another program or run has drawn them."""

    path: Path
    drawn_in: Path | None = None

    @property
    def images(self) -> Path:
        """Where the images are."""
        return self.drawn_in or self.path / "images"

    def image(self, key: Key) -> Path:
        """The file of a drawn image."""
        return self.images / f"{key[0]}-{key[1]}.png"

    def failure(self, key: Key) -> Path:
        """The file that says why an image could not be drawn."""
        return self.images / f"{key[0]}-{key[1]}.txt"

    def is_drawn(self, key: Key) -> bool:
        """Whether nothing is left to draw."""
        return self.image(key).exists() or self.failure(key).exists()

    def write_image(self, key: Key, pixels: Pixels, record: dict[str, Any]) -> None:
        """Writes an image as a whole: an interruption leaves no half of it."""
        unfinished = self.image(key).with_suffix(".part")
        write_image_file(unfinished, pixels, record)
        unfinished.replace(self.image(key))

    def write_failure(self, key: Key, reason: str) -> None:
        """Notes why an image could not be drawn."""
        self.failure(key).parent.mkdir(parents=True, exist_ok=True)
        self.failure(key).write_text(reason + "\n", encoding="utf-8")

    def read_image(self, key: Key) -> torch.Tensor:
        """A drawn image, 3 H W in 0..1. Raises ShapeError for a damaged one."""
        return read_image_file(self.image(key))

    def check_settings(
        self, file: str, settings: Mapping[str, Any], done: str, remedy: str, *, write: bool
    ) -> None:
        """Writes the settings of a new run. Raises ConfigError if the folder has others: their results do not mix."""
        path = self.path / file
        wanted = json.loads(json.dumps(settings))
        if path.exists():
            try:
                known = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ConfigError(f"{path} is damaged ({error}): {remedy}") from error
            changed = [name for name in {**known, **wanted} if known.get(name) != wanted.get(name)]
            if changed:
                name = changed[0]
                raise ConfigError(
                    f"{self.path} was {done} with {name} {_shown(known.get(name))}, and {_shown(wanted.get(name))} is "
                    "asked for now: "
                    f"{remedy}"
                )
        elif write:
            self.path.mkdir(parents=True, exist_ok=True)
            # as a whole: other processes may read it now
            unfinished = path.with_suffix(".part")
            unfinished.write_text(json.dumps(wanted, indent=1, ensure_ascii=False), encoding="utf-8")
            unfinished.replace(path)

    # Answers --------------------------------------------------------------------------------------

    def parts(self) -> list[Path]:
        """The files of answers."""
        return [
            path
            for path in (self.path / "answers.jsonl", *sorted(self.path.glob("answers-*.jsonl")))
            if path.exists()
        ]

    def read_answers(self) -> dict[Key, dict[str, Answer]]:
        """All answers so far. Lines that are cut off or damaged are left out with a warning: their questions are asked again."""
        answers: dict[Key, dict[str, Answer]] = {}
        damaged = 0
        for path in self.parts():
            for line in _lines(path):
                read = _read_answer(line)
                if read is None:
                    damaged += 1
                    continue
                key, question, answer = read
                answers.setdefault(key, {})[question] = answer
        if damaged:
            logger.warning(
                "%d lines of the answers in %s are cut off or damaged: their questions are asked again.",
                damaged,
                self.path,
            )
        return answers

    def open_part(self, process: int) -> Path:
        """The file for a process's answers, without a last line that was cut off."""
        path = self.path / f"answers-{process}.jsonl"
        if path.exists():
            whole = [line for line in _lines(path) if _read_answer(line)]
            path.write_text("".join(line + "\n" for line in whole), encoding="utf-8")
        return path

    def merge_answers(self, items: Sequence[Item], seeds: Sequence[int]) -> dict[Key, dict[str, Answer]]:
        """Writes all answers into answers.jsonl, in the order of the items, and removes the files of the processes."""
        answers = self.read_answers()
        parts = self.parts()
        ordered = {
            key: {q.text: answers[key][q.text] for q in item.questions}
            for item in items
            for key in ((item.id, seed) for seed in seeds)
        }
        merged = self.path / "answers.jsonl.part"
        lines = [
            answer_line(key, question, answer)
            for key, of_image in ordered.items()
            for question, answer in of_image.items()
        ]
        merged.write_text("".join(lines), encoding="utf-8")
        merged.replace(self.path / "answers.jsonl")
        for part in parts:
            if part.name != "answers.jsonl":
                part.unlink()
        return ordered


def answer_line(key: Key, question: str, answer: Answer) -> str:
    """One line of answers.jsonl."""
    values = (*key, question, answer.text, answer.probability)
    return json.dumps(dict(zip(ANSWER_KEYS, values, strict=True)), ensure_ascii=False) + "\n"


def _lines(path: Path) -> Iterator[str]:
    # not splitlines(): JSON strings may hold U+2028
    for line in path.read_bytes().decode("utf-8", errors="replace").split("\n"):
        if line.strip():
            yield line


def _read_answer(line: str) -> tuple[Key, str, Answer] | None:
    try:
        read = json.loads(line)
        key, question = (str(read["id"]), int(read["seed"])), str(read["question"])
        probability = read["probability"]
        answer = Answer(
            text=str(read["answer"]), probability=None if probability is None else float(probability)
        )
    except (ValueError, KeyError, TypeError):
        return None
    return key, question, answer


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
