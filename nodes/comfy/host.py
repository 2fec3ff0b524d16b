"""Services of the host: folders, entries of drop-down lists, types and devices, progress and interrupts."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal

import comfy.model_management as mm
import comfy.utils
import folder_paths
import torch

from ...unifusion_core.checkpoints.generator_file import has_generator
from ...unifusion_core.checkpoints.safetensors_file import SafetensorsFile
from ...unifusion_core.errors import CheckpointError, VLMError
from ...unifusion_core.zoo.tiny import BUILT_IN as EMBEDDED
from .messages import say_once

logger = logging.getLogger(__name__)

WeightType = Literal["default", "fp32", "bf16", "fp16", "fp8_e4m3fn"]

BUILT_IN = f"{EMBEDDED.name} (built in)"
# kinds of folders, by their names in ComfyUI's folder_paths
CHECKPOINTS, GGUF = "checkpoints", "unifusion_gguf"
# the choice that leaves a setting to the model
AUTOMATIC: Final = "automatic"
WEIGHT_TYPES: dict[WeightType, torch.dtype | None] = {
    "default": None,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
}
# example images of the workflows that edit
EXAMPLES = Path(__file__).parents[2] / "workflows" / "input"
# parameters; a smaller model costs little in fp32, which is exact
SMALL = 100_000_000


# Folders ------------------------------------------------------------------------------------------


def register_folders() -> None:
    """Registers models/vlm for VLM folders (extra_model_paths.yaml can add more), and lists the tiny VAE among the VAEs and GGUF
    files beside the generators."""
    folder_paths.add_model_folder_path("vlm", str(Path(folder_paths.models_dir) / "vlm"))
    folder_paths.add_model_folder_path("vae", str(EMBEDDED.vae.parent))
    generators, _ = folder_paths.folder_names_and_paths["diffusion_models"]
    # the list itself, so that folders added later are in both
    folder_paths.folder_names_and_paths[GGUF] = (generators, {".gguf"})


def offer_example_images() -> None:
    """Copies the example images of the edit workflows into ComfyUI's input folder, where Load Image finds them. Files that are
    there already are left as they are."""
    inputs = Path(folder_paths.get_input_directory())
    for example in sorted(EXAMPLES.glob("*.png")):
        try:
            if not (inputs / example.name).exists():
                shutil.copyfile(example, inputs / example.name)
        except OSError as refused:
            logger.warning(
                "UniFusion: the example images could not be copied into ComfyUI's input folder (%s): upload them from %s with "
                "Load Image.",
                refused,
                EXAMPLES,
            )
            return


def generator_names() -> list[str]:
    """Entries of the model loader: the tiny model, the files in models/diffusion_models, and the all-in-one files in
    models/checkpoints that contain a generator. GGUF files are listed, too, so that choosing one says what to do with it."""
    listed = folder_paths.get_filename_list
    checkpoints = [
        f"{CHECKPOINTS}/{name}"
        for name in listed(CHECKPOINTS)
        if _has_generator(folder_paths.get_full_path(CHECKPOINTS, name))
    ]
    return [BUILT_IN, *listed("diffusion_models"), *checkpoints, *listed(GGUF)]


def generator_path(name: str) -> Path:
    """The file behind an entry of the model loader. Raises CheckpointError if it does not exist."""
    if name == BUILT_IN:
        return EMBEDDED.generator
    path = folder_paths.get_full_path("diffusion_models", name)
    if path is None and name.startswith(f"{CHECKPOINTS}/"):
        path = folder_paths.get_full_path(CHECKPOINTS, name.removeprefix(f"{CHECKPOINTS}/"))
    if path is None:
        raise CheckpointError(missing(name, "models/diffusion_models", generator_names()))
    return Path(path)


def _has_generator(path: str | None) -> bool:
    """Whether a checkpoint contains a generator of UniFusion's family; False for files that cannot be opened."""
    if path is None or not path.lower().endswith((".safetensors", ".sft")):
        return False
    status = Path(path).stat()
    return _has_generator_in(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=1000)
def _has_generator_in(path: str, _changed: int, _size: int) -> bool:
    try:
        return has_generator(SafetensorsFile(Path(path)).names)
    except CheckpointError:
        return False


def vlm_names() -> list[str]:
    """Entries of the VLM loader: the tiny VLM, then every folder with a config.json in models/vlm, links to folders included."""
    found = {
        Path(folder).relative_to(root).as_posix()
        for root in folder_paths.get_folder_paths("vlm")
        for folder in _folders_below(root)
        if (Path(folder) / "config.json").is_file()
    }
    return [BUILT_IN, *sorted(found - {"."})]


def _folders_below(folder: str, above: frozenset[str] = frozenset()) -> Iterator[str]:
    """A folder and all folders below it, through links. A link to a folder above itself is left out."""
    real = os.path.realpath(folder)
    if real in above or not Path(folder).is_dir():
        return
    yield folder
    for below in sorted(Path(folder).iterdir()):
        yield from _folders_below(str(below), above | {real})


def vlm_path(name: str) -> Path:
    """The folder behind an entry of the VLM loader. Raises VLMError if it does not exist."""
    if name == BUILT_IN:
        return EMBEDDED.vlm
    for root in folder_paths.get_folder_paths("vlm"):
        if (Path(root) / name / "config.json").is_file():
            return Path(root) / name
    raise VLMError(missing(name, "models/vlm", vlm_names()))


def missing(name: str, folder: str, choices: list[str]) -> str:
    """The error for an entry that does not exist, such as the tiny model of another version of the pack."""
    if name.endswith(" (built in)"):
        return f'"{name}" came with another version of this pack: choose "{BUILT_IN}", which this version has'
    known = ", ".join(choices[:6])
    return f'there is no "{name}": put it into {folder}, or choose one of: {known}'


# Types, devices, progress -------------------------------------------------------------------------


def vlm_dtype(name: WeightType, parameters: int) -> torch.dtype:
    """The VLM's weight type. ComfyUI's default for text encoders is fp16, in which VLMs trained in bf16 overflow."""
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
    """A callback for loops of `total` steps. It moves the running node's bar, and raises ComfyUI's interrupt if the user
    cancels."""
    bar = comfy.utils.ProgressBar(total)

    def update(done: int) -> None:
        stop_if_interrupted()
        bar.update_absolute(done)

    return update


def warn_once(sentence: str) -> None:
    """Warns the first time that the sentence is given in a run of a workflow; the node that runs shows it."""
    say_once(logger, sentence)


def wrong_type(socket: str, given: str, wanted: str) -> str:
    """The error for an input connected to a node of another family."""
    return f"The {socket} input got {given}, which is not a UniFusion {socket}: connect {wanted}."
