"""Adapter files of every layout change the weights as their formula says, and unused keys are counted:

pytest tests/unit/checkpoints/test_adapter_file.py

tests/comfyui/in_process/cases_loras.py compares them with ComfyUI's own loaders.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from unifusion_core.checkpoints.adapter_file import (
    VLM_KEY,
    is_adapter,
    merge_adapters,
    read_adapter,
    with_strength,
)
from unifusion_core.errors import CheckpointError
from unifusion_core.models.unifusion import UniFusion

RANK, ALPHA = 3, 6.0
# layers of the file and their names in diffusers
NAMES = {
    "blocks.1.attn.wq": "transformer_blocks.1.attn.to_q",
    "blocks.0.attn.wo": "transformer_blocks.0.attn.to_out.0",
    "blocks.0.attn.gate": "transformer_blocks.0.attn.to_gate",
    "blocks.1.mlp.down": "transformer_blocks.1.ff.down",
    "txtfusion.layerwise_blocks.0.attn.wk": "text_fusion.layerwise_blocks.0.attn.to_k",
    "txtfusion.projector": "text_fusion.projector",
    "tmlp.2": "time_embed.linear_2",
    "last.linear": "final_layer.linear",
}
PREFIXES: dict[str, Callable[[str, str], str]] = {
    "diffusion_model": lambda own, _: f"diffusion_model.{own}",
    "no prefix": lambda own, _: own,
    "transformer": lambda own, _: f"transformer.{own}",
    "base_model": lambda own, _: f"base_model.model.{own}",
    "kohya": lambda own, _: f"lora_unet_{own.replace('.', '_')}",
    "diffusers": lambda _, theirs: theirs,
    "transformer, diffusers": lambda _, theirs: f"transformer.{theirs}",
    "base_model, diffusers": lambda _, theirs: f"base_model.model.transformer.{theirs}",
    "diffusion_model, diffusers": lambda _, theirs: f"diffusion_model.{theirs}",
    "kohya, diffusers": lambda _, theirs: f"lora_unet_{theirs.replace('.', '_')}",
    "lycoris, diffusers": lambda _, theirs: f"lycoris_{theirs.replace('.', '_')}",
}
SUFFIXES = {
    "peft": ("lora_A.weight", "lora_B.weight"),
    "peft with its name": ("lora_A.default.weight", "lora_B.default.weight"),
    "kohya": ("lora_down.weight", "lora_up.weight"),
    "diffusers": ("lora.down.weight", "lora.up.weight"),
    "bare": ("lora_A", "lora_B"),
}


@pytest.fixture
def model(build_model: Callable[..., UniFusion]) -> UniFusion:
    return build_model()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def save(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
        path = tmp_path / "adapter.safetensors"
        save_file({name: value.clone() for name, value in tensors.items()}, path, metadata)
        return path

    return save


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape) * 0.2


def shapes_of(model: UniFusion) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.named_parameters()}


def moved(model: UniFusion, before: dict[str, Tensor]) -> dict[str, Tensor]:
    """The change of every parameter that has changed."""
    after = model.state_dict()
    return {
        name: after[name] - value for name, value in before.items() if not torch.equal(after[name], value)
    }


def copied(model: UniFusion) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def lora_of(model: UniFusion) -> dict[str, tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    weights = {name: model.get_submodule(name).weight for name in NAMES}
    return {name: (rand(RANK, w.shape[1]), rand(w.shape[0], RANK)) for name, w in weights.items()}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_lora_of_every_layout_changes_all_its_layers(
    prefix: str, suffix: str, model: UniFusion, write: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    parts, tensors = lora_of(model), {}
    for name, (down, up) in parts.items():
        key = PREFIXES[prefix](name, NAMES[name])
        tensors |= {f"{key}.{SUFFIXES[suffix][0]}": down, f"{key}.{SUFFIXES[suffix][1]}": up}
        tensors[f"{key}.alpha"] = torch.tensor(ALPHA)
    before = copied(model)

    assert merge_adapters(model, write(tensors), strength=0.5) == len(NAMES)

    changes = moved(model, before)
    assert changes.keys() == {f"{name}.weight" for name in NAMES}
    for name, (down, up) in parts.items():
        expected = 0.5 * ALPHA / RANK * (up @ down)
        torch.testing.assert_close(changes[f"{name}.weight"], expected, atol=1e-5, rtol=1e-4)
    assert not caplog.records


def attention(model: UniFusion) -> list[Tensor]:
    return [model.get_submodule(f"blocks.1.attn.{part}").weight for part in ("wq", "wk", "wv")]


@pytest.mark.parametrize(
    "fused",
    ["blocks.1.attn.qkv", "transformer.transformer_blocks.1.attn.to_qkv", "lora_unet_blocks_1_attn_qkv"],
)
@pytest.mark.parametrize("kind", ["lora", "loha", "lokr", "diff", "dora"])
def test_fused_queries_keys_and_values_are_split_by_their_rows(
    fused: str, kind: str, model: UniFusion, write: Callable[..., Path]
) -> None:
    """wq has 64 rows, wk and wv 32: 128 together."""
    torch.manual_seed(2)
    weights = [w.clone() for w in attention(model)]
    whole = torch.cat(weights)
    a, b, c, d = rand(128, RANK), rand(RANK, 64), rand(128, RANK), rand(RANK, 64)
    w1, w2 = rand(8, 4), rand(16, 16)
    scale = whole.norm(dim=1, keepdim=True) * 1.5
    parts, expected = {
        "lora": ({"lora_up.weight": a, "lora_down.weight": b}, a @ b),
        "loha": ({"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d}, (a @ b) * (c @ d)),
        "lokr": ({"lokr_w1": w1, "lokr_w2": w2}, torch.kron(w1, w2)),
        "diff": ({"diff": a @ b}, a @ b),
        "dora": (
            {"lora_up.weight": a, "lora_down.weight": b, "dora_scale": scale},
            1.5 * (whole + a @ b) - whole,
        ),
    }[kind]

    assert merge_adapters(model, write({f"{fused}.{part}": value for part, value in parts.items()})) == 3

    changes = torch.cat([after - w for after, w in zip(attention(model), weights, strict=True)])
    torch.testing.assert_close(changes, expected, atol=1e-5, rtol=1e-4)


def test_peft_and_comfyui_magnitudes_mean_the_same_weight(
    model: UniFusion, write: Callable[..., Path], build_model: Callable[..., UniFusion]
) -> None:
    """peft scales W + d to rows of norm m; ComfyUI stores m |W| / |W + d|."""
    layer = "blocks.1.attn.wq"
    weight = model.get_submodule(layer).weight.clone()
    down, up = rand(RANK, 64), rand(64, RANK)
    magnitude = torch.rand(64) + 1
    key = f"base_model.model.{layer}"
    tensors = {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}

    merge_adapters(model, write(tensors | {f"{key}.lora_magnitude_vector.weight": magnitude}))

    merged = weight + up @ down
    expected = magnitude[:, None] * merged / merged.norm(dim=1, keepdim=True)
    torch.testing.assert_close(model.get_submodule(layer).weight.data, expected, atol=1e-5, rtol=1e-4)


def test_differences_of_biases_norms_and_modulations_are_added(
    model: UniFusion, write: Callable[..., Path]
) -> None:
    before, shapes = copied(model), shapes_of(model)
    tensors = {
        "diffusion_model.first.diff_b": rand(*shapes["first.bias"]),
        "diffusion_model.blocks.0.prenorm.scale.diff": rand(*shapes["blocks.0.prenorm.scale"]),
        "diffusion_model.blocks.1.mod.lin.diff": rand(*shapes["blocks.1.mod.lin"]),
    }

    merge_adapters(model, write(tensors))

    changes = moved(model, before)
    names = ("first.bias", "blocks.0.prenorm.scale", "blocks.1.mod.lin")
    assert changes.keys() == set(names)
    for name, value in zip(names, tensors.values(), strict=True):
        torch.testing.assert_close(changes[name], value)


def test_keys_that_are_not_used_are_counted_with_their_reasons(
    model: UniFusion, write: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    (down, up), layer = lora_of(model)["blocks.1.attn.wq"], "diffusion_model.blocks.1.attn.wq"
    path = write(
        {
            f"{layer}.lora_A.weight": down,
            f"{layer}.lora_B.weight": up,
            "lora_te_layers_0.lora_down.weight": down,
            "diffusion_model.blocks.99.attn.wq.lora_A.weight": down,
            "diffusion_model.blocks.0.attn.wq.lora_A.weight": down,
            "diffusion_model.blocks.0.attn.wk.lora_A.weight": rand(RANK, 8),
            "diffusion_model.blocks.0.attn.wk.lora_B.weight": rand(8, RANK),
            "step": torch.ones(1),
        }
    )

    adapter = read_adapter(path, shapes_of(model))
    with caplog.at_level(logging.WARNING):
        merge_adapters(model, path)

    assert len(adapter.used) == 2
    assert sorted(set(adapter.unused.values())) == [
        "a part of its layer is missing",
        "it belongs to a text encoder",
        "its layer is (8, 8), this model's is (32, 64)",
        "no known part of an adapter",
        "this model has no such layer",
    ]
    assert "2 of 8 keys are used, in 1 layers; 6 are not used, such as " in caplog.text


def test_an_untrained_file_is_said_to_have_no_effect(
    model: UniFusion, write: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    (down, up), layer = lora_of(model)["blocks.1.attn.wq"], "blocks.1.attn.wq"
    path = write({f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": torch.zeros_like(up)})

    with caplog.at_level(logging.WARNING):
        merge_adapters(model, path)

    assert "1 of the layers have no effect, because they are zero as before training" in caplog.text


def test_a_file_for_another_model_is_refused(model: UniFusion, write: Callable[..., Path]) -> None:
    path = write({"double_blocks.0.img_attn.qkv.lora_A.weight": rand(RANK, 8)})

    message = (
        r"adapter.safetensors changes nothing .* double_blocks.* \(this model has no such layer\): choose"
    )
    with pytest.raises(CheckpointError, match=message):
        merge_adapters(model, path)


def test_a_file_for_another_edition_is_told_apart_by_its_vlm(
    model: UniFusion, write: Callable[..., Path]
) -> None:
    (down, up), layer = lora_of(model)["blocks.1.attn.wq"], "blocks.1.attn.wq"
    path = write({f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}, {VLM_KEY: "0123456789ab"})

    assert read_adapter(path, shapes_of(model), "0123456789ab").changes
    # of a model that reads any VLM of its size
    assert read_adapter(path, shapes_of(model)).changes
    with pytest.raises(
        CheckpointError, match=r"adapter.safetensors was trained on .* VLM 01234567, .* fedcba98: use"
    ):
        read_adapter(path, shapes_of(model), "fedcba987654")


def test_one_part_under_two_names_is_used_once(model: UniFusion, write: Callable[..., Path]) -> None:
    (down, up), layer = lora_of(model)["blocks.1.attn.wq"], "blocks.1.attn.wq"
    double = {f"transformer.{layer}.lora_A.weight": down, f"transformer.{layer}.lora_B.weight": up}
    tensors = {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up} | double

    adapter = read_adapter(write(tensors), shapes_of(model))

    assert len(adapter.used) == len(adapter.unused) == 2
    assert all("is the same part" in reason for reason in adapter.unused.values())


def test_generators_are_no_adapters(model: UniFusion) -> None:
    assert not is_adapter(model.state_dict())
    assert is_adapter(["step", "blocks.1.attn.wq.lora_A.weight"])


def test_a_strength_is_told_from_a_name(tmp_path: Path) -> None:
    odd = tmp_path / "b:2"
    odd.write_text("")
    assert with_strength(odd) == (odd, 1.0)
    assert with_strength("c.safetensors:-0.25") == (Path("c.safetensors"), -0.25)
    assert with_strength("c.safetensors") == (Path("c.safetensors"), 1.0)
