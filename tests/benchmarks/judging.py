"""Questions per second of a VLM as judge, with one pass over the image for all questions and with one for each:

    python tests/benchmarks/judging.py [--repeats 3] [--questions 8] [--out FILE.json]

The judge is a Qwen3-VL of 0.3 billion random parameters, the image one tile of 896 pixels (784 tokens). The two take turns, so
that other load on the machine slows both. The answers are compared, too.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from unifusion_core.evaluation.benchmarks.benchmark import Answer, Item, Question, Shown
from unifusion_core.evaluation.benchmarks.judge import SIDE, YES, VLMJudge
from unifusion_core.evaluation.benchmarks.soft_tifa import ONE_WORD
from unifusion_core.evaluation.random_qwen import build_random_qwen

OBJECTS = ("cups", "dogs", "chairs", "birds", "trees", "books", "clocks", "lions")
SPECIAL = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Questions per second with a shared image and without.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--questions", type=int, default=len(OBJECTS))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = measure(arguments.repeats, arguments.questions)
    for name, value in rows.items():
        print(f"{name:36} {value:.4g}")
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


def measure(repeats: int, count: int) -> dict[str, float]:
    """Medians over new images, and the largest difference of a probability."""
    judge = build_judge()
    texts = [f"Are there any {OBJECTS[number % len(OBJECTS)]} in the image?" for number in range(count)]
    questions = [Question(text=text, ask=text + ONE_WORD, accepted=YES) for text in texts]
    seconds: dict[str, list[float]] = {"shared": [], "separate": []}
    difference = 0.0
    # the first image allocates
    for number in range(repeats + 1):
        image = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(number))
        shown = Shown(item=Item(id="a", prompt=""), output=image)
        answers: dict[str, list[Answer]] = {}
        for name, at_once in (("shared", count), ("separate", 1)):
            answers[name], started = [], time.perf_counter()
            for start in range(0, count, at_once):
                judge.backbone.clear_image_caches()
                answers[name] += judge.answer(shown, questions[start : start + at_once])
            seconds[name].append(time.perf_counter() - started)
        pairs = zip(answers["shared"], answers["separate"], strict=True)
        difference = max(difference, *(abs((a.probability or 0) - (b.probability or 0)) for a, b in pairs))
    shared, separate = (median(seconds[name][1:]) for name in ("shared", "separate"))
    return {
        "questions per second, shared image": count / shared,
        "questions per second, separate": count / separate,
        "separate / shared": separate / shared,
        "largest difference of a probability": difference,
    }


def build_judge() -> VLMJudge:
    """A random judge whose tokenizer has one token per word of the questions."""
    template_words = "system user assistant You are a helpful"
    text = (
        f"{template_words} Are there any {' '.join(OBJECTS)} in the image ? Answer one word . Yes yes No no"
    )
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys([*text.split(), "[UNK]"]))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<|im_start|>", "<|im_end|>", *SPECIAL.values()]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, additional_special_tokens=special)
    ids = {name: int(tokenizer.convert_tokens_to_ids(token)) for name, token in SPECIAL.items()}
    backbone = build_random_qwen(tokenizer, "cpu", **ids)
    backbone.set_tile_size(SIDE)
    return VLMJudge(backbone, "random")


if __name__ == "__main__":
    main()
