"""The pack as an archive for ComfyUI's registry, and the cost of importing it.

    pytest tests/comfyui/test_registry.py -m "slow or not slow"

comfy-cli validates and packs it (pip install -e ".[comfyui]"); the archive is then installed and run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Comfy

pytestmark = pytest.mark.comfyui

PACK = Path(__file__).parents[2]
PACK_IMPORT = Path(__file__).with_name("pack_import.py")
IMPORT_LIMIT_SECONDS = 1.0 * int(os.environ.get("COMFYUI_PATIENCE", "1"))
# bytes
ARCHIVE_LIMIT = 25e6
SHIPPED = {
    *(
        ".comfyignore",
        "CHANGELOG.md",
        "LICENSE",
        "README.md",
        "__init__.py",
        "pyproject.toml",
        "requirements.txt",
    ),
    *("locales", "nodes", "subgraphs", "unifusion_core", "workflows"),
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A git repository with this one's files, because comfy-cli packs the files that git tracks into the current folder."""
    if not (PACK / ".git").exists():
        pytest.skip("not a git checkout, so there is no saying which files are the pack's")
    folder = tmp_path / "checkout"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.check_output(listed, cwd=PACK, text=True).split("\0"):
        if (PACK / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PACK / name, folder / name)
    subprocess.check_call(["git", "init", "--quiet"], cwd=folder)
    subprocess.check_call(["git", "add", "--all"], cwd=folder)
    return folder


@pytest.fixture
def told(comfy_cli: str, checkout: Path, tmp_path: Path) -> Callable[[str], str]:
    """`told("validate")`: the output of `comfy node validate` for the checkout."""

    def run(verb: str) -> str:
        done = subprocess.run(
            [comfy_cli, "--skip-prompt", "node", verb],
            cwd=checkout,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"HOME": str(tmp_path), "DO_NOT_TRACK": "1"},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def test_the_registrys_checks_find_nothing(told: Callable[[str], str]) -> None:
    answer = told("validate")

    assert "All validation checks passed" in answer
    assert "warning" not in answer.lower()


def test_the_archive_holds_what_a_user_needs_and_no_more(told: Callable[[str], str], checkout: Path) -> None:
    told("pack")

    archive = checkout / "node.zip"
    names = zipfile.ZipFile(archive).namelist()
    assert {name.partition("/")[0] for name in names} == SHIPPED
    assert archive.stat().st_size <= ARCHIVE_LIMIT


@pytest.mark.slow
def test_the_archive_draws_from_a_folder_of_another_name(
    told: Callable[[str], str],
    checkout: Path,
    serve: Callable[..., AbstractContextManager[Comfy]],
    tmp_path: Path,
) -> None:
    told("pack")
    installed = tmp_path / "installed"
    zipfile.ZipFile(checkout / "node.zip").extractall(installed)
    graph = json.loads(
        (PACK / "workflows" / "api" / "UniFusion Text to Image with a Rewritten Prompt.json").read_text()
    )

    with serve(tmp_path / "server", pack=installed, name="drawn by the 통합 pack") as comfy:
        result = comfy.successful(graph)
        _, templates = comfy.request("GET", "/workflow_templates")
        (picture,) = comfy.images(result)

    assert picture.shape == (128, 128, 3)
    assert "UniFusion Text to Image" in templates["drawn by the 통합 pack"]


def loading(home: Path, python: str, *absent: str) -> dict[str, Any]:
    command = [python, str(PACK_IMPORT), str(home), *absent]
    return json.loads(subprocess.check_output(command, cwd=home, text=True).splitlines()[-1])


def test_loading_the_pack_is_quick_and_brings_nothing_heavy(comfyui_home: Path, comfyui_python: str) -> None:
    cost = loading(comfyui_home, comfyui_python)

    assert cost["error"] is None
    assert cost["seconds"] <= IMPORT_LIMIT_SECONDS
    assert cost["new packages"] == ["jaxtyping", "xxhash"]


def test_what_only_some_commands_need_may_be_missing(comfyui_home: Path, comfyui_python: str) -> None:
    absent = ("accelerate", "matplotlib", "scipy", "tensorboard", "tqdm")

    assert loading(comfyui_home, comfyui_python, *absent)["error"] is None


def test_a_missing_package_is_named_with_its_remedy(comfyui_home: Path, comfyui_python: str) -> None:
    error = loading(comfyui_home, comfyui_python, "jaxtyping")["error"]

    assert '"jaxtyping"' in error
    assert "pip install -r requirements.txt" in error
