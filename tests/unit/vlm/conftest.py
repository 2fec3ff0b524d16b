"""Small random VLMs of the three real architectures, as folders and loaded.

A new family needs an entry in `build_config` and in `FAMILY_NAMES`; all tests of this folder then run on it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    InternVLConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen3VLConfig,
)

from unifusion_core.vlm.backbone import VLMBackbone
from unifusion_core.vlm.folder import load_vlm

FAMILY_NAMES = ("internvl", "qwen2_5_vl", "qwen3_vl")
SPECIAL = [
    "<|im_start|>",
    "<|im_end|>",
    "<img>",
    "</img>",
    "<IMG_CONTEXT>",
    "<|vision_start|>",
    "<|image_pad|>",
]
SPECIAL += ["<|vision_end|>", "<|video_pad|>"]
MAX_LENGTH = 400
NUM_LAYERS = 4
WIDTH = 64
QWEN_TILE = 24


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, and the families' special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, additional_special_tokens=SPECIAL)


def build_config(name: str, tokenizer: PreTrainedTokenizerFast) -> Any:
    """A config of hidden size 64, 4 layers, 2 key-value heads, and a small vision tower."""
    token_id = tokenizer.convert_tokens_to_ids
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 96,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": MAX_LENGTH,
        "bos_token_id": None,
        "eos_token_id": None,
        "rope_theta": 10000.0,
        # lively random models: differences show
        "initializer_range": 0.2,
    }
    vision: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "initializer_range": 0.2}
    if name == "internvl":
        vision |= {
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": [24, 24],
            "patch_size": [4, 4],
        }
        return InternVLConfig(
            vision_config=vision | {"layer_scale_init_value": 1.0},
            text_config=text | {"model_type": "qwen2", "tie_word_embeddings": True},
            image_token_id=token_id("<IMG_CONTEXT>"),
            image_seq_length=9,
            tie_word_embeddings=True,
        )
    ids = {
        "image_token_id": token_id("<|image_pad|>"),
        "video_token_id": token_id("<|video_pad|>"),
        "vision_start_token_id": token_id("<|vision_start|>"),
        "vision_end_token_id": token_id("<|vision_end|>"),
    }
    vision |= {"num_heads": 2, "patch_size": 4, "out_hidden_size": WIDTH}
    rope = {"rope_type": "default", "mrope_section": [4, 2, 2]}
    if name == "qwen2_5_vl":
        vision |= {"depth": 3, "window_size": 16, "fullatt_block_indexes": [1]}
        return Qwen2_5_VLConfig(vision_config=vision, text_config=text | {"rope_scaling": rope}, **ids)
    vision |= {"depth": 3, "num_position_embeddings": 36, "deepstack_visual_indexes": [0, 2]}
    rope |= {"mrope_interleaved": True}
    text |= {"head_dim": 16, "rope_scaling": rope}
    return Qwen3VLConfig(vision_config=vision, text_config=text, **ids)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A saved model and tokenizer of each family."""
    tokenizer = build_tokenizer()
    made = {}
    for seed, name in enumerate(FAMILY_NAMES):
        torch.manual_seed(seed)
        made[name] = tmp_path_factory.mktemp(name)
        model = AutoModelForImageTextToText.from_config(build_config(name, tokenizer))
        # transformers starts it at zero, which would hide where a patch is
        if name == "internvl":
            torch.nn.init.normal_(model.model.vision_tower.embeddings.position_embeddings, std=0.5)
        model.save_pretrained(made[name])
        tokenizer.save_pretrained(made[name])
    return made


@pytest.fixture(scope="session")
def all_vlms(folders: dict[str, Path]) -> dict[str, VLMBackbone]:
    return {
        name: load_vlm(folder, tile_size=None if name == "internvl" else QWEN_TILE)
        for name, folder in folders.items()
    }


@pytest.fixture(params=FAMILY_NAMES)
def vlm(request: pytest.FixtureRequest, all_vlms: dict[str, VLMBackbone]) -> VLMBackbone:
    return all_vlms[request.param]


@torch.no_grad()
def _reference_states(vlm: VLMBackbone, arguments: dict[str, Tensor]) -> Tensor:
    model: Any = vlm.model
    hidden = [
        each.clone() for each in model(**arguments, output_hidden_states=True, use_cache=False).hidden_states
    ]
    # transformers 5 records them before Qwen3-VL's deep-stack addition, 4 adds into what it has recorded
    with_deep_stack = vlm.family_name == "qwen3_vl" and "pixel_values" in arguments
    if with_deep_stack and not transformers.__version__.startswith("4."):
        is_picture = arguments["input_ids"] == model.config.image_token_id
        pictures = {name: arguments[name] for name in ("pixel_values", "image_grid_thw")}
        for layer, added in enumerate(model.model.get_image_features(**pictures).deepstack_features):
            hidden[layer + 1][is_picture] += torch.cat(added)
    return torch.stack(hidden[:-1], dim=2)


@pytest.fixture
def reference_states() -> Callable[[VLMBackbone, dict[str, Tensor]], Tensor]:
    """What each decoder layer reads, from transformers' own hidden states, for arguments of its own: B T layers D."""
    return _reference_states
