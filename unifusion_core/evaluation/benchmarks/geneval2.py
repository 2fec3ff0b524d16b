"""GenEval 2 (facebookresearch/GenEval2, arXiv 2512.16853): 800 prompts with questions about objects, counts, attributes,
positions and verbs. The geometric mean of a prompt's probabilities is the headline (Soft-TIFA)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...errors import ConfigError
from .benchmark import Answers, Benchmark, Item, Scores
from .json_lines import read_json_lines
from .soft_tifa import one_word_question, score_images

FILE = "geneval2_data.jsonl"
KEYS = {"prompt", "atom_count", "vqa_list", "skills"}


class GenEval2(Benchmark):
    """Soft-TIFA on GenEval 2's file or one in its format."""

    name = "geneval2"
    source = f"{FILE} of github.com/facebookresearch/GenEval2"
    licence = "GenEval 2's own file is CC BY-NC 4.0, not for commercial use"

    def read(self, data: Path) -> list[Item]:
        file = data / FILE if data.is_dir() else data
        if not file.exists():
            raise self.missing(data, FILE)
        items = []
        for number, line in enumerate(read_json_lines(file), start=1):
            where = f"{file}, line {number}"
            if not set(line) >= KEYS:
                raise ConfigError(
                    f"{where} lacks {', '.join(sorted(KEYS - set(line)))}: the file is of another version than {self.source}"
                )
            pairs, skills = line["vqa_list"], line["skills"]
            if len(pairs) != len(skills) or not pairs or not all(len(pair) == 2 for pair in pairs):
                raise ConfigError(
                    f"{where} has {len(pairs)} questions and {len(skills)} skills: each question needs its answer and its skill"
                )
            # some prompts ask the same twice
            questions = {str(text): one_word_question(str(text), str(answer)) for text, answer in pairs}
            items.append(
                Item(
                    id=f"{number:04d}",
                    prompt=str(line["prompt"]),
                    questions=tuple(questions[str(text)] for text, _ in pairs),
                    labels={"skills": list(skills), "atoms": int(line["atom_count"])},
                )
            )
        return items

    def score(self, items: Sequence[Item], answers: Answers) -> Scores:
        return score_images(items, answers, {"atoms": lambda item: str(item.labels["atoms"])})
