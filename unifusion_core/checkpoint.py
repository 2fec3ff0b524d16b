"""Generator and autoencoder files: safetensors only, configuration as JSON, strict in both directions.

The JSON stands in the file's metadata and, because ComfyUI's ModelSave drops foreign metadata, also as the bytes of a
uint8 tensor. Krea 2's published files have none: their shapes tell it. A file whose numbers and tensors disagree is refused.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import CheckpointError, ConfigError
from .models.autoencoder import Autoencoder
from .models.layers import Build
from .models.unifusion import UniFusion, UniFusionConfig
from .presets import is_krea_2, krea_2_of
from .quantized import in_full, marked, without_parts

FORMAT = 1  # raised when old files can no longer be read as they are
CONFIG_KEY = "unifusion_config"  # metadata entry and tensor name alike
NUMBERS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The types of numbers by their names in safetensors files."""
PREFIXES = ("model.diffusion_model.", "diffusion_model.")  # ComfyUI writes the first
SUPPORTED = "supported are safetensors files of UniFusion, and of Krea 2 as one file (bf16, fp8) in its own or ComfyUI's layout"


def config_to_json(config: UniFusionConfig, training: dict[str, Any] | None = None) -> str:
    """The whole configuration with format version and training record."""
    return json.dumps({"format": FORMAT, "config": dataclasses.asdict(config), "training": training or {}})


def config_from_json(text: str) -> tuple[UniFusionConfig, dict[str, Any]]:
    """Configuration and training record. Unknown or missing fields are refused by name (CheckpointError)."""
    try:
        data = json.loads(text)
        version = data["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"the file's configuration is no UniFusion JSON ({error}); save or download it again"
        ) from error
    if version != FORMAT:
        raise CheckpointError(
            f"the file has format {version}, this version reads format {FORMAT}: update the pack"
        )
    try:
        return _build(UniFusionConfig, data["config"], "config"), data.get("training", {})
    except (ConfigError, KeyError, TypeError) as error:
        raise CheckpointError(f"the file's configuration does not fit together: {error}") from error


