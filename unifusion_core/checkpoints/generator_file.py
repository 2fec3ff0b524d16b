"""Generator files: one safetensors file with the weights and, as JSON, the configuration.

The JSON is stored twice: in the file's metadata, and as the bytes of a uint8 tensor, because ComfyUI's ModelSave drops foreign
metadata. Files without a configuration are recognised by the zoo (Krea 2). A file is refused unless it has exactly the weights
of its configuration.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import types
import typing
from collections.abc import Iterable, Mapping
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
from .quantized import dequantize, filled_up, normalize_layout, stored_shapes
from .safetensors_file import SafetensorsFile

logger = logging.getLogger(__name__)

# incremented when a field is renamed or changes its meaning; files of earlier formats are still read
FORMAT = 2
# name of the metadata entry and of the tensor
CONFIG_KEY = "unifusion_config"
# some files have one of these in front of every name; ComfyUI writes the first
PREFIXES = ("model.diffusion_model.", "diffusion_model.")
SUPPORTED = "supported are safetensors files of UniFusion, and of Krea 2 as one file (bf16, fp8) in its own or ComfyUI's layout"
# From so many parameters on, the default is bfloat16, because files of such models hold 16 bits per weight at most.
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
    """The content of a generator file, checked by names and shapes before any weight is read.

    name           file name, for error messages
    spec, config   the generator in the zoo, and the file's own configuration
    configured     whether the file has a configuration; False = recognised by the zoo
    training       training record; empty if the file has none
    tensors        weights by the parameter names of `UniFusion`, and the scales of quantised layers in ComfyUI's current layout
    widened        weights in fp8 whose scales ComfyUI's layers cannot hold; they are in bfloat16 in `tensors`
    module         the generator on the meta device, without weights

    Raises CheckpointError for another kind of file, or for tensors that do not fit the configuration.
    """

    def __init__(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], name: str) -> None:
        """`tensors` may be on the meta device, except for uint8 vectors (configuration, marks of quantised layers)."""
        self.name = name
        own, text, prefix = _split(tensors, metadata, name)
        self.configured = text is not None
        self.training: dict[str, Any] = {}
        try:
            weights = normalize_layout(own, metadata, prefix)
            if text is None:
                found = zoo.identify(stored_shapes(weights))
            else:
                config, self.training, generator = config_from_json(text)
                found = _with_own_rewriting(zoo.spec_for(config, generator), self.training), config
            if found is not None:
                self.spec, self.config = found
                self.tensors = self._used(weights)
                self.widened = [k for k, v in self.tensors.items() if k in own and v.dtype != own[k].dtype]
        except CheckpointError as error:
            raise CheckpointError(f"{name}: {error}") from error
        if found is None:
            raise CheckpointError(_of_another_kind(own, name))
        if text is None and self.config != self.spec.config:
            logger.warning(
                "%s has no configuration, and its weights have the names of %s in other sizes: it is read as one of these sizes. "
                "If it is another generator, or a VLM does not fit it, its configuration was lost: use the file as it was first "
                "saved.",
                name,
                self.spec.name,
            )
        self.module = UniFusion(self.config, LayerFactory(device="meta"))
        self._check_keys("its configuration" if text else f"the layout of {self.spec.name}")

    @property
    def num_parameters(self) -> int:
        """The number of parameters of LAP, refiner and DiT together."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(value.shape) for name, value in self.module.state_dict().items()}

    def _used(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights without those that files of this generator have and that nothing reads."""
        return {
            name: value for name, value in weights.items() if name.rpartition(".")[0] not in self.spec.unused
        }

    def _check_keys(self, layout: str) -> None:
        """Raises CheckpointError unless names and shapes are exactly those of the module. `layout` names it in the error."""
        expected, given = filled_up(self._shapes(), self.tensors), stored_shapes(self.tensors)
        missing, unknown = sorted(set(expected) - set(given)), sorted(set(given) - set(expected))
        wrong = [k for k in expected if k in given and expected[k] != given[k]]
        if missing or unknown or wrong:
            shapes = [f"{k} is {given[k]}, {expected[k]} is needed" for k in wrong[:3]]
            raise CheckpointError(
                f"{self.name} does not fit {layout}: {len(missing)} weights missing {missing[:3]}, "
                f"{len(unknown)} unknown {unknown[:3]}, {len(wrong)} of another shape {shapes}; download or save it again"
            )


class GeneratorFile(GeneratorContent):
    """A generator file, opened once.

    Until `load`, only names, shapes and the configuration are read, so that a file of many GB is refused at once. Raises
    CheckpointError as `SafetensorsFile` and `GeneratorContent` do.
    """

    def __init__(self, path: str | Path) -> None:
        """`path`: a file, or "tiny" for the embedded generator."""
        self.path = zoo.path_of(path, "generator")
        self._file = SafetensorsFile(self.path, wanted=SUPPORTED)
        super().__init__(self._file.layout, self._file.metadata, self.path.name)

    @property
    def metadata(self) -> dict[str, str]:
        """The file's metadata: name -> text."""
        return self._file.metadata

    @property
    def default_dtype(self) -> torch.dtype:
        """The type of the weights if the user does not choose: bfloat16 from a billion parameters on, else float32."""
        return torch.bfloat16 if self.num_parameters >= LARGE else torch.float32

    def load(self, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> UniFusion:
        """The generator with its weights in `dtype` on `device`, in eval mode and without gradients.

        On the CPU, weights that have `dtype` already stay mapped from the file. Call `load` once per object: it fills `module`,
        so a second call would replace the weights of the first result.

        Raises CheckpointError if the file cannot be mapped for lack of memory, or has a format that needs a package which is
        not installed.
        """
        own, _, prefix = _split(self._file.tensors(), self._file.metadata, self.name)
        weights = self._used(normalize_layout(own, self._file.metadata, prefix))
        numbers = dequantize(weights, self._shapes(), device, dtype)
        self.module.load_state_dict(numbers, strict=True, assign=True)
        return self.module.eval().requires_grad_(False)


def has_generator(names: Iterable[str]) -> bool:
    """Whether a file with tensors of these names contains a generator of UniFusion's family, maybe beside other models."""
    return any(name.endswith((CONFIG_KEY, "txtfusion.projector.weight")) for name in names)


def load_generator(
    path: str | Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[UniFusion, dict[str, Any]]:
    """The generator of a file and its training record. Arguments and errors as in `GeneratorFile`."""
    file = GeneratorFile(path)
    return file.load(dtype=dtype, device=device), file.training


def _with_own_rewriting(spec: GeneratorSpec, training: Mapping[str, Any]) -> GeneratorSpec:
    """The spec with what the training record says about rewriting, where it says so."""
    share = training.get("rewritten")
    if share is None:
        return spec
    return dataclasses.replace(spec, rewrites=bool(share), trained_on_rewrites=bool(share))


def _split(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], name: str
) -> tuple[dict[str, Tensor], str | None, str]:
    """(weights without the prefix of their names, the configuration's JSON or None, the prefix)."""
    own = dict(tensors)
    text = metadata.get(CONFIG_KEY)
    for key in [k for k in own if k.endswith(CONFIG_KEY)]:
        stored = own.pop(key)
        if text is None and stored.is_meta:
            raise CheckpointError(
                f"{name}: its configuration was converted to {stored.dtype}: save it again without converting {key}"
            )
        text = text or bytes(stored.to(torch.uint8).tolist()).decode("utf-8", "replace")
    prefix = next((p for p in PREFIXES if any(k.startswith(p) for k in own)), "")
    if prefix:
        own = {k.removeprefix(prefix): v for k, v in own.items() if k.startswith(prefix)}
    return own, text, prefix


def _of_another_kind(tensors: Mapping[str, Tensor], name: str) -> str:
    """Error message for a file that has no configuration and is not recognised."""
    if any(k.startswith(("text_fusion.", "transformer_blocks.")) for k in tensors):
        return f"{name} has the weight names of diffusers' layout, as part of a diffusers folder: {SUPPORTED}"
    if any(k.startswith("blocks.") for k in tensors) and re.search(r"-\d+-of-\d+\.", name):
        return f"{name} is one part of a model that is split into several files: {SUPPORTED}"
    return (
        f"{name} has no UniFusion configuration and is not a Krea 2 file: it is another kind of model; choose a UniFusion "
        f"generator file, or one of Krea 2{zoo.failures_told()}"
    )


# Writing ------------------------------------------------------------------------------------------


def save_generator(
    model: UniFusion,
    path: Path,
    training: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float16,
    spec: GeneratorSpec | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes one file: weights in `dtype`, the configuration and the training record.

    training   JSON values; `unifusion inspect` prints them
    spec       the generator whose defaults apply to the file; None = the first in the zoo with the same latent format
    weights    by the model's names; None = those that the model has
    """
    text = config_to_json(model.config, training, spec)
    tensors = {
        k: v.detach().to("cpu", dtype).contiguous() for k, v in (weights or model.state_dict()).items()
    }
    tensors[CONFIG_KEY] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(path), {"format": "pt", CONFIG_KEY: text})


# Configuration ------------------------------------------------------------------------------------


def config_to_json(
    config: UniFusionConfig, training: dict[str, Any] | None = None, spec: GeneratorSpec | None = None
) -> str:
    """The JSON of a file: format, name of the generator, configuration and training record."""
    content = {
        "format": FORMAT,
        "generator": spec.name if spec else None,
        "config": dataclasses.asdict(config),
        "training": training or {},
    }
    return json.dumps(content)


def config_from_json(text: str) -> tuple[UniFusionConfig, dict[str, Any], str | None]:
    """(configuration, training record, name of the generator or None). Fields of format 1 are renamed.

    Raises CheckpointError for unknown or missing fields and for values of another type, with the name of the field; also for a
    later format, and for text that is not such JSON.
    """
    try:
        data = json.loads(text)
        version = data["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"the file's configuration is not UniFusion JSON ({error}); save or download it again"
        ) from error
    if version not in range(1, FORMAT + 1):
        raise CheckpointError(
            f"the file has format {version}, this version reads formats 1 to {FORMAT}: update the pack"
        )
    try:
        config = _from_format_1(data["config"]) if version == 1 else data["config"]
        return _build(UniFusionConfig, config, "config"), data.get("training", {}), data.get("generator")
    except (ConfigError, KeyError, TypeError) as error:
        raise CheckpointError(f"the file's configuration is inconsistent: {error}") from error


def _from_format_1(value: Any) -> Any:
    """A configuration of format 1 with the names and values of format 2."""
    if not isinstance(value, dict):
        return value
    renamed = {_RENAMED.get(name, name): _from_format_1(inner) for name, inner in value.items()}
    for name, values in _RENAMED_VALUES.items():
        if isinstance(renamed.get(name), str):
            renamed[name] = values.get(renamed[name], renamed[name])
    return renamed


def _build(kind: Any, value: Any, where: str) -> Any:
    """A value of type `kind` from plain JSON: dataclasses from objects, tuples from lists. `where`: its path, for errors."""
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
            raise TypeError(f"{where} is {value!r} and {len(inner)} values are needed")
        return tuple(_build(k, v, where) for k, v in zip(inner, value, strict=True))
    if typing.get_origin(kind) is typing.Literal:
        # the dataclass checks the value itself and lists the choices
        kind = str
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, typing.cast(type, kind)):
        raise TypeError(f"{where} is {value!r} and a value of type {kind.__name__} is needed")
    return value
