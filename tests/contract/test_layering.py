"""Which file may import what, read from the source itself: pytest tests/contract/test_layering.py"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE, NODES = ROOT / "unifusion_core", ROOT / "nodes"
COMFYUI = {
    "comfy",
    "comfy_api",
    "comfy_api_nodes",
    "comfy_execution",
    "comfy_extras",
    "execution",
    "folder_paths",
    "latent_preview",
    "node_helpers",
    "nodes",
    "server",
}
OUR_PACKAGES = {"unifusion_core", "nodes", "tests"}
HOMES = {  # heavy packages: the only folders and files of the core that may import them
    "transformers": ("vlm", "evaluation", "shapes/training/tiny_vlm.py", "shapes/encoder.py"),
    "tokenizers": ("shapes/training/tiny_vlm.py",),
    "accelerate": ("training", "shapes/training", "evaluation/benchmarks", "pipeline.py", "cli/processes.py"),
    "diffusers": ("models/qwen_image_vae.py",),
    "tensorboard": ("training",),
    "scipy": ("shapes/world",),
    "matplotlib": ("inspection", "evaluation", "shapes/evaluation"),
    "datasets": ("training", "evaluation/benchmarks", "shapes/benchmarks.py"),
}
DRAWS = """
import sys
import unifusion_core
from unifusion_core import Pipeline
Pipeline.load(device="cpu")("a red circle", steps=1, size=(32, 32))
print(*sorted(name for name in sys.modules if ".shapes" in name))
"""


def imported_packages(source: str) -> Iterator[str]:
    """Top-level packages of all absolute imports, wherever they stand; relative imports stay inside the pack."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def offenders(files: Iterator[Path] | list[Path], forbidden: set[str]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {package}"
        for path in files
        for package in imported_packages(path.read_text())
        if package in forbidden
    ]


def test_the_check_sees_every_form_of_import() -> None:
    source = (
        "import a.b, c\nfrom d.e import f\nfrom . import g\nfrom ..h import i\ndef j():\n    import k as l\n"
    )

    assert list(imported_packages(source)) == ["a", "c", "d", "k"]


def test_the_core_knows_nothing_of_comfyui() -> None:
    assert offenders(CORE.rglob("*.py"), COMFYUI) == []


def test_the_pack_imports_itself_relatively_only() -> None:
    """ComfyUI loads the pack under a name made from its folder, where `unifusion_core` is no top-level package."""
    files = [ROOT / "__init__.py", *NODES.rglob("*.py"), *CORE.rglob("*.py")]

    assert offenders(files, OUR_PACKAGES) == []


@pytest.mark.parametrize("package", HOMES)
def test_heavy_packages_stay_in_their_folder(package: str) -> None:
    homes = [CORE / home for home in HOMES[package]]
    elsewhere = [path for path in CORE.rglob("*.py") if not any(path.is_relative_to(home) for home in homes)]

    assert offenders(elsewhere, {package}) == []
    assert offenders(NODES.rglob("*.py"), {package}) == []


def test_only_the_adapter_reaches_into_comfyui() -> None:
    """A file with a node in it declares and executes, with comfy_api alone; nodes/comfy/ does the rest."""
    assert offenders(NODES.glob("*.py"), COMFYUI - {"comfy_api"}) == []


def test_nodes_never_import_the_demo() -> None:
    lines = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in [ROOT / "__init__.py", *NODES.rglob("*.py")]
        for line in path.read_text().splitlines()
        if re.match(r"\s*(from|import) .*\bshapes\b", line)
    ]

    assert lines == []


def test_drawing_from_python_never_imports_the_demo() -> None:
    result = subprocess.run([sys.executable, "-c", DRAWS], capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


def test_layers_hold() -> None:
    """The contracts in pyproject.toml, checked by import-linter."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]

    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stdout + result.stderr