def _build(kind: Any, value: Any, where: str) -> Any:
    """A value of type `kind` from plain JSON; dataclasses by name, tuples from lists."""
    if dataclasses.is_dataclass(kind):
        fields = {f.name: f for f in dataclasses.fields(kind)}
        unknown = set(value) - set(fields)
        missing = {n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in value}
        if unknown or missing:
            raise TypeError(f"{where}: unknown {sorted(unknown)}, missing {sorted(missing)}")
        hints = typing.get_type_hints(kind)
        return kind(**{n: _build(hints[n], v, f"{where}.{n}") for n, v in value.items()})  # type: ignore[operator]
    if isinstance(kind, types.GenericAlias) and kind.__origin__ is tuple:
        inner = kind.__args__
        if len(inner) == 2 and inner[1] is Ellipsis:
            return tuple(_build(inner[0], v, where) for v in value)
        if len(value) != len(inner):
            raise TypeError(f"{where} has {value!r}, {len(inner)} values are needed")
        return tuple(_build(k, v, where) for k, v in zip(inner, value, strict=True))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, typing.cast(type, kind)):
        raise TypeError(f"{where} is {value!r}, a value of type {kind.__name__} is needed")
    return value


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a safetensors file. Tensors are mapped from the file, not read: memory that is counted
    as used grows only with what is copied from them.

    Raises CheckpointError if the file is missing, damaged, cut short, or something else under that name (pickle, zip).
    """
    return _read(path, "pt", lambda file, key: file.get_tensor(key))


def read_layout(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """As `read_tensors`, but without the numbers (on the meta device), however large the file is; rows of bytes, which hold
    configurations, have theirs."""
    return _read(path, "numpy", _without_numbers)


def _without_numbers(file: Any, key: str) -> Tensor:
    part = file.get_slice(key)
    shape, name = part.get_shape(), part.get_dtype()
    if name not in NUMBERS:
        raise ValueError(f"{key} has numbers of type {name}")
    if name == "U8" and len(shape) == 1:
        return torch.from_numpy(file.get_tensor(key))
    return torch.empty(shape, dtype=NUMBERS[name], device="meta")


def _read(
    path: Path, framework: str, tensor_of: Callable[[Any, str], Tensor]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    if path.is_dir():
        raise CheckpointError(
            f"{path} is a folder, such as diffusers saves, and one file is needed: {SUPPORTED}"
        )
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}: check the name, or put the file there")
    try:
        with safe_open(str(path), framework) as file:
            return {k: tensor_of(file, k) for k in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (RuntimeError, MemoryError) as error:  # torch's, when it maps the file; safetensors' own
        raise CheckpointError(
            f"{path.name} needs more memory than the system grants ({error}): take a smaller file, or end other programs"
        ) from error
    except (SafetensorError, OSError, ValueError) as error:
        with path.open("rb") as file:
            start = file.read(4)  # only now: a whole safetensors file may begin with any of these, too
        if start[:2] == b"PK" or start[:1] == b"\x80":
            raise CheckpointError(
                f"{path.name} is a PyTorch pickle, which may run code: only safetensors files are opened"
            ) from error
        if start == b"GGUF":
            raise CheckpointError(
                f"{path.name} is a GGUF file, which is not read: use the safetensors file of the same model"
            ) from error
        raise CheckpointError(
            f"{path.name} is damaged, cut short or no safetensors file ({error}): download or save it again"
        ) from error


def read_config(path: Path) -> UniFusionConfig:
    """What a generator file is, without its weights. Raises CheckpointError as `load_generator` does."""
    return split_generator_tensors(*read_layout(path), path.name)[1]


def split_generator_tensors(
    tensors: dict[str, Tensor], metadata: dict[str, str], name: str
) -> tuple[dict[str, Tensor], UniFusionConfig, dict[str, Any]]:
    """Weights under their own names, configuration and training record of a generator file. Layers in 8 bits keep their
    scales beside them, in ComfyUI's present layout (quantized.py).

    Raises CheckpointError for a file of another kind.
    """
    tensors = dict(tensors)
    stored = [k for k in tensors if k.endswith(CONFIG_KEY)]
    text = metadata.get(CONFIG_KEY)
    for key in stored:
        if text is None and tensors[key].is_meta:
            raise CheckpointError(
                f"{name}: its configuration was converted to {tensors[key].dtype}: save it again with {key} as it was"
            )
        text = text or bytes(tensors[key].to(torch.uint8).tolist()).decode("utf-8", "replace")
        del tensors[key]
    prefix = next((p for p in PREFIXES if any(k.startswith(p) for k in tensors)), "")
    if prefix:
        tensors = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    if text is None and not is_krea_2(tensors):
        raise CheckpointError(_of_another_kind(tensors, name))
    try:
        tensors = marked(tensors, metadata, prefix)
        if text is None:
            shapes = {k: tuple(v.shape) for k, v in tensors.items()}
            config, training = krea_2_of(shapes), {}
        else:
            config, training = config_from_json(text)
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from error
    check_keys(config, without_parts(tensors), name, "its configuration" if text else "Krea 2's layout")
    return tensors, config, training


def _of_another_kind(tensors: dict[str, Tensor], name: str) -> str:
    if any(k.startswith(("text_fusion.", "transformer_blocks.")) for k in tensors):
        return f"{name} has the names of diffusers' layout, part of a diffusers folder: {SUPPORTED}"
    if any(k.startswith("blocks.") for k in tensors) and re.search(r"-\d+-of-\d+\.", name):
        return f"{name} is one part of a model in several files: {SUPPORTED}"
    return (
        f"{name} holds no UniFusion configuration and is no Krea 2 file: it is another kind of model; choose a UniFusion "
        "generator file, or one of Krea 2"
    )


def check_keys(config: UniFusionConfig, tensors: dict[str, Tensor], name: str, layout: str) -> None:
    """Every weight there, with the right shape, and nothing else."""
    expected = {
        k: tuple(v.shape) for k, v in build_unifusion(config, Build(device="meta")).state_dict().items()
    }
    given = {k: tuple(v.shape) for k, v in tensors.items()}
    missing, unknown = sorted(set(expected) - set(given)), sorted(set(given) - set(expected))
    wrong = [k for k in expected if k in given and expected[k] != given[k]]
    if missing or unknown or wrong:
        shapes = [f"{k} is {given[k]}, {expected[k]} is needed" for k in wrong[:3]]
        raise CheckpointError(
            f"{name} does not fit {layout}: {len(missing)} weights missing {missing[:3]}, "
            f"{len(unknown)} unknown {unknown[:3]}, {len(wrong)} of another shape {shapes}; download or save it again"
        )


def build_unifusion(config: UniFusionConfig, build: Build | None = None) -> UniFusion:
    """The module for a configuration, weights not set."""
    return UniFusion(config, build)


def save_generator(
    model: UniFusion, path: Path, training: dict[str, Any] | None = None, dtype: torch.dtype = torch.float16
) -> None:
    """One file: weights in `dtype`, configuration twice (see above), what made them."""
    text = config_to_json(model.config, training)
    tensors = {k: v.detach().to("cpu", dtype).contiguous() for k, v in model.state_dict().items()}
    tensors[CONFIG_KEY] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(path), {"format": "pt", CONFIG_KEY: text})


def load_generator(
    path: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[UniFusion, dict[str, Any]]:
    """The generator of a file, ready to draw, and its training record. Weights that have `dtype` already stay mapped from
    the file on a CPU. Raises CheckpointError."""
    tensors, config, training = split_generator_tensors(*read_tensors(path), path.name)
    model = build_unifusion(config, Build(device="meta"))
    model.load_state_dict(in_full(tensors, device, dtype), strict=True, assign=True)
    return model.eval().requires_grad_(False), training


def load_autoencoder(path: Path, *, device: torch.device | str = "cpu") -> Autoencoder:
    """A VAE in the TAESD layout. Raises CheckpointError for anything else."""
    tensors, _ = read_tensors(path)
    first = tensors.get("taesd_decoder.1.weight")
    if first is None or first.ndim != 4:
        raise CheckpointError(
            f"{path.name} is no autoencoder in the TAESD layout (taesd_decoder.1.weight is missing): choose such a VAE"
        )
    model = Autoencoder(first.shape[1])
    expected = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    given = {k: tuple(v.shape) for k, v in tensors.items()}
    if expected != given:
        odd = sorted(k for k in expected.keys() | given.keys() if expected.get(k) != given.get(k))
        raise CheckpointError(
            f"{path.name} does not fit the TAESD layout, for example at {odd[:3]}: choose another VAE"
        )
    model.load_state_dict({k: v.float() for k, v in tensors.items()})
    return model.to(device).eval().requires_grad_(False)
