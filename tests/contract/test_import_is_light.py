"""The core loads without its heavy packages and without ComfyUI: pytest tests/contract/test_import_is_light.py

Each check runs in a process of its own, because this one has everything loaded already.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

COMFYUI = ("comfy", "comfy_api", "folder_paths", "server")
HEAVY = ("transformers", "tokenizers", "accelerate", "tensorboard", "scipy", "matplotlib")


def import_without(absent: tuple[str, ...], *modules: str) -> subprocess.CompletedProcess[str]:
    """Import `modules` in a fresh process in which the packages `absent` cannot be imported."""
    program = f"import sys\nsys.modules |= dict.fromkeys({absent})\n" + "".join(
        f"import {m}\n" for m in modules
    )
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def test_the_package_itself_needs_nothing() -> None:
    result = import_without((*COMFYUI, *HEAVY, "torch", "numpy"), "unifusion_core", "unifusion_core.cli.main")

    assert result.returncode == 0, result.stderr


def test_generator_and_sampling_need_no_transformers() -> None:
    modules = (
        "contracts",
        "models.unifusion",
        "models.autoencoder",
        "checkpoints.generator_file",
        "checkpoints.vae_file",
        "zoo",
        "sampling",
        "flow.schedule",
    )

    result = import_without((*COMFYUI, *HEAVY), *(f"unifusion_core.{module}" for module in modules))

    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("absent", "module"), [("torch", "contracts"), ("errors_of_this_test", "flow.absent")]
)
def test_this_check_can_fail(absent: str, module: str) -> None:
    result = import_without((absent,), f"unifusion_core.{module}")

    assert result.returncode == 1
    assert "ModuleNotFoundError" in result.stderr
