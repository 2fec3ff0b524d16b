"""Adapter files on a MODEL: the core maps their keys, ComfyUI applies the changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.sd
import comfy.utils
import folder_paths
from torch import Tensor

from ...unifusion_core.checkpoints.adapter_file import PREFIX, read_adapter, tensors_for_comfyui
from ...unifusion_core.errors import CheckpointError, ConfigError
from .host import missing, wrong_type


def lora_names() -> list[str]:
    """Entries of the LoRA loader: the files in models/loras."""
    return folder_paths.get_filename_list("loras")


def lora_path(name: str) -> Path:
    """The file behind an entry of the LoRA loader. Raises CheckpointError if it does not exist."""
    path = folder_paths.get_full_path("loras", name)
    if path is None:
        raise CheckpointError(missing(name, "models/loras", lora_names()))
    return Path(path)


def with_adapter(model: Any, path: Path, strength: float) -> tuple[Any, str]:
    """The MODEL with the changes of an adapter file, and a sentence with the counts of used and unused keys.

    Takes a UniFusion MODEL and ComfyUI's own Krea 2, whose parameters have the same names. Raises ConfigError for another model,
    CheckpointError for a file that changes nothing in it, or was trained on a model of another VLM.
    """
    shapes = {
        name.removeprefix(PREFIX): _shape(value)
        for name, value in model.model.named_parameters()
        if name.startswith(PREFIX)
    }
    if "txtfusion.projector.weight" not in shapes:
        raise ConfigError(wrong_type("MODEL", type(model.model).__name__, "Load UniFusion Model"))
    # ComfyUI's own Krea 2 has none
    config = getattr(model.model.model_config, "unifusion", None)
    adapter = read_adapter(path, shapes, config.vlm.fingerprint if config else "")
    tensors = tensors_for_comfyui(
        adapter, lambda name: _numbers(comfy.utils.get_attr(model.model, PREFIX + name))
    )
    changed, _ = comfy.sd.load_lora_for_models(model, None, tensors, strength, 0.0)
    return changed, adapter.summary()


def _shape(parameter: Tensor) -> tuple[int, ...]:
    """The shape of a weight, without what fills it up when it is quantised."""
    params = getattr(parameter, "_params", None)
    return tuple(parameter.shape if params is None else params.orig_shape)


def _numbers(parameter: Tensor) -> Tensor:
    return parameter.dequantize() if hasattr(parameter, "_params") else parameter
