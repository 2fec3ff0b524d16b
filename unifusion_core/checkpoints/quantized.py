"""Quantised layers, in the layouts that ComfyUI reads: fp8, int8, mxfp8, nvfp4 and rotated 4-bit weights.

`normalize_layout` converts all layouts to the current one. Beside `LAYER.weight` it has the scales of the layer's format and the
mark `LAYER.comfy_quant`, the bytes of a JSON with the name of the format. fp8 weights without a mark and without a scale are
plain numbers.

Source: github.com/Comfy-Org/ComfyUI, comfy/ops.py; for older layouts `convert_old_quants` in comfy/utils.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError

MARK = "comfy_quant"
# metadata entry with the formats of all layers, instead of marks
LISTED = "_quantization_metadata"
# oldest layout: one tensor for the whole file; two elements mean that products are computed in 16 bits
OLD_MARK = "scaled_fp8"
OLD_PARTS = {"scale_weight": "weight_scale", "scale_input": "input_scale"}
OTHER_FILE = "use the bf16 or the fp8 file of this model"


@dataclass(frozen=True)
class Format:
    """How a weight (rows x columns) is stored.

    storage    type of the stored numbers
    needed     tensors beside the weight without which it cannot be read; the first holds most of the scales
    optional   tensors that may be beside it
    packed     weights in one stored number, along a row
    align      rows and columns are filled up to a multiple of this
    block      weights along a row that share a scale; 0 = one scale for all, or one per row
    swizzled   whether the scales of blocks are in tiles of 128 x 4, as tensor cores read them
    layout     the class in comfy-kitchen that reads it; "" = weights are the stored numbers times their scales
    """

    storage: torch.dtype
    needed: tuple[str, ...] = ("weight_scale",)
    optional: tuple[str, ...] = ()
    packed: int = 1
    align: int = 1
    block: int = 0
    swizzled: bool = False
    layout: str = ""

    @property
    def parts(self) -> tuple[str, ...]:
        """All tensors of a layer besides its weight and bias."""
        return (MARK, *self.needed, *self.optional)


FORMATS = {
    "float8_e4m3fn": Format(torch.float8_e4m3fn, optional=("input_scale",)),
    "float8_e5m2": Format(torch.float8_e5m2, optional=("input_scale",)),
    "int8_tensorwise": Format(torch.int8),
    "mxfp8": Format(
        torch.float8_e4m3fn,
        optional=("input_scale",),
        align=32,
        block=32,
        swizzled=True,
        layout="TensorCoreMXFP8Layout",
    ),
    "nvfp4": Format(
        torch.uint8,
        needed=("weight_scale", "weight_scale_2"),
        optional=("input_scale", "pre_quant_scale"),
        packed=2,
        align=16,
        block=16,
        swizzled=True,
        layout="TensorCoreNVFP4Layout",
    ),
    "convrot_w4a4": Format(torch.int8, packed=2, layout="TensorCoreConvRotW4A4Layout"),
    "asym_w4a8_int8": Format(
        torch.int8,
        needed=("weight_s_rel", "weight_s_channel"),
        optional=("weight_codebook",),
        packed=2,
        block=16,
        layout="AsymW4A8Int8Layout",
    ),
}

# Layouts ------------------------------------------------------------------------------------------


def normalize_layout(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], prefix: str = ""
) -> dict[str, Tensor]:
    """The tensors in the current layout: each quantised layer has its mark, and scales that fit its weight.

    fp8 weights with a scale per row or block are returned in bfloat16, because ComfyUI's fp8 layers have one scale.

    `prefix`: the prefix that was removed from the tensors' names; names in `metadata` still have it.

    Raises CheckpointError for formats other than `FORMATS`, for scales that are missing or do not fit, and for integer weights
    without a mark.
    """
    formats: dict[str, Any] = {}
    tensors = dict(tensors)
    if LISTED in metadata:
        formats = _listed(metadata[LISTED], prefix)
    elif OLD_MARK in tensors:
        entry: dict[str, Any] = {"format": "float8_e4m3fn"}
        if tensors.pop(OLD_MARK).numel() == 2:
            entry["full_precision_matrix_mult"] = True
        formats = {name.rpartition(".")[0]: entry for name in tensors if name.endswith(".scale_weight")}
        tensors = dict(_renamed(tensors))
    marked = set(quantized_layers(tensors)) | set(formats)
    formats |= {layer: {"format": kind} for layer, kind in _unmarked(tensors) if layer not in marked}
    tensors |= {
        f"{layer}.{MARK}": torch.tensor(list(json.dumps(e).encode()), dtype=torch.uint8)
        for layer, e in formats.items()
    }
    for layer in quantized_layers(tensors):
        _normalize_layer(layer, tensors)
    for name, value in tensors.items():
        layer, _, last = name.rpartition(".")
        if last == "weight" and value.dtype in {torch.int8, torch.uint8} and f"{layer}.{MARK}" not in tensors:
            raise CheckpointError(
                f"{layer} is stored as {value.dtype} and has no mark {MARK}, without which its format is unknown: {OTHER_FILE}"
            )
    return tensors


def _listed(text: str, prefix: str) -> dict[str, Any]:
    """The entries of layers with the prefix. The file may also contain a text encoder and an autoencoder."""
    try:
        layers = json.loads(text)["layers"].items()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"its {LISTED} cannot be read ({error}): download it again") from error
    return {name.removeprefix(prefix): entry for name, entry in layers if name.startswith(prefix)}


def _renamed(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, value in tensors.items():
        layer, _, last = name.rpartition(".")
        yield (f"{layer}.{OLD_PARTS[last]}" if last in OLD_PARTS else name), value


def _unmarked(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """(layer, format) of the fp8 weights that have a scale, which says their format."""
    kinds = {FORMATS[kind].storage: kind for kind in ("float8_e4m3fn", "float8_e5m2")}
    for name, value in tensors.items():
        layer, _, last = name.rpartition(".")
        if last == "weight" and value.dtype in kinds and f"{layer}.weight_scale" in tensors:
            yield layer, kinds[value.dtype]


def _normalize_layer(layer: str, tensors: dict[str, Tensor]) -> None:
    """Checks one quantised layer, and brings its scales into the form that ComfyUI multiplies with. Raises CheckpointError as
    `normalize_layout` does."""
    entry = entry_of(layer, tensors)
    kind = entry.get("format")
    found = FORMATS.get(kind) if isinstance(kind, str) else None
    if found is None:
        known = ", ".join(FORMATS)
        raise CheckpointError(f"{layer} is stored as {kind}, and this version knows {known}: {OTHER_FILE}")
    weight = tensors.get(f"{layer}.weight")
    if weight is None or weight.ndim != 2 or weight.dtype != found.storage:
        given = "no weight" if weight is None else f"a weight of {weight.dtype} {tuple(weight.shape)}"
        raise CheckpointError(
            f"{layer} is marked as {kind} and has {given}, a matrix of {found.storage} is needed: {OTHER_FILE}"
        )
    missing = [part for part in found.needed if f"{layer}.{part}" not in tensors]
    if missing:
        raise CheckpointError(f"{layer} is stored as {kind} and has no {missing[0]}: {OTHER_FILE}")
    name = f"{layer}.{found.needed[0]}"
    scale, (rows, columns) = tensors[name], weight.shape
    rotation = _rotation_size(layer, entry)
    if rotation and columns * found.packed % rotation:
        raise CheckpointError(
            f"{layer} is rotated in groups of {rotation}, which do not divide its {columns * found.packed} columns: {OTHER_FILE}"
        )
    fits, wanted = scale.numel() in {1, rows}, f"one number or {rows}"
    if found.block:
        blocks = columns * found.packed // _size(layer, entry, "group_size", found.block)
        needed = _up(rows, 128) * _up(blocks, 4) if found.swizzled else rows * blocks
        fits = scale.numel() == needed and (scale.dtype.itemsize == 1 or not found.swizzled)
        wanted = f"{needed} numbers"
    for part, sizes in {"weight_scale_2": {1}, "pre_quant_scale": range(columns * found.packed + 1)}.items():
        if part in (*found.needed, *found.optional) and f"{layer}.{part}" in tensors:
            fits = fits and tensors[f"{layer}.{part}"].numel() in sizes
    one_scale = kind in {"float8_e4m3fn", "float8_e5m2"} and scale.numel() > 1
    if one_scale and (fits or _in_blocks(scale, weight)):
        tensors[f"{layer}.weight"] = _times_scales(weight, scale.view(rows, 1) if fits else scale)
        for part in found.parts:
            tensors.pop(f"{layer}.{part}", None)
    elif fits and kind == "int8_tensorwise" and scale.numel() > 1:
        # as a column, which multiplies rows
        tensors[name] = scale.view(rows, 1)
    elif not fits:
        raise CheckpointError(
            f"{layer} is stored as {kind} {tuple(weight.shape)} with a {found.needed[0]} of {scale.numel()} numbers, and "
            f"{wanted} are needed: {OTHER_FILE}"
        )


def _size(layer: str, entry: Mapping[str, Any], name: str, default: int) -> int:
    """A size of groups in a mark. Raises CheckpointError for one that is no whole number from 1 on."""
    size = entry.get(name, default)
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise CheckpointError(
            f"the mark of {layer} has {name} {size!r}, a whole number is needed: {OTHER_FILE}"
        )
    return size


def _rotation_size(layer: str, entry: Mapping[str, Any]) -> int:
    """Columns that were rotated together (ConvRot); 0 = none were. Raises CheckpointError for a size that no rotation has."""
    if (
        "convrot" not in str(entry["format"])
        and entry["format"] != "asym_w4a8_int8"
        and not entry.get("convrot")
    ):
        return 0
    size = _size(layer, entry, "convrot_groupsize", 256)
    if size.bit_count() != 1 or size.bit_length() % 2 == 0:
        raise CheckpointError(f"{layer} is rotated in groups of {size}, a power of 4 is needed: {OTHER_FILE}")
    return size


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _in_blocks(scale: Tensor, weight: Tensor) -> bool:
    """Whether a matrix of scales has one for each block of a weight, in blocks of a power of 2."""
    if scale.ndim != 2 or 0 in scale.shape:
        return False
    sizes = [-(-size // blocks) for size, blocks in zip(weight.shape, scale.shape, strict=True)]
    counts = tuple(-(-size // block) for size, block in zip(weight.shape, sizes, strict=True))
    return counts == tuple(scale.shape) and all(size.bit_count() == 1 for size in sizes)


def _times_scales(weight: Tensor, scale: Tensor) -> Tensor:
    """fp8 weights times the scale of their row or block, in bfloat16."""
    for axis in (0, 1):
        size = -(-weight.shape[axis] // scale.shape[axis])
        scale = scale.repeat_interleave(size, axis).narrow(axis, 0, weight.shape[axis])
    return (weight.float() * scale.float()).bfloat16()


# Layers -------------------------------------------------------------------------------------------


def quantized_layers(names: Iterable[str]) -> list[str]:
    """The layers that have a mark, without ".comfy_quant"."""
    return [name.removesuffix(f".{MARK}") for name in names if name.endswith(f".{MARK}")]


def entry_of(layer: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the mark of a quantised layer says: its format, and numbers of the format. Raises CheckpointError if it is damaged."""
    try:
        entry = json.loads(bytes(tensors[f"{layer}.{MARK}"].tolist()))
        params = entry.get("params", {})
        return (params if isinstance(params, dict) else {}) | entry
    except (ValueError, TypeError, AttributeError, NotImplementedError, RecursionError) as error:
        raise CheckpointError(f"the mark of {layer} cannot be read ({error}): download it again") from error


