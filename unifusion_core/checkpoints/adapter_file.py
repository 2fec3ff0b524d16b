"""Adapter files (LoRA, LoKr, LoHa, DoRA, full differences) in every layout that maps to a model's parameters with certainty.

A key is PREFIX LAYER SUFFIX. The prefix says who wrote the file, the layer has its name in Krea 2's own layout or in diffusers',
with dots or underscores, and the suffix is the part of a change:

    LoRA   alpha / rank * up @ down
    LoKr   alpha / rank * kron(w1, w2)
    LoHa   alpha / rank * (w1_a @ w1_b) * (w2_a @ w2_b)
    diff   the stored difference, of a weight or of any other parameter
    DoRA   m * (W + d) / |W| - W per output row, with d one of the changes above and the stored magnitude m

as ComfyUI computes it. peft stores a magnitude that is divided by |W + d| instead (`lora_magnitude_vector`). Queries, keys and
values that were trained as one layer (`qkv`) are three layers here: their rows are split.
"""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..models.unifusion import UniFusion
from .safetensors_file import read_tensors

logger = logging.getLogger(__name__)

Parts = dict[str, Tensor]
# of ComfyUI's key for a model's own weights
PREFIX = "diffusion_model."
# metadata entry with the fingerprint of the VLM whose states the adapted model reads
VLM_KEY = "unifusion_vlm"
# what stands before a layer's name, in files of different trainers; several may follow each other
_PREFIXES = ("base_model.model.", "model.", "diffusion_model.", "transformer.", "unet.", "module.")
_UNDERSCORED_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_")
_TEXT_ENCODER = re.compile(r"^(lora_te|text_encoder|text_model|te_|clip|base_model\.model\.model\.layers)")
# end of a key -> part of a change; the longest end that fits counts
_SUFFIXES = {
    **{f".{ends}.weight": "down" for ends in ("lora_A", "lora_A.default", "lora_down", "lora.down")},
    **{f".{ends}.weight": "up" for ends in ("lora_B", "lora_B.default", "lora_up", "lora.up")},
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".lora_A": "down",
    ".lora_B": "up",
    ".alpha": "alpha",
    ".dora_scale": "dora_scale",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".lora_magnitude_vector.default.weight": "magnitude",
    ".diff": "diff",
    ".diff_b": "diff_b",
    **{f".lokr_{name}": f"lokr_{name}" for name in ("w1", "w2", "w1_a", "w1_b", "w2_a", "w2_b")},
    **{f".hada_{name}": f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b")},
}
# part -> end of the key that ComfyUI reads
_FOR_COMFYUI = {
    "down": "lora_down.weight",
    "up": "lora_up.weight",
    **{part: part for part in _SUFFIXES.values() if part not in {"down", "up", "magnitude"}},
}
# Krea's names -> diffusers', inside a block and for the layers outside
_OF_DIFFUSERS = {
    "wq": "to_q",
    "wk": "to_k",
    "wv": "to_v",
    "attn.gate": "attn.to_gate",
    "wo": "to_out.0",
    "mlp": "ff",
    "blocks": "transformer_blocks",
    "txtfusion": "text_fusion",
    "first": "img_in",
    "tmlp.0": "time_embed.linear_1",
    "tmlp.2": "time_embed.linear_2",
    "tproj.1": "time_mod_proj",
    "txtmlp.1": "txt_in.linear_1",
    "txtmlp.3": "txt_in.linear_2",
    "last.linear": "final_layer.linear",
}
_FUSED = ("attn.qkv", "attn.to_qkv", "attn.qkv_proj")


# Reading ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Adapter:
    """What an adapter file changes in one model.

    name      file name, for messages
    changes   name of a parameter -> the parts of its change
    used      keys of the file that are in `changes`
    unused    keys of the file that are not, with the reason
    """

    name: str
    changes: Mapping[str, Parts]
    used: tuple[str, ...]
    unused: Mapping[str, str]

    @property
    def kinds(self) -> Counter[str]:
        """How many parameters are changed in which way."""
        return Counter(_kind(parts) for parts in self.changes.values())

    @property
    def ranks(self) -> Counter[int]:
        """How many parameters are changed with which rank."""
        ranks = (_rank(parts) for parts in self.changes.values())
        return Counter(rank for rank in ranks if rank is not None)

    @property
    def without_effect(self) -> list[str]:
        """The parameters whose change is zero, because one of its factors is, as before the first step of training."""
        return [name for name, parts in self.changes.items() if _is_zero(parts)]

    def summary(self) -> str:
        """One sentence with the counts of used and unused keys, and examples of the unused."""
        total = len(self.used) + len(self.unused)
        told = f"{self.name}: {len(self.used)} of {total} keys are used, in {len(self.changes)} layers"
        if self.unused:
            key, reason = next(iter(self.unused.items()))
            told += f"; {len(self.unused)} are not used, such as {key} ({reason})"
        zero = len(self.without_effect)
        if zero:
            told += f"; {zero} of the layers have no effect, because they are zero as before training"
        return told


def read_adapter(path: Path, shapes: Mapping[str, tuple[int, ...]], vlm: str = "") -> Adapter:
    """The changes of an adapter file for a model with parameters of these shapes. `vlm`: the fingerprint of the model's VLM, if
    the model insists on one.

    Raises CheckpointError as `read_tensors` does, for a file without any key that fits, and for one that was trained on a model
    of another VLM, as editions of the embedded model are: its sizes fit, and its images would be worse.
    """
    tensors, metadata = read_tensors(path)
    trained_on = metadata.get(VLM_KEY, vlm)
    if vlm and trained_on != vlm:
        raise CheckpointError(
            f"{path.name} was trained on a model that reads the VLM {trained_on[:8]}, and this model reads "
            f"{vlm[:8]}: use it with the model it was trained on, or train it anew on this one"
        )
    adapter = adapter_of(tensors, shapes, path.name)
    if not adapter.changes:
        key, reason = next(iter(adapter.unused.items()), ("none", "the file is empty"))
        raise CheckpointError(
            f"{path.name} changes nothing in this model; its first key is {key} ({reason}): choose an adapter that was trained "
            "on this model"
        )
    return adapter


def is_adapter(names: Iterable[str]) -> bool:
    """Whether a file with tensors of these names is an adapter."""
    return any(_part_of(name)[1] for name in names)


def adapter_of(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], name: str) -> Adapter:
    """The same from tensors, which may be on the meta device."""
    places = _places(shapes)
    found: dict[str, Parts] = defaultdict(dict)
    keys: dict[str, dict[str, str]] = defaultdict(dict)
    unused: dict[str, str] = {}
    for key, value in tensors.items():
        target, part = _part_of(key)
        place = next((places[alias] for alias in _without_prefixes(target) if alias in places), None)
        if part and place:
            # the same part may be there under two names, which would be two changes
            if part in found[place]:
                unused[key] = f"{keys[place][part]} is the same part"
                continue
            found[place][part], keys[place][part] = value, key
        elif _TEXT_ENCODER.match(key):
            unused[key] = "it belongs to a text encoder"
        else:
            unused[key] = "this model has no such layer" if part else "no known part of an adapter"
    changes: dict[str, Parts] = {}
    used: list[str] = []
    for place, parts in found.items():
        reason = _misfit(place, parts, shapes)
        if reason:
            unused |= dict.fromkeys(keys[place].values(), reason)
            continue
        used += keys[place].values()
        for target, split in _split(place, parts, shapes):
            changes[target] = split
    return Adapter(name, changes, tuple(used), unused)


