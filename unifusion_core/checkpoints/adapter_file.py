"""Adapter files (LoRA, LoKr, DoRA) in the form that ComfyUI's LoraLoader reads, merged into a model's weights.

Keys are diffusion_model.LAYER.PART, LAYER being a layer of `UniFusion`. The change of a weight W is
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
_PARTS = (
    "lora_A.weight",
    "lora_B.weight",
    "dora_scale",
    "alpha",
    "lokr_w1",
    "lokr_w2",
    "lokr_w1_a",
    "lokr_w1_b",
    "lokr_w2_a",
    "lokr_w2_b",
)


def with_strength(adapter: str | Path) -> tuple[Path, float]:
    """File and strength of an adapter that is written FILE or FILE:STRENGTH."""
    path, _, number = str(adapter).rpartition(":")
    if not Path(adapter).exists() and path and re.fullmatch(r"[-+]?\d*\.?\d+", number):
        return Path(path), float(number)
    return Path(adapter), 1.0


@torch.no_grad()
def merge_adapters(model: nn.Module, path: Path, strength: float = 1.0) -> int:
    """Adds the change of an adapter file to the weights. Returns the number of changed layers.

    Raises CheckpointError for keys that the model does not have, so that no part of a file is ignored in silence.
    """
    tensors, _ = read_tensors(path)
    layers: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, value in tensors.items():
        name = key.removeprefix(PREFIX)
        part = next((each for each in _PARTS if name.endswith(f".{each}")), None)
        if part is None or not key.startswith(PREFIX):
            raise CheckpointError(
                f'{path.name} has the key "{key}", which is no LoRA, LoKr or DoRA of this model: choose an adapter that was '
                "trained on it"
            )
        layers[name.removesuffix(f".{part}")][part] = value.float()
    modules = dict(model.named_modules())
    for name, parts in layers.items():
        layer = modules.get(name)
        if not isinstance(layer, nn.Linear):
            raise CheckpointError(
                f'{path.name} changes the layer "{name}", which this model does not have: choose an adapter that was trained on '
                "it"
            )
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
    if "lora_A.weight" in parts:
        down, up = parts["lora_A.weight"], parts["lora_B.weight"]
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