def formats_of(tensors: Mapping[str, Tensor]) -> set[str]:
    """The formats of the quantised layers."""
    return {entry_of(layer, tensors)["format"] for layer in quantized_layers(tensors)}


def drop_scales(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without marks and scales; quantised weights stay as they are stored."""
    parts = {
        f"{layer}.{part}"
        for layer in quantized_layers(tensors)
        for part in FORMATS[entry_of(layer, tensors)["format"]].parts
    }
    return {name: value for name, value in tensors.items() if name not in parts}


def stored_shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shapes of all weights as numbers, not as they are packed. Rows and columns that fill up a weight are counted."""
    shapes = {name: tuple(value.shape) for name, value in drop_scales(tensors).items()}
    for layer in quantized_layers(tensors):
        rows, columns = shapes[f"{layer}.weight"]
        shapes[f"{layer}.weight"] = rows, columns * FORMATS[entry_of(layer, tensors)["format"]].packed
    return shapes


def filled_up(
    shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]
) -> dict[str, tuple[int, ...]]:
    """The `shapes` of a model's weights as they are stored in the formats that its layers have in `tensors`."""
    filled = dict(shapes)
    for layer in quantized_layers(tensors):
        name, align = f"{layer}.weight", FORMATS[entry_of(layer, tensors)["format"]].align
        if name in filled:
            filled[name] = tuple(_up(size, align) for size in filled[name])
    return filled


