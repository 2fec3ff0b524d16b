"""Stock nodes for text encoders on the pack's CLIP: LoRAs apply, and what cannot work ends in a sentence."""

from __future__ import annotations

from typing import Any

import comfy.sd
import comfy_extras.nodes_clip_sdxl as sdxl
import comfy_extras.nodes_flux as flux
import comfy_extras.nodes_model_merging as merging
import comfy_extras.nodes_sd3 as sd3
import comfy_extras.nodes_textgen as textgen
import torch
from comfy_execution.utils import CurrentNodeContext
from the_pack.nodes.comfy import stock_clip
from the_pack.nodes.comfy.clip import encode, load_clip
from the_pack.unifusion_core.zoo.krea_2 import KREA_2
from torch import Tensor

from .case import PARITY, case, difference, refused
from .small_qwen import FOLDER, load_small_qwen, small_qwen
from .small_unifusion import host_model, messages_of, tiny_clip

LAYERS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")


def _lora(weights: dict[str, Tensor], prefix: str, *, kohya: bool) -> dict[str, Tensor]:
    """On three linear layers of each of the first 24 decoder layers: 72 layers."""
    random = torch.Generator().manual_seed(2)
    found = {}
    for name in (f"layers.{number}.{part}" for number in range(24) for part in LAYERS):
        outputs, inputs = weights[f"model.{name}.weight"].shape
        key = prefix + (name.replace(".", "_") if kohya else name)
        down, up = ("lora_down", "lora_up") if kohya else ("lora_A", "lora_B")
        found[f"{key}.{down}.weight"] = torch.randn(2, inputs, generator=random) * 0.1
        found[f"{key}.{up}.weight"] = torch.randn(outputs, 2, generator=random) * 0.1
    return found


@case()
def text_encoder_loras() -> dict[str, Any]:
    """In both layouts that ComfyUI knows for its own Qwen3-VL: how many layers are patched, and the states against the same LoRA
    on the CLIP of stock Load CLIP."""
    found = {}
    with small_qwen() as (_, weights, options):
        ours = load_clip(FOLDER / "qwen3_vl", stock_clip.SPEC, KREA_2, "fp32")
        theirs = load_small_qwen(weights, options)
        plain = encode(ours, "a red fox", [], 1)[1].features.states
        for name, prefix, kohya in (
            ("kohya", "lora_te_", True),
            ("generic", "text_encoders.qwen3vl_4b.transformer.model.", False),
        ):
            lora = _lora(weights, prefix, kohya=kohya)
            patched = [
                comfy.sd.load_lora_for_models(None, clip, lora, 0.0, 1.0)[1] for clip in (ours, theirs)
            ]
            states = [encode(clip, "a red fox", [], 1)[1].features.states for clip in patched]
            found[name] = {
                "layers": [len(clip.patcher.patches) for clip in patched],
                "difference": difference(*states),
                "effect": difference(states[0], plain),
            }
    return found


@text_encoder_loras.check
def _(found: dict[str, Any]) -> None:
    assert len(found) == 2
    for each in found.values():
        assert each["layers"] == [72, 72]
        assert each["difference"] <= 10 * PARITY
        assert each["effect"] > 0.1


@refused("ConfigError", "CLIP Text Encode", "Flux, SD3 or SDXL")
def clip_text_encode_flux() -> None:
    flux.CLIPTextEncodeFlux.execute(tiny_clip(), "a red circle", "a red circle", 3.5)


@refused("ConfigError", "CLIP Text Encode", "Flux, SD3 or SDXL")
def clip_text_encode_sd3() -> None:
    sd3.CLIPTextEncodeSD3.execute(tiny_clip(), "red", "circle", "star", "none")


@refused("ConfigError", "CLIP Text Encode", "Flux, SD3 or SDXL")
def clip_text_encode_sdxl() -> None:
    sdxl.CLIPTextEncodeSDXL.execute(tiny_clip(), 64, 64, 0, 0, 64, 64, "red", "circle")


@refused("VLMError", "copy the folder")
def clip_save() -> None:
    merging.CLIPSave().save(tiny_clip(), "clip/saved")


@refused("VLMError", "copy the folder", "Save Model")
def checkpoint_save() -> None:
    comfy.sd.save_checkpoint(str(FOLDER / "saved.safetensors"), host_model(), tiny_clip())


@case()
def settings_of_generate_text() -> list[list[str]]:
    """What is said of each setting: none, then thinking, template, video."""
    settings: list[dict[str, Any]] = [
        {},
        {"thinking": True},
        {"use_default_template": False},
        {"video": torch.rand(2, 48, 48, 3)},
    ]
    said = []
    for number, more in enumerate(settings):
        with messages_of("nodes.comfy.host") as logged, CurrentNodeContext(str(number), "1"):
            textgen.TextGenerate.execute(tiny_clip(), "a red ball", 8, {"sampling_mode": "off"}, **more)
        said.append(logged)
    return said


@settings_of_generate_text.check
def _(said: list[list[str]]) -> None:
    assert [len(each) for each in said] == [0, 1, 1, 1]
    for (sentence,), word in zip(said[1:], ("thinking", "template", "video"), strict=True):
        assert word in sentence
