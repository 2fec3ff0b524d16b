"""A small Krea 2 with random weights: files in every published layout, LoRAs, and stock SamplerCustom."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.samplers
import comfy.sd
import comfy_extras.nodes_custom_sampler as custom_sampler
import torch
from safetensors.torch import save_file
from the_pack.nodes.comfy.loading import load_model
from the_pack.unifusion_core.contracts import Features
from the_pack.unifusion_core.models.lap import LAPConfig
from the_pack.unifusion_core.models.unifusion import UniFusion
from the_pack.unifusion_core.zoo.krea_2 import KREA_2
from torch import Tensor

from .small_unifusion import FOLDER, SEED

# heads of the size that ComfyUI's own module has at every width
KREA_CONFIG = replace(
    KREA_2.config,
    vlm=replace(KREA_2.config.vlm, hidden_size=160, num_layers=9, taps=(2, 5, 8)),
    lap=LAPConfig(num_heads=20, mlp_size=512),
    dit=replace(KREA_2.config.dit, hidden_size=256, num_blocks=2, num_heads=2, num_kv_heads=1, mlp_size=768),
)
KREA_LATENT = torch.zeros(1, 16, 1, 8, 14)
# layers of the LoRAs, and diffusers' names of them
LORA_LAYERS = {
    "blocks.1.attn.wq": "transformer_blocks.1.attn.to_q",
    "blocks.0.attn.wo": "transformer_blocks.0.attn.to_out.0",
    "blocks.0.attn.gate": "transformer_blocks.0.attn.to_gate",
    "blocks.1.mlp.down": "transformer_blocks.1.ff.down",
    "txtfusion.layerwise_blocks.0.attn.wk": "text_fusion.layerwise_blocks.0.attn.to_k",
    "txtfusion.refiner_blocks.1.mlp.up": "text_fusion.refiner_blocks.1.ff.up",
    "txtfusion.projector": "text_fusion.projector",
    "txtmlp.1": "txt_in.linear_1",
    "first": "img_in",
    "tmlp.2": "time_embed.linear_2",
    "tproj.1": "time_mod_proj",
    "last.linear": "final_layer.linear",
}


def krea_weights() -> dict[str, Tensor]:
    """Random weights by their names in Krea's own layout."""
    random = torch.Generator().manual_seed(0)
    shapes = {name: value.shape for name, value in UniFusion(KREA_CONFIG).state_dict().items()}
    return {
        name: torch.randn(shape, generator=random) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.3)
        for name, shape in shapes.items()
    }


def _fp8_per_row(weight: Tensor) -> dict[str, Tensor]:
    scale = weight.abs().amax(1, keepdim=True) / 448
    return {"": (weight / scale).to(torch.float8_e4m3fn), "_scale": scale}


# layouts of quantised files -> the mark of their layers, and how comfy-kitchen quantises a weight
QUANTISED: dict[str, tuple[dict[str, Any], Callable[[Tensor], dict[str, Tensor]]]] = {
    "fp8": ({"format": "float8_e4m3fn"}, lambda w: _by_kitchen("TensorCoreFP8Layout", w)),
    "fp8 of the old layout": ({}, lambda w: _by_kitchen("TensorCoreFP8Layout", w)),
    "fp8 per row": ({"format": "float8_e4m3fn"}, _fp8_per_row),
    "int8": ({"format": "int8_tensorwise"}, lambda w: _by_kitchen("TensorWiseINT8Layout", w)),
    "int8 per row": (
        {"format": "int8_tensorwise"},
        lambda w: _by_kitchen("TensorWiseINT8Layout", w, per_channel=True),
    ),
    "int8 ConvRot": (
        {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 256},
        lambda w: _by_kitchen("TensorWiseINT8Layout", w, per_channel=True, convrot=True),
    ),
    "mxfp8": ({"format": "mxfp8"}, lambda w: _by_kitchen("TensorCoreMXFP8Layout", w)),
    "nvfp4": ({"format": "nvfp4"}, lambda w: _by_kitchen("TensorCoreNVFP4Layout", w)),
    "convrot_w4a4": (
        {"format": "convrot_w4a4"},
        lambda w: _by_kitchen("TensorCoreConvRotW4A4Layout", w),
    ),
    "asym_w4a8_int8": ({"format": "asym_w4a8_int8"}, lambda w: _by_kitchen("AsymW4A8Int8Layout", w)),
}


