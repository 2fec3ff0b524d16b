"""The embedded VLM before training: a small InternVL, with its tokenizer.

A tile of 48 pixels becomes 9 tokens (patch 8, 2 x 2 patches per token). So ten tiles show a 128 px image in more detail than
five, and five in more detail than one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import InternVLConfig, InternVLForConditionalGeneration, PreTrainedTokenizerFast

from ...zoo.tiny import TINY

SPECIAL_TOKENS = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<img>", "</img>", "<IMG_CONTEXT>")
TILE_SIZE = 48
# of a tile
TOKENS_PER_SIDE = 3
# tokens of a chat: ten images of ten tiles, or a very long prompt
MAX_LENGTH = 1024
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def build_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE in lower case: words of `texts` become one token if the vocabulary has room, other text several."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Lowercase(), normalizers.Strip(), normalizers.Replace("\n", " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    end = SPECIAL_TOKENS[0]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=end,
        pad_token=end,
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def read_tokenizer(
    folder: Path, texts: Callable[[], Iterable[str]], vocab_size: int
) -> PreTrainedTokenizerFast:
    """The tokenizer in `folder`, built from `texts` and written there if the folder has none.

    A run that is resumed after the prompts changed keeps its token ids.
    """
    if not (folder / "tokenizer.json").exists():
        build_tokenizer(texts(), vocab_size).save_pretrained(str(folder))
    return PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)


def build_vlm(tokenizer: PreTrainedTokenizerFast, seed: int) -> InternVLForConditionalGeneration:
    """The untrained VLM.

    transformers initializes position embeddings with 0 and layer scales with 0.1, for deep towers. Random embeddings and scales
    of 1 let a shallow tower learn at once.
    """
    end = tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS[0])
    torch.manual_seed(seed)
    config = InternVLConfig(
        vision_config={
            "hidden_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 512,
            "patch_size": [8, 8],
            "image_size": [TILE_SIZE, TILE_SIZE],
            "norm_type": "layer_norm",
            "use_qk_norm": False,
            "layer_scale_init_value": 1.0,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(tokenizer),
            "hidden_size": TINY.config.vlm.hidden_size,
            "intermediate_size": 448,
            "num_hidden_layers": TINY.config.vlm.num_layers,
            "num_attention_heads": 5,
            "num_key_value_heads": 5,
            "max_position_embeddings": MAX_LENGTH,
            "tie_word_embeddings": True,
            "bos_token_id": end,
            "eos_token_id": end,
            "pad_token_id": end,
        },
        image_token_id=tokenizer.vocab[TINY.config.vlm.template.image_token],
        image_seq_length=TOKENS_PER_SIDE**2,
        downsample_ratio=0.5,
        tie_word_embeddings=True,
    )
    model = InternVLForConditionalGeneration(config)
    embeddings = model.model.vision_tower.embeddings
    torch.nn.init.normal_(embeddings.position_embeddings, std=0.02)
    torch.nn.init.normal_(embeddings.cls_token, std=0.02)
    return model


def save_vlm(
    model: InternVLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    training: dict[str, object],
) -> None:
    """Write a folder in the layout of transformers, with 16-bit weights and the record of the run in training.json."""
    model.half().save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    normalisation = {"image_mean": MEAN, "image_std": STD, "size": {"height": TILE_SIZE, "width": TILE_SIZE}}
    (folder / "preprocessor_config.json").write_text(json.dumps(normalisation, indent=1))
    (folder / "training.json").write_text(json.dumps(training, indent=1))
