"""Low-rank adapters (LoRA, LoKr, DoRA) through peft, and the file that ComfyUI's LoraLoader applies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoKrConfig, LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from ..checkpoints.adapter_file import VLM_KEY
from ..models.unifusion import UniFusion
from .config import AdapterConfig

# names of the linear layers of each target
TARGETS = {
    "dit.attention": r"blocks\.\d+\.attn\.(wq|wk|wv|wo|gate)",
    "dit.mlp": r"blocks\.\d+\.mlp\.(gate|up|down)",
    "text_fusion": r"txtfusion\.(layerwise_blocks|refiner_blocks)\.\d+\.(attn\.(wq|wk|wv|wo|gate)|mlp\.(gate|up|down))",
}
# of ComfyUI's key for a model's own weights
PREFIX = "diffusion_model."


def add_adapters(model: UniFusion, config: AdapterConfig, seed: int) -> None:
    """Freezes the model and puts adapters into its target layers; they start without effect.

    New weights depend on `seed` alone, and stay in float32 whatever the type of the frozen ones.
    """
    model.requires_grad_(False)
    pattern = "|".join(TARGETS[target] for target in config.targets)
    if config.type == "lokr":
        peft_config = LoKrConfig(
            r=config.rank,
            alpha=config.alpha,  # pyright: ignore[reportArgumentType]  (peft takes floats)
            target_modules=f"({pattern})",
        )
    else:
        peft_config = LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,  # pyright: ignore[reportArgumentType]  (peft takes floats)
            target_modules=f"({pattern})",
            use_dora=config.type == "dora",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(peft_config, model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            # peft gives them the type of the frozen weights
            parameter.data = parameter.data.float()


def unchanged_adapters(model: nn.Module) -> int:
    """How many adapters still have no effect, because the factor that starts at 0 is 0."""
    zero = ("lora_B", "lokr_w1", "lokr_w2_b", "lokr_w2")
    count = 0
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            factors = [p for name, p in module.named_parameters() if any(part in name for part in zero)]
            count += bool(factors) and any(not bool(p.any()) for p in factors)
    return count


@torch.no_grad()
def adapter_tensors(
    model: UniFusion, config: AdapterConfig, weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The adapters under ComfyUI's names, with the scale alpha of each.

    ComfyUI divides DoRA's magnitude by the norm of the base weight, peft by that of the merged weight; the stored magnitude makes
    up for it.
    """
    state = get_peft_model_state_dict(model, dict(weights))
    tensors = {f"{PREFIX}{name}": value.detach().cpu().float().contiguous() for name, value in state.items()}
    for name, module in model.named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        key = f"{PREFIX}{name}"
        tensors[f"{key}.alpha"] = torch.tensor(float(config.alpha))
        if config.type == "dora":
            base: Any = module.get_base_layer()
            down, up = (tensors[f"{key}.lora_{part}.weight"] for part in "AB")
            magnitude = tensors.pop(f"{key}.lora_magnitude_vector")
            weight = base.weight.detach().cpu().float()
            merged = weight + config.alpha / config.rank * (up @ down)
            scale = magnitude * weight.norm(dim=1) / merged.norm(dim=1)
            tensors[f"{key}.dora_scale"] = scale[:, None].contiguous()
    return tensors


def save_adapters(
    path: Path,
    model: UniFusion,
    config: AdapterConfig,
    weights: Mapping[str, Tensor],
    record: Mapping[str, Any],
) -> None:
    """Writes the adapters as one safetensors file. `weights`: adapter parameters by their names in `model`."""
    tensors = adapter_tensors(model, config, weights)
    part = path.with_suffix(".part")
    metadata = {"format": "pt", "unifusion": json.dumps(record)}
    if fingerprint := model.config.vlm.fingerprint:
        metadata[VLM_KEY] = fingerprint
    save_file(tensors, str(part), metadata)
    part.replace(path)
