"""Small random VLMs as judges, whose tokenizer has the words of answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast, Qwen3VLConfig

from unifusion_core.evaluation.benchmarks.judge import VLMJudge
from unifusion_core.vlm.folder import load_vlm

SPECIAL = [
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|image_pad|>",
    "<|vision_end|>",
    "<|video_pad|>",
]
WORDS = ["Yes", "yes", "No", "no", "two", "Two", "three", "2"]


def build_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """One token per byte, and one for each of the words, alone and after a space."""
    vocabulary = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []
    for word in words:
        pieces = [(word[: end - 1], word[end - 1]) for end in range(2, len(word) + 1)]
        for left, right in (*pieces, ("Ġ", word)):
            if left + right not in vocabulary:
                vocabulary[left + right] = len(vocabulary)
                merges.append((left, right))
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, additional_special_tokens=SPECIAL)


def write_judge(folder: Path, words: list[str]) -> Path:
    """A folder with a random Qwen3-VL and its tokenizer."""
    tokenizer = build_tokenizer(words)
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in _IDS.items()}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 2048,
        "bos_token_id": None,
        "eos_token_id": None,
        "initializer_range": 0.2,
        "rope_scaling": {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True},
    }
    vision = {
        "depth": 1,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 32,
        "deepstack_visual_indexes": [0],
        "initializer_range": 0.2,
    }
    torch.manual_seed(0)
    config = Qwen3VLConfig(vision_config=vision, text_config=text, **ids)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


_IDS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}


@pytest.fixture(scope="session")
def judge_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_judge(tmp_path_factory.mktemp("judge"), WORDS)


@pytest.fixture
def judge(judge_folder: Path) -> VLMJudge:
    """A judge that answers at random, with small tiles."""
    return VLMJudge(load_vlm(judge_folder, tile_size=64), "random")


@pytest.fixture
def build_judge(tmp_path: Path) -> Callable[[list[str]], VLMJudge]:
    """`build_judge(words)`: a random judge whose vocabulary has these words."""
    return lambda words: VLMJudge(load_vlm(write_judge(tmp_path / "other", words), tile_size=64), "other")
