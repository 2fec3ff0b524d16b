"""Generator files: safetensors only, configuration as JSON, strict in both directions.

The JSON stands in the file's metadata and, because ComfyUI's ModelSave drops foreign metadata, also as the bytes of a uint8
tensor. Files without it are recognised by the zoo (Krea 2). A file whose numbers and tensors disagree is refused.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from .. import zoo
from ..errors import CheckpointError, ConfigError
from ..models.layers import LayerFactory
from ..models.unifusion import UniFusion, UniFusionConfig
from ..zoo.spec import GeneratorSpec
from .quantized import dequantize, drop_scales, normalize_layout
from .safetensors_file import SafetensorsFile

# raised when a field is renamed or its meaning changes; files of earlier formats are still read
FORMAT = 2
# metadata entry and tensor name alike
CONFIG_KEY = "unifusion_config"
# in front of the names in some files; ComfyUI writes the first
PREFIXES = ("model.diffusion_model.", "diffusion_model.")
SUPPORTED = "supported are safetensors files of UniFusion, and of Krea 2 as one file (bf16, fp8) in its own or ComfyUI's layout"
# generators of so many parameters compute in 16 bits by default; their files have no more
LARGE = 1_000_000_000
# field names and values of format 1 -> those of format 2
_RENAMED = {
    "kept_tokens": "token_selection",
    "picture_prefix": "image_prefix",
    "picture_token": "image_token",
    "picture_suffix": "image_suffix",
    "picture_positions": "image_positions",
}
_RENAMED_VALUES = {"token_selection": {"decoded": "rewrite", "after_prefix": "prompt"}}


# Reading ------------------------------------------------------------------------------------------


class GeneratorContent:
    """What the tensors of a generator file are, whoever read them: strict, before any weight is touched.

    spec, config   which generator it is, and its numbers
    training       the record of how it was made
    tensors        weights under their own names; quantised layers keep their scales beside them, in ComfyUI's present layout
    module         the module without weights (on the meta device)

    Raises CheckpointError for a file of another kind, or whose tensors do not fit its configuration.
    """

    def __init__(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], name: str) -> None:
        self.name = name
        own, text, prefix = _split(tensors, metadata, name)
        self.configured = text is not None
        self.training: dict[str, Any] = {}
        try:
            if text is None:
                found = zoo.identify({k: tuple(v.shape) for k, v in own.items()})
            else:
                config, self.training, generator = config_from_json(text)
                found = zoo.spec_for(config, generator), config
            if found is not None:
                self.spec, self.config = found
                self.tensors = normalize_layout(own, metadata, prefix)
        except CheckpointError as error:
            raise CheckpointError(f"{name}: {error}") from error
        if found is None:
            raise CheckpointError(_of_another_kind(own, name))
        self.module = UniFusion(self.config, LayerFactory(device="meta"))
        self._check_keys("its configuration" if text else f"the layout of {self.spec.name}")

    @property
    def num_parameters(self) -> int:
        """Of the whole generator."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    def _check_keys(self, layout: str) -> None:
        """Every weight is there, with the right shape, and nothing else."""
        expected = {k: tuple(v.shape) for k, v in self.module.state_dict().items()}
        given = {k: tuple(v.shape) for k, v in drop_scales(self.tensors).items()}
        missing, unknown = sorted(set(expected) - set(given)), sorted(set(given) - set(expected))
        wrong = [k for k in expected if k in given and expected[k] != given[k]]
        if missing or unknown or wrong:
            shapes = [f"{k} is {given[k]}, {expected[k]} is needed" for k in wrong[:3]]
            raise CheckpointError(
                f"{self.name} does not fit {layout}: {len(missing)} weights missing {missing[:3]}, "
                f"{len(unknown)} unknown {unknown[:3]}, {len(wrong)} of another shape {shapes}; download or save it again"
            )


