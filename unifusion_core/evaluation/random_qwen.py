"""A small Qwen3-VL with random weights and the published models' vocabulary, for speed measurements."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from ..vlm.backbone import VLMBackbone

VOCABULARY = 151_936
# every third layer up to the last, as in Krea 2
TAPS = (2, 5, 8, 11)


def build_random_qwen(
    tokenizer: PreTrainedTokenizerFast, device: torch.device | str, **token_ids: int
) -> VLMBackbone:
    """0.3 billion parameters. Any tokenizer works for chats that are token ids already; `token_ids`: those of the configuration
    (such as image_token_id), for chats that the tokenizer writes."""
    torch.manual_seed(0)
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "rope_scaling": {"rope_type": "default", "mrope_section": [24, 20, 20]},
        "tie_word_embeddings": True,
    }
    vision = {
        "depth": 3,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "out_hidden_size": 1024,
    }
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision | {"deepstack_visual_indexes": [0, 1, 2]},
        tie_word_embeddings=True,
    )
    for name, value in token_ids.items():
        setattr(config, name, value)
    with torch.device(device):
        return VLMBackbone(Qwen3VLForConditionalGeneration(config), tokenizer)
