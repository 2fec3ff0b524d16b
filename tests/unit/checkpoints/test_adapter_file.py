"""Adapter files in every layout that ComfyUI's loader reads for Krea 2: pytest tests/unit/checkpoints/test_adapter_file.py"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from unifusion_core.checkpoints.adapter_file import _PARTS, merge_adapters, with_strength
from unifusion_core.errors import CheckpointError
from unifusion_core.models.unifusion import UniFusion

LAYER = "blocks.1.attn.wo"
OF_DIFFUSERS = "transformer_blocks.1.attn.to_out.0"
LAYOUTS = [
    (f"diffusion_model.{LAYER}.lora_A.weight", f"diffusion_model.{LAYER}.lora_B.weight"),
    (f"diffusion_model.{LAYER}.lora_down.weight", f"diffusion_model.{LAYER}.lora_up.weight"),
    ("lora_unet_blocks_1_attn_wo.lora_down.weight", "lora_unet_blocks_1_attn_wo.lora_up.weight"),
    (f"transformer.{OF_DIFFUSERS}.lora_A.weight", f"transformer.{OF_DIFFUSERS}.lora_B.weight"),
    (
        f"transformer.{OF_DIFFUSERS}.lora_A.default.weight",
        f"transformer.{OF_DIFFUSERS}.lora_B.default.weight",
    ),
    (f"diffusion_model.{OF_DIFFUSERS}.lora.down.weight", f"diffusion_model.{OF_DIFFUSERS}.lora.up.weight"),
    (f"{OF_DIFFUSERS}_lora.down.weight", f"{OF_DIFFUSERS}_lora.up.weight"),
    (f"{OF_DIFFUSERS.removesuffix('.0')}.lora_A", f"{OF_DIFFUSERS.removesuffix('.0')}.lora_B"),
    (
        "lycoris_transformer_blocks_1_attn_to_out_0.lora_down.weight",
        "lycoris_transformer_blocks_1_attn_to_out_0.lora_up.weight",
    ),
]


@pytest.mark.parametrize(("down_key", "up_key"), LAYOUTS)
def test_every_layout_changes_the_same_layer_by_the_same(
    build_model: Callable[..., UniFusion], tmp_path: Path, down_key: str, up_key: str
) -> None:
    model, path = build_model(), tmp_path / "a.safetensors"
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weight = model.get_parameter(f"{LAYER}.weight")
    down, up = torch.randn(2, weight.shape[1]), torch.randn(weight.shape[0], 2)
    base = next(down_key.removesuffix(end) for end in _PARTS if down_key.endswith(end))
    save_file({down_key: down, up_key: up, f"{base}.alpha": torch.tensor(4.0)}, path)
    assert merge_adapters(model, *with_strength(f"{path}:0.5")) == 1
    for name, value in model.state_dict().items():
        change = 0.5 * 4 / 2 * (up @ down) if name == f"{LAYER}.weight" else torch.zeros(())
        assert torch.allclose(value, before[name] + change, atol=1e-5), name


def test_every_linear_layer_has_its_own_names(build_model: Callable[..., UniFusion]) -> None:
    from unifusion_core.checkpoints.adapter_file import layer_names

    layers = [name for name, module in build_model().named_modules() if isinstance(module, torch.nn.Linear)]
    names = [each for layer in layers for each in layer_names(layer)]
    assert len(names) == len(set(names))
    # own, kohya's, and four of diffusers for each
    assert min(len(layer_names(layer)) for layer in layers) == 6


def test_unknown_keys_are_refused_and_a_strength_is_told_from_a_name(
    build_model: Callable[..., UniFusion], tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    for key, sentence in (
        (
            "diffusion_model.blocks.99.attn.wo.lora_A.weight",
            'changes the layer "diffusion_model.blocks.99.attn.wo"',
        ),
        ("diffusion_model.blocks.1.attn.wo.hada_w1_a", "is no LoRA, LoKr or DoRA"),
    ):
        save_file({key: torch.ones(2, 2)}, path)
        with pytest.raises(CheckpointError, match=sentence):
            merge_adapters(build_model(), path)
    odd = tmp_path / "b:2"
    odd.write_text("")
    assert with_strength(odd) == (odd, 1.0)
    assert with_strength("c.safetensors:-0.25") == (Path("c.safetensors"), -0.25)
    assert with_strength("c.safetensors") == (Path("c.safetensors"), 1.0)