class GeneratorFile(GeneratorContent):
    """A generator file, opened once: what it is, then its weights.

    Until `load` only names, shapes and the configuration are read, so a file of many GB is refused at once. Raises
    CheckpointError as `SafetensorsFile` and `GeneratorContent` do.
    """

    def __init__(self, path: str | Path) -> None:
        """`path`: "tiny" for the embedded generator."""
        self.path = zoo.path_of(path, "generator")
        self._file = SafetensorsFile(self.path, wanted=SUPPORTED)
        super().__init__(self._file.layout, self._file.metadata, self.path.name)

    @property
    def metadata(self) -> dict[str, str]:
        """The file's own text entries."""
        return self._file.metadata

    @property
    def default_dtype(self) -> torch.dtype:
        """What the generator computes in if the user does not choose: 16 bits for large ones, else 32."""
        return torch.bfloat16 if self.num_parameters >= LARGE else torch.float32

    def load(self, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> UniFusion:
        """The generator with its weights, ready to draw. Weights that have `dtype` already stay mapped from the file on a CPU.

        The module that was checked becomes the generator, so a file is loaded once. Raises CheckpointError if the system
        grants no memory."""
        own, _, prefix = _split(self._file.tensors(), self._file.metadata, self.name)
        weights = normalize_layout(own, self._file.metadata, prefix)
        self.module.load_state_dict(dequantize(weights, device, dtype), strict=True, assign=True)
        return self.module.eval().requires_grad_(False)


def load_generator(
    path: str | Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[UniFusion, dict[str, Any]]:
    """The generator of a file, ready to draw, and its training record. Raises CheckpointError."""
    file = GeneratorFile(path)
    return file.load(dtype=dtype, device=device), file.training


def _split(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], name: str
) -> tuple[dict[str, Tensor], str | None, str]:
    """Weights without the prefix that some files put in front of their names, the configuration's JSON if there is one, and
    that prefix."""
    own = dict(tensors)
    text = metadata.get(CONFIG_KEY)
    for key in [k for k in own if k.endswith(CONFIG_KEY)]:
        stored = own.pop(key)
        if text is None and stored.is_meta:
            raise CheckpointError(
                f"{name}: its configuration was converted to {stored.dtype}: save it again with {key} as it was"
            )
        text = text or bytes(stored.to(torch.uint8).tolist()).decode("utf-8", "replace")
    prefix = next((p for p in PREFIXES if any(k.startswith(p) for k in own)), "")
    if prefix:
        own = {k.removeprefix(prefix): v for k, v in own.items() if k.startswith(prefix)}
    return own, text, prefix


def _of_another_kind(tensors: Mapping[str, Tensor], name: str) -> str:
    if any(k.startswith(("text_fusion.", "transformer_blocks.")) for k in tensors):
        return f"{name} has the names of diffusers' layout, part of a diffusers folder: {SUPPORTED}"
    if any(k.startswith("blocks.") for k in tensors) and re.search(r"-\d+-of-\d+\.", name):
        return f"{name} is one part of a model in several files: {SUPPORTED}"
    return (
        f"{name} holds no UniFusion configuration and is no Krea 2 file: it is another kind of model; choose a UniFusion "
        f"generator file, or one of Krea 2{zoo.failures_told()}"
    )


# Writing ------------------------------------------------------------------------------------------


def save_generator(
    model: UniFusion,
    path: Path,
    training: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float16,
    spec: GeneratorSpec | None = None,
) -> None:
    """One file: weights in `dtype`, the configuration twice (see above), and the record of how it was made. `spec`: the
    generator whose defaults it is drawn with; None = the first of the zoo that draws the same latents."""
    text = config_to_json(model.config, training, spec)
    tensors = {k: v.detach().to("cpu", dtype).contiguous() for k, v in model.state_dict().items()}
    tensors[CONFIG_KEY] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(path), {"format": "pt", CONFIG_KEY: text})


# Configuration ------------------------------------------------------------------------------------


def config_to_json(
    config: UniFusionConfig, training: dict[str, Any] | None = None, spec: GeneratorSpec | None = None
) -> str:
    """The whole configuration with format version, name of the generator and training record."""
    content = {
        "format": FORMAT,
        "generator": spec.name if spec else None,
        "config": dataclasses.asdict(config),
        "training": training or {},
    }
    return json.dumps(content)


def config_from_json(text: str) -> tuple[UniFusionConfig, dict[str, Any], str | None]:
    """Configuration, training record and name of the generator. Unknown or missing fields are refused by name
    (CheckpointError); those of format 1 are read under their present names."""
    try:
        data = json.loads(text)
        version = data["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"the file's configuration is no UniFusion JSON ({error}); save or download it again"
        ) from error
    if version not in range(1, FORMAT + 1):
        raise CheckpointError(
            f"the file has format {version}, this version reads formats 1 to {FORMAT}: update the pack"
        )
    try:
        config = _from_format_1(data["config"]) if version == 1 else data["config"]
        return _build(UniFusionConfig, config, "config"), data.get("training", {}), data.get("generator")
    except (ConfigError, KeyError, TypeError) as error:
        raise CheckpointError(f"the file's configuration does not fit together: {error}") from error


def _from_format_1(value: Any) -> Any:
    """A configuration with its fields and values under their present names."""
    if not isinstance(value, dict):
        return value
    renamed = {_RENAMED.get(name, name): _from_format_1(inner) for name, inner in value.items()}
    for name, values in _RENAMED_VALUES.items():
        if isinstance(renamed.get(name), str):
            renamed[name] = values.get(renamed[name], renamed[name])
    return renamed


def _build(kind: Any, value: Any, where: str) -> Any:
    """A value of type `kind` from plain JSON; dataclasses by name, tuples from lists."""
    if dataclasses.is_dataclass(kind):
        fields = {f.name: f for f in dataclasses.fields(kind)}
        unknown = set(value) - set(fields)
        missing = {n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in value}
        if unknown or missing:
            raise TypeError(f"{where}: unknown {sorted(unknown)}, missing {sorted(missing)}")
        hints = typing.get_type_hints(kind)
        make = typing.cast(typing.Callable[..., Any], kind)
        return make(**{n: _build(hints[n], v, f"{where}.{n}") for n, v in value.items()})
    if isinstance(kind, types.GenericAlias) and kind.__origin__ is tuple:
        inner = kind.__args__
        if len(inner) == 2 and inner[1] is Ellipsis:
            return tuple(_build(inner[0], v, where) for v in value)
        if len(value) != len(inner):
            raise TypeError(f"{where} has {value!r}, {len(inner)} values are needed")
        return tuple(_build(k, v, where) for k, v in zip(inner, value, strict=True))
    if typing.get_origin(kind) is typing.Literal:
        # the dataclass itself says which values it knows
        kind = str
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, typing.cast(type, kind)):
        raise TypeError(f"{where} is {value!r}, a value of type {kind.__name__} is needed")
    return value
