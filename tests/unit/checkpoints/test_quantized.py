"""Quantised generator files give the numbers that were quantised, or are refused with a sentence:

pytest tests/unit/checkpoints/test_quantized.py

tests/comfyui/in_process/cases_krea_2.py compares them with ComfyUI's own loader.
"""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from unifusion_core.checkpoints.generator_file import GeneratorFile, load_generator, save_generator
from unifusion_core.errors import CheckpointError
from unifusion_core.models.unifusion import UniFusion

LAYER = "blocks.1.attn.wq"
FP8 = torch.float8_e4m3fn
Parts = dict[str, Tensor]


def mark(**entry: Any) -> Tensor:
    return torch.tensor(list(json.dumps(entry).encode()), dtype=torch.uint8)


def fp8(weight: Tensor) -> Parts:
    scale = weight.abs().max() / 448
    return {
        "weight": (weight / scale).to(FP8),
        "weight_scale": scale,
        "comfy_quant": mark(format="float8_e4m3fn"),
    }


def fp8_per_row(weight: Tensor) -> Parts:
    scale = weight.abs().amax(1) / 448
    stored = (weight / scale[:, None]).to(FP8)
    return {"weight": stored, "weight_scale": scale, "comfy_quant": mark(format="float8_e4m3fn")}


def fp8_in_blocks(weight: Tensor) -> Parts:
    blocks = weight.unflatten(0, (4, -1)).unflatten(2, (2, -1))
    scale = blocks.abs().amax((1, 3)) / 448
    stored = (blocks / scale[:, None, :, None]).to(FP8).flatten(2).flatten(0, 1)
    return {"weight": stored, "weight_scale": scale, "comfy_quant": mark(format="float8_e4m3fn")}


def fp8_without_mark(weight: Tensor) -> Parts:
    return {name: value for name, value in fp8(weight).items() if name != "comfy_quant"}


def int8(weight: Tensor) -> Parts:
    scale = weight.abs().max() / 127
    stored = (weight / scale).round().to(torch.int8)
    return {"weight": stored, "weight_scale": scale, "comfy_quant": mark(format="int8_tensorwise")}


def int8_per_row(weight: Tensor) -> Parts:
    scale = weight.abs().amax(1) / 127
    stored = (weight / scale[:, None]).round().to(torch.int8)
    return {"weight": stored, "weight_scale": scale, "comfy_quant": mark(format="int8_tensorwise")}


def by_kitchen(layout: str, **entry: Any) -> Callable[[Tensor], Parts]:
    """As ComfyUI's own package quantises it."""

    def quantise(weight: Tensor) -> Parts:
        kind = pytest.importorskip("comfy_kitchen.tensor").get_layout_class(layout)
        settings = {"per_channel": True, "convrot": True} if "convrot" in entry else {}
        sizes = {name: entry[name] for name in ("convrot_groupsize",) if name in entry}
        parts = kind.state_dict_tensors(*kind.quantize(weight, **settings, **sizes))
        named = {f"weight{suffix}": part.contiguous() for suffix, part in parts.items()}
        return named | {"comfy_quant": mark(**entry)}

    return quantise


# the largest error of a weight, as a share of the largest weight
LAYOUTS: dict[str, tuple[Callable[[Tensor], Parts], float]] = {
    "fp8": (fp8, 0.04),
    "fp8 per row": (fp8_per_row, 0.04),
    "fp8 in blocks": (fp8_in_blocks, 0.04),
    "fp8 without mark": (fp8_without_mark, 0.04),
    "int8": (int8, 0.005),
    "int8 per row": (int8_per_row, 0.005),
    "int8 ConvRot": (
        by_kitchen("TensorWiseINT8Layout", format="int8_tensorwise", convrot=True, convrot_groupsize=16),
        0.01,
    ),
    "mxfp8": (by_kitchen("TensorCoreMXFP8Layout", format="mxfp8"), 0.07),
    "nvfp4": (by_kitchen("TensorCoreNVFP4Layout", format="nvfp4"), 0.2),
}


@pytest.fixture
def quantised(build_model: Callable[..., UniFusion], tmp_path: Path) -> Callable[..., tuple[Path, Tensor]]:
    """`quantised(quantise, layer)`: a file with one layer quantised, and that layer's weight before."""

    def build(
        quantise: Callable[[Tensor], Parts], layer: str = LAYER, prefix: str = ""
    ) -> tuple[Path, Tensor]:
        path = tmp_path / "quantised.safetensors"
        save_generator(build_model(), path, dtype=torch.float32)
        tensors = load_file(path)
        weight = tensors.pop(f"{layer}.weight")
        tensors |= {f"{layer}.{part}": value for part, value in quantise(weight).items()}
        save_file({prefix + name: value for name, value in tensors.items()}, path)
        return path, weight

    return build


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_quantised_layer_has_the_numbers_that_were_quantised(
    layout: str, quantised: Callable[..., tuple[Path, Tensor]]
) -> None:
    quantise, tolerance = LAYOUTS[layout]
    path, weight = quantised(quantise)

    loaded, _ = load_generator(path)

    error = (loaded.get_submodule(LAYER).weight - weight).abs().max() / weight.abs().max()
    assert 0 < error <= tolerance


