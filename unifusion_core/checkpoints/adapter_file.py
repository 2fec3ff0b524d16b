"""Adapter files (LoRA, LoKr, DoRA) in the layouts that ComfyUI's LoraLoader reads for Krea 2, merged into a model's weights.

A key is PREFIX LAYER PART. LAYER is a layer of `UniFusion` by its own path or by diffusers' path of Krea 2 (`layer_names`); PART
has several spellings (`_PARTS`). The change of a weight W is
    LoRA   alpha / rank * up @ down
    LoKr   alpha / rank * kron(w1, w2)
    DoRA   m * (W + d) / |W| - W per output row, with LoRA's d and the stored magnitude m
as ComfyUI computes it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from .safetensors_file import read_tensors

PREFIX = "diffusion_model."
# the end of a key -> what it holds
_PARTS = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_A": "down",
    ".lora_B": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    **{
        f".{part}": part
        for part in (
            "dora_scale",
            "alpha",
            "lokr_w1",
            "lokr_w2",
            "lokr_w1_a",
            "lokr_w1_b",
            "lokr_w2_a",
            "lokr_w2_b",
        )
    },
}
# layers outside of the blocks, and the parts of a block: own path -> diffusers' path
_OF_DIFFUSERS = {
    "first": "img_in",
    "tmlp.0": "time_embed.linear_1",
    "tmlp.2": "time_embed.linear_2",
    "tproj.1": "time_mod_proj",
    "txtmlp.1": "txt_in.linear_1",
    "txtmlp.3": "txt_in.linear_2",
    "txtfusion.projector": "text_fusion.projector",
    "last.linear": "final_layer.linear",
}
_STACKS_OF_DIFFUSERS = {"blocks": "transformer_blocks", "txtfusion": "text_fusion"}
_BLOCK_OF_DIFFUSERS = {
    "attn.wq": ("attn.to_q",),
    "attn.wk": ("attn.to_k",),
    "attn.wv": ("attn.to_v",),
    "attn.wo": ("attn.to_out.0", "attn.to_out"),
    "attn.gate": ("attn.to_gate",),
    "mlp.gate": ("ff.gate",),
    "mlp.up": ("ff.up",),
    "mlp.down": ("ff.down",),
}


def layer_names(layer: str) -> list[str]:
    """All names that adapter files have for a layer of `UniFusion`."""
    names = [f"{PREFIX}{layer}", f"lora_unet_{layer.replace('.', '_')}"]
    of_diffusers = [_OF_DIFFUSERS[layer]] if layer in _OF_DIFFUSERS else []
    block, _, part = layer.rpartition(".")
    block, _, kind = block.rpartition(".")
    if f"{kind}.{part}" in _BLOCK_OF_DIFFUSERS:
        stack, _, rest = block.partition(".")
        path = f"{_STACKS_OF_DIFFUSERS.get(stack, stack)}.{rest}"
        of_diffusers = [f"{path}.{each}" for each in _BLOCK_OF_DIFFUSERS[f"{kind}.{part}"]]
    for name in of_diffusers:
        names += [f"{PREFIX}{name}", f"transformer.{name}", f"lycoris_{name.replace('.', '_')}", name]
    return names


def with_strength(adapter: str | Path) -> tuple[Path, float]:
    """File and strength of an adapter that is written FILE or FILE:STRENGTH."""
    path, _, number = str(adapter).rpartition(":")
    if not Path(adapter).exists() and path and re.fullmatch(r"[-+]?\d*\.?\d+", number):
        return Path(path), float(number)
    return Path(adapter), 1.0


@torch.no_grad()
def merge_adapters(model: nn.Module, path: Path, strength: float = 1.0) -> int:
    """Adds the change of an adapter file, times `strength`, to the weights. Returns the number of changed layers.

    Raises CheckpointError for keys that the model does not have, so that no part of a file is ignored in silence.
    """
    tensors, _ = read_tensors(path)
    layers: dict[str, dict[str, Tensor]] = defaultdict(dict)
    modules = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    known = {each: name for name in modules for each in layer_names(name)}
    # the longest ending first: ".lora_A.weight" before ".weight"
    endings = sorted(_PARTS, key=len, reverse=True)
    for key, value in tensors.items():
        ending = next((each for each in endings if key.endswith(each)), None)
        if ending is None:
            raise CheckpointError(
                f'{path.name} has the key "{key}", which is no LoRA, LoKr or DoRA of this model: choose an adapter that was '
                "trained on it"
            )
        layer = known.get(key.removesuffix(ending))
        if layer is None:
            raise CheckpointError(
                f'{path.name} changes the layer "{key.removesuffix(ending)}", which this model does not have: choose an adapter '
                "that was trained on it"
            )
        layers[layer][_PARTS[ending]] = value.float()
    for name, parts in layers.items():
        layer = modules[name]
        weight = layer.weight.float()
        try:
            change = strength * _change(parts, weight)
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(
                f'{path.name} does not fit the layer "{name}" ({error}): choose an adapter that was trained on this model'
            ) from error
        layer.weight.copy_(weight + change.to(weight.device))
    return len(layers)


def _change(parts: dict[str, Tensor], weight: Tensor) -> Tensor:
    alpha = parts.get("alpha")
    if "down" in parts:
        down, up = parts["down"], parts["up"]
        scale = 1.0 if alpha is None else float(alpha) / len(down)
        change = scale * (up @ down)
        if "dora_scale" not in parts:
            return change.view_as(weight)
        base = weight.cpu()
        magnitude = parts["dora_scale"].view(-1, 1) / base.norm(dim=1, keepdim=True)
        return magnitude * (base + change) - base
    first, second = _factor(parts, "lokr_w1"), _factor(parts, "lokr_w2")
    rank = next((len(parts[key]) for key in ("lokr_w1_b", "lokr_w2_b") if key in parts), None)
    scale = 1.0 if alpha is None or rank is None else float(alpha) / rank
    return scale * torch.kron(first, second).view_as(weight)


def _factor(parts: dict[str, Tensor], name: str) -> Tensor:
    return parts[name] if name in parts else parts[f"{name}_a"] @ parts[f"{name}_b"]
