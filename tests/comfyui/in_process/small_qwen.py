"""Qwen3-VL-4B with small widths and random weights: as a folder, and as ComfyUI's own text encoder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.supported_models_base
import torch
import transformers
from comfy.text_encoders import krea2, qwen3vl
from the_pack.nodes.comfy import stock_clip
from the_pack.unifusion_core.vlm.backbone import VLMBackbone
from the_pack.unifusion_core.vlm.folder import load_vlm
from the_pack.unifusion_core.zoo.krea_2 import KREA_2
from torch import Tensor

from .small_unifusion import FOLDER

Weights = dict[str, Tensor]

VISION = {"hidden_size": 32, "intermediate_size": 48, "depth": 3, "deepstack_visual_indexes": [0, 1, 2]}
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 151936,
}


def _config() -> Any:
    vision = {"num_heads": 2, "patch_size": 16, "num_position_embeddings": 2304, "out_hidden_size": 64}
    text = {
        "head_dim": 128,
        "num_hidden_layers": 36,
        # large, so that texts do not repeat one word
        "initializer_range": 0.3,
        "rms_norm_eps": 1e-6,
        "rope_theta": 5e6,
        "rope_scaling": {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True},
        "max_position_embeddings": 262144,
        "tie_word_embeddings": True,
    }
    return transformers.Qwen3VLConfig(
        vision_config=VISION | vision,
        text_config=TEXT | text,
        image_token_id=151655,
        tie_word_embeddings=True,
    )


def _folder() -> Path:
    """The model as a folder of transformers."""
    folder = FOLDER / "qwen3_vl"
    if not folder.exists():
        torch.manual_seed(0)
        transformers.AutoModelForImageTextToText.from_config(_config()).save_pretrained(folder)
        tokenizer = Path(qwen3vl.__file__).parent / "qwen25_tokenizer"
        transformers.AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return folder


@contextmanager
def small_qwen() -> Iterator[tuple[VLMBackbone, Weights, dict[str, Any]]]:
    """The folder as the core loads it, its weights under the names of ComfyUI's single files, and ComfyUI's options for them.

    ComfyUI and the pack take a text encoder of this size for Krea 2's while this lasts.
    """
    plain = load_vlm(_folder())
    weights = {
        name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): weight
        for name, weight in plain.model.state_dict().items()
        if name != "lm_head.weight"
    }
    before = qwen3vl.QWEN3VL_VISION["qwen3vl_4b"], dict(qwen3vl.QWEN3VL_VISION_COMMON), stock_clip.SPEC
    qwen3vl.QWEN3VL_VISION["qwen3vl_4b"] = VISION
    qwen3vl.QWEN3VL_VISION_COMMON["num_heads"] = 2
    stock_clip.SPEC = replace(KREA_2.config.vlm, hidden_size=64)
    try:
        yield plain, weights, {"dtype": torch.float32, "qwen3vl_4b_model_config": TEXT}
    finally:
        qwen3vl.QWEN3VL_VISION["qwen3vl_4b"], common, stock_clip.SPEC = before
        qwen3vl.QWEN3VL_VISION_COMMON.update(common)


def load_small_qwen(weights: Weights, options: dict[str, Any]) -> Any:
    """The CLIP that Load CLIP of type krea2 makes of a file with these weights."""
    model = krea2.te(**comfy.sd.llama_detect([weights]))
    target = comfy.supported_models_base.ClipTarget(krea2.Krea2Tokenizer, model)
    return comfy.sd.CLIP(target, state_dict=[dict(weights)], model_options=options)


def scaled_fp8(weights: Weights) -> tuple[Weights, Weights]:
    """The language model's large weights in ComfyUI's layout for fp8, and the weights that they stand for."""
    stored: Weights = {}
    exact: Weights = {}
    mark = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
    for name, weight in weights.items():
        if not name.startswith("model.layers.") or weight.ndim < 2:
            stored[name] = exact[name] = weight
            continue
        layer = name.removesuffix(".weight")
        scale = weight.abs().amax() / 448
        stored[name] = (weight / scale).to(torch.float8_e4m3fn)
        stored[f"{layer}.weight_scale"] = scale
        stored[f"{layer}.comfy_quant"] = mark.clone()
        exact[name] = stored[name].float() * scale
    return stored, exact


def set_weights(plain: VLMBackbone, weights: Weights) -> None:
    """Puts the language model's weights, under ComfyUI's names, into the core's model."""
    named = {
        re.sub(r"^model\.", "model.language_model.", name): weight
        for name, weight in weights.items()
        if not name.startswith("visual.")
    }
    unknown = plain.model.load_state_dict(named, strict=False).unexpected_keys
    assert not unknown, unknown