@pytest.mark.parametrize("layout", ["mxfp8", "nvfp4"])
def test_rows_and_columns_that_fill_up_a_weight_are_cut_off(
    layout: str, quantised: Callable[..., tuple[Path, Tensor]]
) -> None:
    """72 columns are stored as 80 or 96."""
    quantise, tolerance = LAYOUTS[layout]
    layer = "blocks.0.mlp.down"
    path, weight = quantised(quantise, layer)

    loaded, _ = load_generator(path)

    given = loaded.get_submodule(layer).weight
    assert given.shape == weight.shape == (64, 72)
    assert (given - weight).abs().max() / weight.abs().max() <= tolerance


def test_scales_per_row_multiply_rows_in_a_square_matrix(
    quantised: Callable[..., tuple[Path, Tensor]],
) -> None:
    """64 scales for 64 x 64 numbers would multiply columns if they were not turned."""
    path, weight = quantised(int8_per_row)
    scales = torch.linspace(0.01, 1, 64)
    tensors = load_file(path)
    tensors[f"{LAYER}.weight_scale"] = scales
    save_file(tensors, path)

    loaded, _ = load_generator(path)

    assert weight.shape == (64, 64)
    expected = tensors[f"{LAYER}.weight"].float() * scales[:, None]
    torch.testing.assert_close(loaded.get_submodule(LAYER).weight, expected)


def test_smoothing_of_inputs_is_multiplied_into_the_columns(
    quantised: Callable[..., tuple[Path, Tensor]],
) -> None:
    path, _ = quantised(LAYOUTS["nvfp4"][0])
    plain = load_generator(path)[0].get_submodule(LAYER).weight
    tensors = load_file(path)
    tensors[f"{LAYER}.pre_quant_scale"] = smoothing = torch.linspace(0.5, 2, 64)
    save_file(tensors, path)

    loaded, _ = load_generator(path)

    torch.testing.assert_close(loaded.get_submodule(LAYER).weight, plain * smoothing)


def test_a_listing_in_the_metadata_of_an_all_in_one_file_is_read(
    quantised: Callable[..., tuple[Path, Tensor]],
) -> None:
    prefix = "model.diffusion_model."
    path, weight = quantised(int8, prefix=prefix)
    tensors = load_file(path)
    del tensors[f"{prefix}{LAYER}.comfy_quant"]
    tensors["text_encoders.qwen3vl_4b.norm.weight"] = torch.ones(3)
    tensors["vae.decoder.weight"] = torch.ones(3)
    layers = {prefix + LAYER: {"format": "int8_tensorwise"}, "text_encoders.a": {"format": "unknown"}}
    save_file(tensors, path, {"_quantization_metadata": json.dumps({"layers": layers})})

    loaded, _ = load_generator(path)

    error = (loaded.get_submodule(LAYER).weight - weight).abs().max() / weight.abs().max()
    assert 0 < error <= 0.005


def without(part: str, quantise: Callable[[Tensor], Parts]) -> Callable[[Tensor], Parts]:
    return lambda weight: {name: value for name, value in quantise(weight).items() if name != part}


def changed(quantise: Callable[[Tensor], Parts], **parts: Tensor) -> Callable[[Tensor], Parts]:
    return lambda weight: quantise(weight) | parts


@pytest.mark.parametrize(
    ("quantise", "message"),
    [
        (changed(int8, comfy_quant=mark(format="int2")), "is stored as int2, and this version knows float8"),
        (changed(int8, comfy_quant=mark(format=["int8"])), "is stored as .*, and this version knows float8"),
        (changed(int8, comfy_quant=mark(format="nvfp4")), "marked as nvfp4 and has a weight of torch.int8"),
        (without("weight_scale", int8), "is stored as int8_tensorwise and has no weight_scale"),
        (without("comfy_quant", int8), "is stored as torch.int8 and has no mark comfy_quant"),
        (changed(int8, weight_scale=torch.ones(3)), "weight_scale of 3 numbers, and one number or 64 are"),
        (changed(fp8, weight_scale=torch.ones(5, 2)), "weight_scale of 10 numbers, and one number or 64 are"),
        (
            changed(int8, comfy_quant=mark(format="int8_tensorwise", convrot=True, convrot_groupsize=8)),
            "groups of 8, a power of 4 is needed",
        ),
        (
            changed(int8, comfy_quant=mark(format="int8_tensorwise", convrot=True)),
            "groups of 256, which do not divide its 64 columns",
        ),
        (
            changed(int8, comfy_quant=mark(format="int8_tensorwise", convrot=True, convrot_groupsize="a")),
            "convrot_groupsize 'a', a whole number is needed",
        ),
        (changed(int8, comfy_quant=torch.tensor([255], dtype=torch.uint8)), "the mark of .* cannot be read"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_weight_is_read(
    quantise: Callable[[Tensor], Parts], message: str, quantised: Callable[..., tuple[Path, Tensor]]
) -> None:
    path, _ = quantised(quantise)

    with pytest.raises(CheckpointError, match=rf"quantised.safetensors: .*{message}"):
        GeneratorFile(path)


def test_a_missing_package_is_named(
    quantised: Callable[..., tuple[Path, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = mark(format="int8_tensorwise", convrot=True, convrot_groupsize=16)
    path, _ = quantised(changed(int8, comfy_quant=entry))
    original = builtins.__import__

    def without_kitchen(name: str, *rest: Any) -> Any:
        if name.startswith("comfy_kitchen"):
            raise ImportError("No module named 'comfy_kitchen'")
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_kitchen)

    with pytest.raises(
        CheckpointError, match=r'with ConvRot .* pip install "unifusion\[quantized\]", or load'
    ):
        load_generator(path)