def krea_file(layout: str = "full") -> Path:
    """A file without a configuration, as Krea 2 is published: all weights, or those of the blocks in a layout of `QUANTISED`."""
    path = FOLDER / f"krea-{layout.replace(' ', '-')}.safetensors"
    if not path.exists():
        tensors = krea_weights()
        save_file(tensors if layout == "full" else quantised(tensors, layout), str(path))
    return path


def quantised(tensors: dict[str, Tensor], layout: str) -> dict[str, Tensor]:
    """The weights with those of the blocks in a layout of `QUANTISED`."""
    entry, quantise = QUANTISED[layout]
    stored = dict(tensors)
    for name, value in tensors.items():
        layer, _, last = name.rpartition(".")
        if last != "weight" or not name.startswith("blocks."):
            continue
        parts = {f"{layer}.weight{suffix}": part.contiguous() for suffix, part in quantise(value).items()}
        if entry:
            parts[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps(entry).encode()), dtype=torch.uint8)
        else:
            parts[f"{layer}.scale_weight"] = parts.pop(f"{layer}.weight_scale")
        stored |= parts
    if not entry:
        stored["scaled_fp8"] = torch.zeros(2).to(torch.float8_e4m3fn)
    return stored


def _by_kitchen(layout: str, weight: Tensor, **settings: Any) -> dict[str, Tensor]:
    """The parts of a weight as ComfyUI's own package quantises and stores it, by the end of their names."""
    from comfy_kitchen.tensor import get_layout_class

    kind = get_layout_class(layout)
    return kind.state_dict_tensors(*kind.quantize(weight, **settings))


def krea_models(layout: str = "full") -> tuple[Any, Any]:
    """One file as the pack's MODEL and as ComfyUI's own."""
    path = krea_file(layout)
    return load_model(path), comfy.sd.load_diffusion_model(str(path))


def krea_states(length: int) -> Tensor:
    """The flattened states of a prompt, B T LD."""
    spec = KREA_CONFIG.vlm
    random = torch.Generator().manual_seed(length)
    return torch.randn(1, length, len(spec.taps) * spec.hidden_size, generator=random)


def krea_features(length: int) -> Features:
    """The same states as features."""
    spec = KREA_CONFIG.vlm
    return Features(
        states=krea_states(length).unflatten(-1, (len(spec.taps), spec.hidden_size)),
        mask=torch.ones(1, length, dtype=torch.bool),
        positions=torch.zeros(1, length, 3),
    )


def krea_drawn(model: Any, sigmas: Tensor, cfg: float, latent: Tensor = KREA_LATENT) -> Tensor:
    """Latents drawn by stock SamplerCustom, for two prompts of unequal length."""
    positive, negative = ([[krea_states(length), {}]] for length in (19, 6))
    euler = comfy.samplers.sampler_object("euler")
    drawn = custom_sampler.SamplerCustom.execute(
        model, True, SEED, cfg, positive, negative, euler, sigmas, {"samples": latent}
    )
    return drawn.args[0]["samples"]


def krea_loras() -> dict[str, dict[str, Tensor]]:
    """One LoRA in every layout in which LoRAs of Krea 2 are published."""
    random = torch.Generator().manual_seed(4)
    weights = krea_weights()
    parts = {
        name: [torch.randn(size, generator=random) * 0.2 for size in _lora_sizes(weights[f"{name}.weight"])]
        for name in LORA_LAYERS
    }

    def stored(key: Callable[[str, str], str], down: str, up: str) -> dict[str, Tensor]:
        return {
            f"{key(name, LORA_LAYERS[name])}.{suffix}.weight": value
            for name, pair in parts.items()
            for suffix, value in zip((down, up), pair, strict=True)
        }

    peft, kohya = ("lora_A", "lora_B"), ("lora_down", "lora_up")
    return {
        "diffusers": stored(lambda _, theirs: f"transformer.{theirs}", *peft),
        "diffusers, bare": stored(lambda _, theirs: theirs, *peft),
        "diffusers below diffusion_model": stored(lambda _, theirs: f"diffusion_model.{theirs}", *peft),
        "diffusion_model": stored(lambda ours, _: f"diffusion_model.{ours}", *peft),
        "kohya": stored(lambda ours, _: f"lora_unet_{ours.replace('.', '_')}", *kohya),
        "lycoris": stored(lambda _, theirs: f"lycoris_{theirs.replace('.', '_')}", *kohya),
    }


def _lora_sizes(weight: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
    return (3, weight.shape[1]), (weight.shape[0], 3)
