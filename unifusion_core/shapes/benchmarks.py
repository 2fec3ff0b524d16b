"""Files of coloured shapes in the formats of the benchmarks, to try them without a licence, a GPU or a download.

What a prompt fixes gives the questions and their answers, so a judge's answers can be compared with the exact scorer's.
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import ConfigError
from ..evaluation.subject import Sampling
from .evaluation.edits import outside_of
from .evaluation.text_to_image import draw_prompts
from .world import edits, references
from .world.edit_wordings import Edit
from .world.questions import NO, YES, answer, questions_of
from .world.render import render
from .world.requirements import Requirement
from .world.scenes import ASPECT_SIZES, sample_scene

SIZE = ASPECT_SIZES[0]
QUESTIONS_PER_IMAGE = 6


def write_benchmark(name: str, folder: Path, count: int, seed: int = 0) -> Path:
    """Writes a benchmark of `count` prompts (of `judge` and `reconstruct`: images) and returns what --data takes.

    Raises ConfigError for a benchmark that does not exist.
    """
    if name not in WRITERS:
        raise ConfigError(f'there is no benchmark "{name}"; choose from {", ".join(WRITERS)}')
    folder.mkdir(parents=True, exist_ok=True)
    return WRITERS[name](folder, count, seed)


def _geneval2(folder: Path, count: int, seed: int) -> Path:
    lines = []
    for wording in draw_prompts(Sampling(samples=count, seed=seed), held_out=True):
        asked = questions_of(wording.requirement)
        lines.append(
            {
                "prompt": wording.text,
                "atom_count": len(wording.requirement.objects),
                "vqa_list": [[question.text, question.answer] for question in asked],
                "skills": [question.skill for question in asked],
            }
        )
    return _write_lines(folder / "geneval2_data.jsonl", lines)


def _dpg(folder: Path, count: int, seed: int) -> Path:
    path = folder / "dpg_bench.csv"
    columns = (
        "item_id",
        "text",
        "keywords",
        "proposition_id",
        "dependency",
        "category_broad",
        "category_detailed",
    )
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow((*columns, "tuple", "question_natural_language"))
        for number, wording in enumerate(draw_prompts(Sampling(samples=count, seed=seed), held_out=True)):
            # only questions of yes or no
            asked = questions_of(wording.requirement)
            kept = [place for place, question in enumerate(asked) if question.answer == YES]
            for new, place in enumerate(kept, start=1):
                question = asked[place]
                parents = [kept.index(parent) + 1 for parent in question.parents] or [0]
                broad, _, detailed = question.category.partition(" - ")
                written = f"{broad} - {detailed} ({question.text})"
                dependency = ",".join(map(str, parents))
                row = (
                    f"{number:04d}",
                    wording.text,
                    "",
                    new,
                    dependency,
                    broad,
                    detailed,
                    written,
                    question.text,
                )
                writer.writerow(row)
    return path


def _references(folder: Path, count: int, seed: int) -> Path:
    lines = []
    for number in range(count):
        edit = _instruction(f"references-{seed}-{number}", references.REFERENCE_KINDS, number)
        asked = questions_of(edit.requirement)
        lines.append(
            {
                "id": f"{number:04d}",
                "prompt": edit.instruction,
                "images": _write_sources(folder, number, edit),
                "questions": [[question.text, question.answer] for question in asked],
                "skills": [question.skill for question in asked],
            }
        )
    return _write_lines(folder / "references.jsonl", lines).parent


def _gedit(folder: Path, count: int, seed: int) -> Path:
    try:
        # needed by this benchmark alone
        from datasets import Dataset, Features, Value  # noqa: PLC0415
        from datasets import Image as ImageColumn  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(
            f'gedit needs {error.name}, which is not installed: pip install "unifusion[evaluate]"'
        ) from error
    rows: list[dict[str, Any]] = []
    for number in range(count):
        edit = _instruction(f"gedit-{seed}-{number}", edits.EDIT_KINDS, number)
        source = io.BytesIO()
        Image.fromarray(render(edit.sources[0], *SIZE)).save(source, "PNG")
        image = {"bytes": source.getvalue(), "path": None}
        rows.append(
            {
                "task_type": edit.kind,
                "key": f"{number:04d}",
                "instruction": edit.instruction,
                "instruction_language": "en",
                "input_image": image,
                "input_image_raw": image,
                "Intersection_exist": number % 2 == 0,
            }
        )
    text = Value("string")
    kinds = dict.fromkeys(("task_type", "key", "instruction", "instruction_language"), text)
    images = {"input_image": ImageColumn(), "input_image_raw": ImageColumn()}
    features = Features(kinds | images | {"Intersection_exist": Value("bool")})
    (folder / "data").mkdir(exist_ok=True)
    Dataset.from_list(rows, features=features).to_parquet(
        str(folder / "data" / "train-00000-of-00001.parquet")
    )
    return folder


def _drift(folder: Path, count: int, seed: int) -> Path:
    lines = []
    # the background is everywhere
    kinds = [kind for kind in edits.EDIT_KINDS if kind != "background"]
    for number in range(count):
        edit = _instruction(f"drift-{seed}-{number}", kinds, number)
        outside = outside_of(set(edit.sources[0].objects) ^ set(edit.target.objects))
        mask = f"{number:04d}-mask.png"
        Image.fromarray(np.where(outside, 0, 255).astype(np.uint8)).save(folder / mask)
        lines.append(
            {
                "id": f"{number:04d}",
                "prompt": edit.instruction,
                "images": _write_sources(folder, number, edit),
                "mask": mask,
            }
        )
    return _write_lines(folder / "edits.jsonl", lines).parent


def _judge(folder: Path, count: int, seed: int) -> Path:
    """Questions of scenes about themselves and about others, so that about half of the answers are no."""
    lines = []
    for number in range(count):
        rng = random.Random(f"judge-{seed}-{number}")
        scene = sample_scene(rng, held_out=None)
        name = f"{number:04d}.png"
        Image.fromarray(render(scene, *SIZE)).save(folder / name)
        own = questions_of(Requirement.of(scene))
        other = questions_of(Requirement.of(sample_scene(rng, held_out=None)))
        unlike = [question for question in other if answer(question.text, scene) == NO]
        half = QUESTIONS_PER_IMAGE // 2
        asked = [*rng.sample(own, min(half, len(own))), *rng.sample(unlike, min(half, len(unlike)))]
        for question in asked:
            right = answer(question.text, scene)
            lines.append({"image": name, "question": question.text, "answer": right, "skill": question.skill})
    return _write_lines(folder / "questions.jsonl", lines).parent


def _reconstruct(folder: Path, count: int, seed: int) -> Path:
    for number in range(count):
        scene = sample_scene(random.Random(f"reconstruct-{seed}-{number}"), held_out=True)
        Image.fromarray(render(scene, *SIZE)).save(folder / f"{number:04d}.png")
    return folder


def _instruction(name: str, kinds: Sequence[str], number: int) -> Edit:
    return edits.sample_instruction(random.Random(name), kinds[number % len(kinds)], True)


def _write_sources(folder: Path, number: int, edit: Edit) -> list[str]:
    """The edit's images as files; returns their names."""
    names = [f"{number:04d}-{place}.png" for place in range(1, len(edit.sources) + 1)]
    for name, scene in zip(names, edit.sources, strict=True):
        Image.fromarray(render(scene, *SIZE)).save(folder / name)
    return names


def _write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")
    return path


WRITERS: dict[str, Callable[[Path, int, int], Path]] = {
    "geneval2": _geneval2,
    "dpg": _dpg,
    "gedit": _gedit,
    "references": _references,
    "reconstruct": _reconstruct,
    "drift": _drift,
    "judge": _judge,
}
