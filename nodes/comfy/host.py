"""What the pack asks of its host: folders, drop-down entries, types and devices, progress and interrupt."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ...unifusion_core.errors import CheckpointError, VLMError
from ...unifusion_core.images import size_for_image
from ...unifusion_core.models.autoencoder import DOWNSCALE, LATENT_CHANNELS
from ...unifusion_core.zoo.tiny import BUILT_IN as EMBEDDED

logger = logging.getLogger(__name__)

BUILT_IN = f"{EMBEDDED.name} (built in)"
WEIGHT_TYPES: dict[str, torch.dtype | None] = {
    "default": None,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
}
# parameters; below, 32 bit costs nothing and is exact
SMALL = 100_000_000


# Folders ------------------------------------------------------------------------------------------


def register_folders() -> None:
    """models/vlm for VLM folders (extra_model_paths.yaml works with it, too), and the tiny VAE among the VAEs."""
    folder_paths.add_model_folder_path("vlm", str(Path(folder_paths.models_dir) / "vlm"))
    folder_paths.add_model_folder_path("vae", str(EMBEDDED.vae.parent))


def generator_names() -> list[str]:
    """What the model loader offers: the tiny model first."""
    return [BUILT_IN, *folder_paths.get_filename_list("diffusion_models")]


def generator_path(name: str) -> Path:
    """The file behind an entry of the model loader. Raises CheckpointError if it is gone."""
    if name == BUILT_IN:
        return EMBEDDED.generator
    path = folder_paths.get_full_path("diffusion_models", name)
    if path is None:
        raise CheckpointError(missing(name, "models/diffusion_models", generator_names()))
    return Path(path)


def vlm_names() -> list[str]:
    """What the VLM loader offers: the tiny VLM first, then every folder with a config.json in models/vlm."""
    roots = [Path(root) for root in folder_paths.get_folder_paths("vlm")]
    found = {p.parent.relative_to(root).as_posix() for root in roots for p in root.glob("**/config.json")}
    return [BUILT_IN, *sorted(found - {"."})]


def vlm_path(name: str) -> Path:
    """The folder behind an entry of the VLM loader. Raises VLMError if it is gone."""
    if name == BUILT_IN:
        return EMBEDDED.vlm
    for root in folder_paths.get_folder_paths("vlm"):
        if (Path(root) / name / "config.json").is_file():
            return Path(root) / name
    raise VLMError(missing(name, "models/vlm", vlm_names()))


def missing(name: str, place: str, choices: list[str]) -> str:
    """The sentence for an entry that is not there, such as the tiny model of another version."""
    if name.endswith(" (built in)"):
        return (
            f'"{name}" came with another version of this pack; this one has "{BUILT_IN}": choose that instead'
        )
    known = ", ".join(choices[:6])
    return f'there is no "{name}": put it into {place}, or choose one of: {known}'


def empty_latent_for(
    image: Tensor, max_pixels: float | None = None
) -> tuple[dict[str, Any], tuple[int, int]]:
    """An empty latent in the size of a picture (C H W), and that size; channels are fitted when it is drawn on. Raises
    ShapeError for sizes that cannot be drawn."""
    width, height = size_for_image(image, max_pixels)
    given = (image.shape[2], image.shape[1])
    if given != (width, height):
        logger.warning(
            "UniFusion: the picture is %d x %d, drawn will be %d x %d: outlines may lie a few pixels off. Crop or scale the "
            "picture to that size to avoid it.", *given, width, height
        )  # fmt: skip
    samples = torch.zeros(
        1, LATENT_CHANNELS, height // DOWNSCALE, width // DOWNSCALE, device=mm.intermediate_device()
    )
    return {"samples": samples, "downscale_ratio_spacial": DOWNSCALE}, (width, height)


# Types, devices, progress -------------------------------------------------------------------------


def vlm_dtype(name: str, parameters: int) -> torch.dtype:
    """The VLM's weight type. ComfyUI's own default for text encoders is fp16, which VLMs trained in bf16 overflow."""
    chosen = WEIGHT_TYPES[name]
    if chosen is not None:
        return chosen
    device = mm.text_encoder_device()
    if parameters < SMALL or mm.is_device_cpu(device) or not mm.should_use_bf16(device):
        return torch.float32
    return torch.bfloat16


def stop_if_interrupted() -> None:
    """Raises ComfyUI's interrupt if the user has cancelled the run."""
    mm.throw_exception_if_processing_interrupted()


def progress(total: int) -> Callable[[int], None]:
    """A callback for loops: moves the running node's bar, and ends the loop when the user cancels."""
    bar = comfy.utils.ProgressBar(total)

    def update(done: int) -> None:
        stop_if_interrupted()
        bar.update_absolute(done)

    return update


@cache
def warn_once(sentence: str) -> None:
    """Log a warning the first time that it is due."""
    logger.warning("UniFusion: %s", sentence)


def missing_wire(socket: str, given: str, wanted: str) -> str:
    """The sentence for a wire that comes from a node of another family."""
    return f"The {socket} connected here is a {given}, which is no UniFusion {socket}: connect {wanted}."