def _part_of(key: str) -> tuple[str, str]:
    """(key without its suffix, part of a change); ("...", "") for a key that is no part."""
    suffix = max((each for each in _SUFFIXES if key.endswith(each)), key=len, default="")
    return key.removesuffix(suffix), _SUFFIXES.get(suffix, "")


def _without_prefixes(target: str) -> Iterator[str]:
    """The name with fewer and fewer prefixes."""
    yield target
    for prefix in (*_PREFIXES, *_UNDERSCORED_PREFIXES):
        if target.startswith(prefix):
            yield from _without_prefixes(target.removeprefix(prefix))


def _places(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Every name that a layer or parameter may have -> the parameter, or the first parameters' layer for fused ones."""
    places: dict[str, str] = {}

    def add(alias: str, place: str) -> None:
        for name in (alias, alias.replace(".", "_")):
            # two layers under one name would not be certain
            places[name] = place if places.get(name, place) == place else ""

    for parameter in shapes:
        layer = parameter.removesuffix(".weight")
        for name in {layer, _as_diffusers(layer), _as_diffusers(layer).replace("to_out.0", "to_out")}:
            add(name, parameter)
        if layer.endswith("attn.wq"):
            block = layer.removesuffix("attn.wq")
            for fused in _FUSED:
                add(f"{block}{fused}", f"{block}attn.qkv")
                add(f"{_as_diffusers(block)}{fused}", f"{block}attn.qkv")
    return {alias: place for alias, place in places.items() if place}


def _as_diffusers(layer: str) -> str:
    for own, theirs in _OF_DIFFUSERS.items():
        layer = re.sub(rf"(^|(?<=\.)){re.escape(own)}(?=\.|$)", theirs, layer)
    return layer


# One change ---------------------------------------------------------------------------------------


def _kind(parts: Parts) -> str:
    kinds = {"up": "LoRA", "hada_w1_a": "LoHa", "diff": "difference", "diff_b": "difference"}
    kind = next((name for part, name in kinds.items() if part in parts), "LoKr")
    return f"{kind} with DoRA" if {"dora_scale", "magnitude"} & parts.keys() else kind


def _rank(parts: Parts) -> int | None:
    of = ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")
    return next((len(parts[part]) for part in of if part in parts), None)


def _is_zero(parts: Parts) -> bool:
    starts_at_zero = ("up", "hada_w2_a", "hada_w1_a", "lokr_w1", "lokr_w2", "lokr_w2_b", "lokr_w2_a", "diff")
    factors = [parts[part] for part in starts_at_zero if part in parts]
    more = {"dora_scale", "magnitude", "diff_b"} & parts.keys()
    return not more and any(not factor.is_meta and not bool(factor.any()) for factor in factors)


def _outputs(place: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The parameters of a place with their rows; those of a fused layer in its order."""
    if place in shapes:
        return {place: shapes[place][0]}
    attention = place.removesuffix("qkv")
    return {name: shapes[name][0] for name in (f"{attention}{part}.weight" for part in ("wq", "wk", "wv"))}


def _misfit(place: str, parts: Parts, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Why the parts are no change of this place; empty if they are."""
    outputs = _outputs(place, shapes)
    needed = (sum(outputs.values()), *shapes[next(iter(outputs))][1:])
    try:
        given = _shape_of(parts)
    except (KeyError, IndexError):
        return "a part of its layer is missing"
    numbers = {"alpha": {1}, "magnitude": {needed[0]}, "dora_scale": {needed[0], needed[-1]}}
    if any(part in parts and parts[part].numel() not in sizes for part, sizes in numbers.items()):
        return "its alpha or its magnitude has another size than its layer"
    if given is not None and torch.Size(given).numel() != torch.Size(needed).numel():
        return f"its layer is {given}, this model's is {needed}"
    if "diff" in parts and (given != needed or parts.keys() & {"up", "hada_w1_a", "lokr_w1", "lokr_w1_a"}):
        return f"its difference is not that of a layer {needed}"
    if "diff_b" in parts and shapes.get(f"{place.removesuffix('.weight')}.bias") != tuple(
        parts["diff_b"].shape
    ):
        return "this model has no such bias"
    return ""


def _shape_of(parts: Parts) -> tuple[int, ...] | None:
    """The shape of a change; None for one of a bias alone. Raises KeyError if a part is missing."""
    if "up" in parts or "down" in parts:
        up, down = parts["up"], parts["down"]
        if up.shape[1] != down.shape[0]:
            raise KeyError("rank")
        return (up.shape[0], *down.shape[1:])
    if "hada_w1_a" in parts:
        factors = [parts[f"hada_{name}"] for name in ("w1_a", "w1_b", "w2_a", "w2_b")]
        return factors[0].shape[0], factors[1].shape[1]
    if any(part.startswith("lokr") for part in parts):
        sizes = []
        for name in ("lokr_w1", "lokr_w2"):
            whole = name in parts
            left, right = (parts[name], parts[name]) if whole else (parts[f"{name}_a"], parts[f"{name}_b"])
            sizes.append((left.shape[0], right.shape[1]))
        return sizes[0][0] * sizes[1][0], sizes[0][1] * sizes[1][1]
    if "diff" in parts:
        return tuple(parts["diff"].shape)
    if "diff_b" in parts:
        return None
    raise KeyError("change")


def _split(place: str, parts: Parts, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, Parts]]:
    """(parameter, its parts): one for a layer, three for a fused one."""
    outputs = _outputs(place, shapes)
    if len(outputs) == 1:
        yield place, parts
        return
    if _kind(parts).startswith("LoKr"):
        # rows of a Kronecker product are no Kronecker product
        magnitude = {part: parts[part] for part in ("dora_scale", "magnitude") if part in parts}
        parts = {"diff": _change(parts)} | magnitude
    by_row = ("up", "hada_w1_a", "hada_w2_a", "diff", "diff_b", "dora_scale", "magnitude")
    begin = 0
    for name, rows in outputs.items():
        yield (
            name,
            {
                part: value.narrow(0, begin, rows) if part in by_row and len(value) > 1 else value
                for part, value in parts.items()
            },
        )
        begin += rows


def _change(parts: Parts) -> Tensor:
    """The difference that the parts add to a weight, without DoRA, in float32."""
    parts = {part: value.float() for part, value in parts.items()}
    if "diff" in parts:
        return parts["diff"]
    rank, alpha = _rank(parts), parts.get("alpha")
    scale = 1.0 if alpha is None or rank is None else float(alpha) / rank
    if "up" in parts:
        return scale * (parts["up"].flatten(1) @ parts["down"].flatten(1))
    if "hada_w1_a" in parts:
        first, second = (parts[f"hada_{name}_a"] @ parts[f"hada_{name}_b"] for name in ("w1", "w2"))
        return scale * first * second

    def factor(name: str) -> Tensor:
        return parts[name] if name in parts else parts[f"{name}_a"] @ parts[f"{name}_b"]

    return scale * torch.kron(factor("lokr_w1"), factor("lokr_w2"))


def dora_scale_of(parts: Parts, weight: Tensor) -> Tensor:
    """ComfyUI's magnitude for peft's, for a layer with this weight: it is divided by |W| and not by |W + d|."""
    base = weight.float().cpu()
    merged = base + _change(parts).view_as(base)
    return (parts["magnitude"].float().flatten() * base.norm(dim=1) / merged.norm(dim=1))[:, None]


# Using --------------------------------------------------------------------------------------------


def tensors_for_comfyui(adapter: Adapter, weight_of: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """The changes as a file that ComfyUI applies whole. `weight_of` gives a parameter by name; it is asked for the layers with
    peft's DoRA alone."""
    tensors: dict[str, Tensor] = {}
    for name, parts in adapter.changes.items():
        layer = f"{PREFIX}{name.removesuffix('.weight')}"
        if "magnitude" in parts:
            parts = parts | {"dora_scale": dora_scale_of(parts, weight_of(name))}  # noqa: PLW2901
        tensors |= {f"{layer}.{_FOR_COMFYUI[part]}": v for part, v in parts.items() if part in _FOR_COMFYUI}
    return tensors


def with_strength(adapter: str | Path) -> tuple[Path, float]:
    """File and strength of an adapter that is written FILE or FILE:STRENGTH."""
    path, _, number = str(adapter).rpartition(":")
    if not Path(adapter).exists() and path and re.fullmatch(r"[-+]?\d*\.?\d+", number):
        return Path(path), float(number)
    return Path(adapter), 1.0


@torch.no_grad()
def merge_adapters(model: UniFusion, path: Path, strength: float = 1.0) -> int:
    """Adds the change of an adapter file to the weights. Returns the number of changed layers, and warns of keys that are not
    used.

    Raises CheckpointError as `read_adapter` does.
    """
    parameters: dict[str, Any] = dict(model.named_parameters())
    shapes = {name: tuple(value.shape) for name, value in parameters.items()}
    adapter = read_adapter(path, shapes, model.config.vlm.fingerprint)
    if adapter.unused or adapter.without_effect:
        logger.warning("%s", adapter.summary())
    for name, parts in adapter.changes.items():
        parameter = parameters[name]
        if parts.keys() - {"diff_b"}:
            weight = parameter.float()
            change = _with_magnitude(parts, weight.cpu(), _change(parts).view(weight.shape))
            parameter.copy_(weight + strength * change.to(weight.device))
        if "diff_b" in parts:
            bias = parameters[f"{name.removesuffix('.weight')}.bias"]
            bias.copy_(bias.float() + strength * parts["diff_b"].float().to(bias.device))
    return len(adapter.changes)


def _with_magnitude(parts: Parts, base: Tensor, change: Tensor) -> Tensor:
    """A change with DoRA's magnitude, if it has one."""
    if "magnitude" in parts:
        parts = parts | {"dora_scale": dora_scale_of(parts, base)}
    if "dora_scale" not in parts:
        return change
    scale, merged = parts["dora_scale"].float(), base + change
    if scale.shape[0] == base.shape[0]:
        return scale.view(-1, 1) / base.norm(dim=1, keepdim=True) * merged - base
    return scale.view(1, -1) / merged.norm(dim=0, keepdim=True) * merged - base
