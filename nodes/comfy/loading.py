"""A generator file as a MODEL: ComfyUI's own loading steps, with the core's strict check of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import comfy.utils

from ...unifusion_core.checkpoints.generator_file import GeneratorContent, GeneratorFile
from ...unifusion_core.checkpoints.quantized import formats_of
from ...unifusion_core.checkpoints.safetensors_file import read_tensors
from ...unifusion_core.errors import CheckpointError
from .host import WEIGHT_TYPES, WeightType, warn_once
from .model import HostConfig

SUFFIXES = (".safetensors", ".sft")


def read_generator(path: Path) -> GeneratorContent:
    """The content of a generator file. ComfyUI maps its tensors, so that it can stream the weights from disk.

    Raises CheckpointError for a file that is not a safetensors file or does not fit, before any weight is read.
    """
    if path.suffix.lower() not in SUFFIXES:
        # ComfyUI would unpickle a file with another suffix
        return GeneratorContent(*read_tensors(path), path.name)
    if comfy.utils.DISABLE_MMAP:
        # ComfyUI copies all weights into memory then, so check the file first
        GeneratorFile(path)
    try:
        tensors, metadata = comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
    except Exception:
        # the core raises a sentence that names the fault, unless the file is sound
        GeneratorFile(path)
        raise
    return GeneratorContent(tensors, metadata or {}, path.name)


def _check_formats(content: GeneratorContent) -> None:
    """Raises CheckpointError for quantised layers that the installed ComfyUI does not have."""
    from comfy.quant_ops import QUANT_ALGOS

    missing = sorted(formats_of(content.tensors) - set(QUANT_ALGOS))
    if missing:
        raise CheckpointError(
            f"{content.name} has layers in the format {missing[0]}, which this ComfyUI does not have: update ComfyUI and its "
            "package comfy-kitchen, or use the bf16 or the fp8 file of this model"
        )


def load_model(path: Path, weight_type: WeightType = "default", disable_dynamic: bool = False) -> Any:
    """A generator file as a MODEL (ModelPatcher). Quantised layers stay as they are stored, in ComfyUI's own quantised layers.

    Raises CheckpointError for a file that is damaged or of another kind, or in a format that the installed ComfyUI lacks.
    """
    content = read_generator(path)
    tensors = content.tensors
    parameters = comfy.utils.calculate_parameters(tensors)
    host_config = HostConfig(content, parameters)
    if content.widened:
        warn_once(
            f"{path.name} has {len(content.widened)} fp8 weights with a scale per row or block, for which ComfyUI has no layer: "
            "they take the memory of 16 bits"
        )
    load_device, offload_device = mm.get_torch_device(), mm.unet_offload_device()
    supported = host_config.supported_inference_dtypes
    host_config.quant_config = comfy.utils.detect_layer_quantization(tensors, "")
    if host_config.quant_config is None:
        dtype = WEIGHT_TYPES[weight_type] or mm.unet_dtype(
            model_params=parameters,
            supported_dtypes=supported,
            weight_dtype=comfy.utils.weight_dtype(tensors),
        )
        compute_dtype = mm.unet_manual_cast(dtype, load_device, supported)
    else:
        _check_formats(content)
        if WEIGHT_TYPES[weight_type] is not None:
            warn_once(f"{path.name} has quantised weights and keeps them: weight_dtype is ignored")
        dtype = mm.unet_dtype(model_params=parameters, supported_dtypes=supported)
        compute_dtype = mm.unet_manual_cast(None, load_device, supported)
    host_config.set_inference_dtype(dtype, compute_dtype)
    model = host_config.get_model(tensors)
    kind = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = kind(model, load_device=load_device, offload_device=offload_device)
    if not mm.is_device_cpu(offload_device):
        model.to(offload_device)
    model.load_model_weights(tensors, "", assign=patcher.is_dynamic())
    patcher.cached_patcher_init = (load_model, (path, weight_type))
    return patcher