# Numbers ------------------------------------------------------------------------------------------


def dequantize(
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    device: torch.device | str,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """The weights in `dtype` on `device`, without marks and scales. A tensor that already has the type and device is not copied.

    `shapes`: of the weights, without the rows and columns that fill them up. Raises CheckpointError for formats that need the
    package comfy-kitchen, if it is not installed.
    """
    layers = set(quantized_layers(tensors))

    def full(name: str, value: Tensor) -> Tensor:
        layer, _, last = name.rpartition(".")
        if last != "weight" or layer not in layers:
            return value.to(device, dtype)
        entry, (rows, columns) = entry_of(layer, tensors), shapes[name]
        keys = {part: f"{layer}.{part}" for part in FORMATS[entry["format"]].parts}
        parts = {part: tensors[key].to(device) for part, key in keys.items() if key in tensors}
        numbers = _numbers(layer, value.to(device), parts, entry)[:rows, :columns]
        # the layer's inputs are multiplied with it; its columns may be instead
        smoothing = parts.get("pre_quant_scale")
        return (numbers if smoothing is None else numbers * smoothing).to(dtype)

    return {name: full(name, value) for name, value in drop_scales(tensors).items()}


def _numbers(layer: str, stored: Tensor, parts: Mapping[str, Tensor], entry: Mapping[str, Any]) -> Tensor:
    """The numbers of a weight in float32, with the rows and columns that fill it up."""
    kind, found, rotation = entry["format"], FORMATS[entry["format"]], _rotation_size(layer, entry)
    if not found.layout and not rotation:
        return stored.float() * parts["weight_scale"]
    try:
        from comfy_kitchen import tensor as kitchen  # noqa: PLC0415  (optional, and large)
    except ImportError as error:
        raise CheckpointError(
            f"weights of the format {kind}{' with ConvRot' if rotation else ''} are read by the package comfy-kitchen, which "
            f'cannot be imported ({error}): pip install "unifusion[quantized]", or load the file in ComfyUI, or {OTHER_FILE}'
        ) from error
    settings: dict[str, Any] = {
        "orig_dtype": torch.float32,
        "orig_shape": (stored.shape[0], stored.shape[1] * found.packed),
        "scale": parts[found.needed[0]],
    }
    if rotation:
        settings["convrot_groupsize"] = rotation
    match kind:
        case "mxfp8":
            settings["scale"] = parts["weight_scale"].view(torch.float8_e8m0fnu)
        case "nvfp4":
            settings["scale"] = parts["weight_scale_2"]
            settings["block_scale"] = parts["weight_scale"].view(torch.float8_e4m3fn)
        case "int8_tensorwise":
            settings["convrot"] = True
        case "asym_w4a8_int8":
            settings["s_channel"] = parts["weight_s_channel"]
            settings["codebook"] = parts.get("weight_codebook")
            settings["group_size"] = _size(layer, entry, "group_size", found.block)
    layout = kitchen.get_layout_class(found.layout or "TensorWiseINT8Layout")
    return layout.dequantize(stored, layout.Params(**settings))
