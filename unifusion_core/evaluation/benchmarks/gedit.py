"""GEdit-Bench (stepfun-ai/GEdit-Bench): instructions about real photos, rated 0..10 by a VLM that answers in JSON.

Semantic consistency (SC) and perceptual quality (PQ) are each the lowest of two ratings; overall is sqrt(SC x PQ) per image.
All three are averaged per type of edit, and then over the types. An answer without usable ratings is asked for once more,
greedily; if that fails too it is counted as a failure and left out of the means: no rating is made up.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ConfigError
from .benchmark import Answers, Benchmark, Item, Question, Scores, images_of
from .bootstrap import Statistic, intervals, ratio_of, value

COLUMNS = ("task_type", "key", "instruction", "instruction_language", "input_image", "Intersection_exist")
LANGUAGES = ("en", "cn")
CONSISTENCY, QUALITY = "semantic consistency", "quality"
NUM_RATINGS = 2
NAMES = ("semantic_consistency", "quality", "overall")
BEST = 10
MAX_NEW_TOKENS = 256
FORM = 'Answer with one JSON object and nothing else: {"score": [first, second], "reasoning": "one short sentence"}'
ASK_CONSISTENCY = (
    "You rate image editing. The first image is the original, the second image is the result of this instruction: {instruction}\n"
    "Give two whole numbers from 0 to 10.\n"
    "First: how well the result does what the instruction asks for; 0 = not at all, 10 = completely.\n"
    "Second: how well everything that the instruction does not mention is preserved; 0 = another image, 10 = only the "
    "asked change.\n" + FORM
)
ASK_QUALITY = (
    "You rate how an image looks. Give two whole numbers from 0 to 10.\n"
    "First: how natural it looks in light, shadow, perspective and proportions; 0 = unnatural, 10 = natural.\n"
    "Second: how free it is of artefacts such as distortion, blur, seams and malformed faces or hands; 0 = full of "
    "them, 10 = none.\n" + FORM
)
NOTES = (
    "The questions are worded anew, so these scores are not comparable with published ones, which GPT-4.1 or "
    "Qwen2.5-VL-72B gave to "
    "other words.",
)


class GEdit(Benchmark):
    """GEdit-Bench's dataset, in one language of its instructions."""

    name = "gedit"
    source = "the dataset stepfun-ai/GEdit-Bench of huggingface.co as a folder (parquet files, or saved by datasets)"

    def __init__(self, language: str = "en") -> None:
        if language not in LANGUAGES:
            raise ConfigError(f'the language is "{language}"; choose {" or ".join(LANGUAGES)}')
        self.language = language

    @property
    def conditions(self) -> dict[str, Any]:
        return {"language": self.language}

    def read(self, data: Path) -> list[Item]:
        dataset = self._open(data)
        lacking = [name for name in COLUMNS if name not in dataset.column_names]
        if lacking:
            raise ConfigError(
                f"{data} lacks the column {lacking[0]}: it is of another version than {self.source}"
            )
        # without decoding the images
        small = dataset.select_columns([name for name in COLUMNS if name != "input_image"])
        items = []
        for place, row in enumerate(small):
            if row["instruction_language"] != self.language:
                continue
            instruction = row["instruction"]
            asked = ASK_CONSISTENCY.replace("{instruction}", instruction)
            items.append(
                Item(
                    id=str(row["key"]),
                    prompt=instruction,
                    images=(partial(_image, dataset, place),),
                    questions=(
                        _question(CONSISTENCY, asked, "all"),
                        _question(QUALITY, ASK_QUALITY, "output"),
                    ),
                    labels={"type": row["task_type"], "intersection": bool(row["Intersection_exist"])},
                )
            )
        return items

    def _open(self, data: Path) -> Any:
        try:
            # needed by this benchmark alone
            import datasets  # noqa: PLC0415
            from datasets import Dataset, DatasetDict  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise ConfigError(
                f'the suite gedit needs {error.name}, which is not installed: pip install "unifusion[evaluate]"'
            ) from error
        files = sorted(data.rglob("*.parquet")) if data.is_dir() else []
        saved = (data / "dataset_dict.json").exists() or (data / "dataset_info.json").exists()
        if not files and not saved:
            raise self.missing(data, "parquet file")
        datasets.disable_progress_bars()
        try:
            if files:
                return Dataset.from_parquet([str(file) for file in files])
            opened = datasets.load_from_disk(str(data))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{data} cannot be read ({error}): copy the dataset again") from error
        return (
            datasets.concatenate_datasets(list(opened.values()))
            if isinstance(opened, DatasetDict)
            else opened
        )

    def score(self, items: Sequence[Item], answers: Answers) -> Scores:
        images = images_of(items, answers)
        rated: dict[tuple[str, int], tuple[float, float, float]] = {}
        for _, key in images:
            pair = [parse_ratings(answers[key][name].text) for name in (CONSISTENCY, QUALITY)]
            if pair[0] is not None and pair[1] is not None:
                consistency, quality = min(pair[0]), min(pair[1])
                rated[key] = (consistency, quality, math.sqrt(consistency * quality))
        good = [(item, key) for item, key in images if key in rated]
        failed = len(images) - len(good)
        if not good:
            return Scores(
                values={"overall": math.nan, "failed_answers": failed},
                notes=(
                    "No answer of the judge had usable ratings: use a judge that answers in JSON.",
                    *NOTES,
                ),
            )
        types = list(dict.fromkeys(item.labels["type"] for item, _ in good))
        numbers = np.array([rated[key] for _, key in good])
        places = np.array([types.index(item.labels["type"]) for item, _ in good])
        common = np.array([item.labels["intersection"] for item, _ in good])

        # images x types
        of_type = np.eye(len(types))[places]

        def over_types(column: int) -> Statistic:
            return ratio_of(of_type * numbers[:, [column]], of_type)

        statistics = {name: over_types(column) for column, name in enumerate(NAMES)}
        # the headline first
        values = {name: value(statistics[name], len(good)) for name in reversed(NAMES)}
        values["failed_answers"] = failed
        values["overall_with_failures_as_0"] = values["overall"] * len(good) / len(images)
        tables: dict[str, dict[str, dict[str, float]]] = {"type": {}}
        for number, each in enumerate(types):
            own = numbers[places == number]
            tables["type"][each] = {"images": len(own), **_named(own.mean(0))}
        if common.any():
            means = [float(statistics[name](common[None].astype(float))[0]) for name in NAMES]
            tables["intersection"] = {"all types": {"images": int(common.sum()), **_named(means)}}
        return Scores(
            values=values,
            intervals=intervals(statistics, len(good)),
            tables=tables,
            of_images={key: rated[key][2] for _, key in good},
            notes=NOTES,
        )


def parse_ratings(text: str) -> list[float] | None:
    """The ratings of an answer: two numbers from 0 to 10 under "score", or a bare list of them; None for anything else."""
    start, end = text.find("{"), text.rfind("}")
    if start < 0:
        start, end = text.find("["), text.rfind("]")
    try:
        read = json.loads(text[start : end + 1])
    except ValueError:
        return None
    ratings = read.get("score") if isinstance(read, dict) else read
    if not isinstance(ratings, list) or len(ratings) != NUM_RATINGS:
        return None
    if not all(isinstance(r, int | float) and not isinstance(r, bool) and 0 <= r <= BEST for r in ratings):
        return None
    return [float(r) for r in ratings]


def _named(means: Iterable[float]) -> dict[str, float]:
    return dict(zip(NAMES, map(float, means), strict=True))


def _is_rated(text: str) -> bool:
    return parse_ratings(text) is not None


def _question(name: str, ask: str, sees: Any) -> Question:
    return Question(text=name, ask=ask, sees=sees, max_new_tokens=MAX_NEW_TOKENS, is_valid=_is_rated)


def _image(dataset: Any, place: int) -> Any:
    return dataset[place]["input_image"]
