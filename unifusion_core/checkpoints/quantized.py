"""Layers quantised to 8 bits with a scale, in the layouts that ComfyUI writes.

`normalize_layout` converts all layouts to the current one. Beside `LAYER.weight` it has `LAYER.weight_scale`, optionally
`LAYER.input_scale`, and the mark `LAYER.comfy_quant`, the bytes of a JSON with the name of the format. 8-bit weights without
a mark have no scale.

Source: github.com/Comfy-Org/ComfyUI, comfy/ops.py; for older layouts `convert_old_quants` in comfy/utils.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError

MARK = "comfy_quant"
FORMATS = ("float8_e4m3fn", "float8_e5m2")
# tensors of a quantised layer besides its weight and bias
PARTS = (MARK, "weight_scale", "input_scale")
# metadata entry with the formats of all layers, instead of marks
LISTED = "_quantization_metadata"
# oldest layout: one tensor for the whole file; two elements mean that products are computed in 16 bits
OLD_MARK = "scaled_fp8"
OLD_PARTS = {"scale_weight": "weight_scale", "scale_input": "input_scale"}


def normalize_layout(
    tensors: dict[str, Tensor], metadata: Mapping[str, str], prefix: str = ""
) -> dict[str, Tensor]:
    """The tensors in the current layout: each quantised layer has its mark and one scale.

    `prefix`: the prefix that was removed from the tensors' names; names in `metadata` still have it.

    Raises CheckpointError for formats other than `FORMATS`, and for a layer without exactly one scale.
    """
    formats: dict[str, Any] = {}
    if LISTED in metadata:
        formats = _listed(metadata[LISTED], prefix)
    elif OLD_MARK in tensors:
        tensors = dict(tensors)
        entry: dict[str, Any] = {"format": FORMATS[0]}
        if tensors.pop(OLD_MARK).numel() == 2:
            entry["full_precision_matrix_mult"] = True
        formats = {name.rpartition(".")[0]: entry for name in tensors if name.endswith(".scale_weight")}
        tensors = dict(_renamed(tensors))
    marks = {
        f"{layer}.{MARK}": torch.tensor(list(json.dumps(e).encode()), dtype=torch.uint8)
        for layer, e in formats.items()
    }
    tensors = tensors | marks
    for layer in quantized_layers(tensors):
        kind = _format_of(layer, tensors[f"{layer}.{MARK}"])
        if kind not in FORMATS:
            raise CheckpointError(f"{layer} is stored as {kind}: use the bf16 or the fp8 file of this model")
        scale = tensors.get(f"{layer}.weight_scale")
        if scale is None or scale.numel() != 1:
            given = "no weight_scale" if scale is None else f"a weight_scale of {scale.numel()} numbers"
            raise CheckpointError(
                f"{layer} has {given} and one number is needed: use another file of this model"
            )
    return tensors


def _listed(text: str, prefix: str) -> dict[str, Any]:
    """The entries of layers with the prefix. The file may also contain a text encoder and an autoencoder."""
    try:
        layers = json.loads(text)["layers"].items()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"its {LISTED} cannot be read ({error}): download it again") from error
    return {name.removeprefix(prefix): entry for name, entry in layers if name.startswith(prefix)}


def _format_of(layer: str, mark: Tensor) -> str | None:
    try:
        return json.loads(bytes(mark.tolist())).get("format")
    except (ValueError, TypeError, AttributeError, NotImplementedError, RecursionError) as error:
        raise CheckpointError(f"the mark of {layer} cannot be read ({error}): download it again") from error


def _renamed(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, value in tensors.items():
        layer, _, last = name.rpartition(".")
        yield (f"{layer}.{OLD_PARTS[last]}" if last in OLD_PARTS else name), value


def quantized_layers(names: Iterable[str]) -> list[str]:
    """The layers that have a mark, without ".comfy_quant"."""
    return [name.removesuffix(f".{MARK}") for name in names if name.endswith(f".{MARK}")]


def drop_scales(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without marks and scales; quantised weights stay in 8 bits."""
    parts = {f"{layer}.{part}" for layer in quantized_layers(tensors) for part in PARTS}
    return {name: value for name, value in tensors.items() if name not in parts}


def dequantize(
    tensors: Mapping[str, Tensor], device: torch.device | str, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The tensors without marks and scales, in `dtype` on `device`; quantised weights are multiplied by their scales. A tensor
    that already has the type and device is not copied."""
    layers = set(quantized_layers(tensors))

    def full(name: str, value: Tensor) -> Tensor:
        layer, _, last = name.rpartition(".")
        if last != "weight" or layer not in layers:
            return value.to(device, dtype)
        return (value.to(device, torch.float32) * tensors[f"{layer}.weight_scale"].to(device)).to(dtype)

    return {name: full(name, value) for name, value in drop_scales(tensors).items()}
