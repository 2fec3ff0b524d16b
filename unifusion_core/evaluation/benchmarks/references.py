"""Compositions of two and more of the user's images, judged by the user's questions as GenEval 2 judges its own (Soft-TIFA)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ...errors import ConfigError
from ...images import read_image_file
from .benchmark import Answers, Benchmark, Item, Scores
from .json_lines import read_json_lines
from .soft_tifa import one_word_question, score_images

FILE = "references.jsonl"
FORM = '{"id": "a", "prompt": "...", "images": ["1.png", "2.png"], "questions": [["Is there a dog?", "yes"]]}'


class References(Benchmark):
    """A folder of images and a JSONL file with a composition per line."""

    name = "references"
    source = f"a folder with images and {FILE}, lines of {FORM}"

    def read(self, data: Path) -> list[Item]:
        file = data / FILE if data.is_dir() else data
        if not file.exists():
            raise self.missing(data, FILE)
        return [_item(file, number, line) for number, line in enumerate(read_json_lines(file), start=1)]

    def score(self, items: Sequence[Item], answers: Answers) -> Scores:
        return score_images(items, answers, {"images": lambda item: f"{len(item.images)} images"})


def _item(file: Path, number: int, line: dict) -> Item:
    where = f"{file}, line {number}"
    lacking = [name for name in ("id", "prompt", "images", "questions") if name not in line]
    if lacking:
        raise ConfigError(f'{where} lacks "{lacking[0]}": write lines like {FORM}')
    pairs = line["questions"]
    if (
        not isinstance(pairs, list)
        or not pairs
        or not all(isinstance(p, list) and len(p) == 2 for p in pairs)
    ):
        raise ConfigError(f"{where}: questions is {pairs!r:.60}; give pairs of a question and its answer")
    paths = [file.parent / str(name) for name in line["images"]]
    missing = [path for path in paths if not path.exists()]
    if missing or not paths:
        raise ConfigError(
            f"{where}: there is no image {missing[0]}"
            if missing
            else f"{where} has no image: give at least one"
        )
    labels = {"skills": line["skills"]} if "skills" in line else {}
    return Item(
        id=str(line["id"]),
        prompt=str(line["prompt"]),
        images=tuple(partial(read_image_file, path) for path in paths),
        questions=tuple(one_word_question(str(text), str(answer)) for text, answer in pairs),
        labels=labels,
    )
