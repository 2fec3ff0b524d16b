"""Generator files: opened once, written and opened again, kept in fewer bits."""

from __future__ import annotations

import builtins
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import comfy.sd
import safetensors
import torch
from the_pack.nodes.comfy import host
from the_pack.nodes.load_model import UniFusionModelLoader
from the_pack.unifusion_core.checkpoints.generator_file import load_generator

from .case import case, difference
from .small_krea import krea_file
from .small_unifusion import (
    CONFIG,
    FOLDER,
    by_comfyui,
    conditioning,
    core_model,
    features,
    host_model,
    model_file,
)

OPENERS = (builtins.open, torch.load, safetensors.safe_open)


def _holders(function: Any) -> list[tuple[Any, str]]:
    """Every module that has a function, with the function's name there."""
    return [
        (module, name)
        for module in list(sys.modules.values())
        for name, value in list(getattr(module, "__dict__", {}).items())
        if value is function
    ]


@contextmanager
def _opens_of(path: Path) -> Iterator[list[str]]:
    """The modules whose functions open a file while this lasts. Who imported such a function by name is seen, too."""
    opens: list[str] = []

    def watched(module: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: Any, *args: Any, **kwargs: Any) -> Any:
            if str(file) == str(path):
                opens.append(module)
            return original(file, *args, **kwargs)

        return call

    with ExitStack() as stack:
        for opener in OPENERS:
            for module, name in _holders(opener):
                stack.enter_context(mock.patch.object(module, name, watched(module.__name__, opener)))
        yield opens


def _once(found: dict[str, list[str]]) -> None:
    assert len(found) == 3
    assert all(len(opens) == 1 for opens in found.values())


@case(check=_once)
def generator_file_opened_once() -> dict[str, list[str]]:
    """The modules whose functions open the file that the loader node loads."""
    folder = FOLDER / "models" / "diffusion_models"
    folder.mkdir(parents=True, exist_ok=True)
    names = {"built in": host.BUILT_IN}
    for name, path in (("unifusion", model_file()), ("krea 2", krea_file())):
        shutil.copy(path, folder)
        names[name] = path.name
    found = {}
    for name, entry in names.items():
        with _opens_of(host.generator_path(entry)) as opens:
            UniFusionModelLoader.execute(entry, "default")
        found[name] = opens
    return found


@case(equals={"listed": ["linked", "real", "within/model"], "opened": True})
def vlm_folders_that_are_links() -> dict[str, Any]:
    """A VLM folder, a link to a folder elsewhere, a model in a linked folder, and a link that leads in a circle."""
    root, elsewhere = FOLDER / "models" / "vlm", FOLDER / "elsewhere"
    for folder in (root / "real", elsewhere / "model", elsewhere / "other"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text("{}")
    (root / "linked").symlink_to(elsewhere / "other", target_is_directory=True)
    (root / "within").symlink_to(elsewhere, target_is_directory=True)
    (elsewhere / "circle").symlink_to(root, target_is_directory=True)
    names = host.vlm_names()[1:]
    expected = {"linked", "real", "within/model"}
    return {
        "listed": [name for name in names if name in expected],
        "opened": all((host.vlm_path(name) / "config.json").is_file() for name in names),
    }


@case()
def saved_and_loaded() -> dict[str, Any]:
    """What ModelSave writes, with a patch baked in, opens as the same model with the same training record."""
    model = host_model()
    name = "diffusion_model.blocks.0.attn.wq.weight"
    model.add_patches({name: ("diff", (torch.ones(64, 64),))}, 0.1)
    path = FOLDER / "saved.safetensors"
    comfy.sd.save_checkpoint(str(path), model, metadata={"format": "pt"})
    loaded, record = load_generator(path)
    expected = core_model().state_dict()
    expected["blocks.0.attn.wq.weight"] += 0.1
    return {
        "difference": max(float((v - expected[k]).abs().max()) for k, v in loaded.state_dict().items()),
        "record": record,
        "same config": loaded.config == CONFIG,
    }


@saved_and_loaded.check
def _(found: dict[str, Any]) -> None:
    assert found["difference"] <= 1e-6
    assert found["same config"]
    assert found["record"] == {"recipe": "none"}


@case()
def weight_types() -> dict[str, float]:
    """Weights in fewer bits draw nearly the same."""
    positive, negative = conditioning(features(9, 4)), conditioning(features(5))
    exact = by_comfyui(host_model(), positive, negative)
    return {
        name: difference(by_comfyui(host_model(weight_type=name), positive, negative), exact)
        for name in ("fp32", "bf16", "fp16", "fp8_e4m3fn")
    }


@weight_types.check
def _(found: dict[str, float]) -> None:
    assert found["fp32"] == 0
    assert 0 < found["fp16"] < found["bf16"] < found["fp8_e4m3fn"] < 0.5
