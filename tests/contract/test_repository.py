"""What tools read from the repository's root fits together: pytest tests/contract/test_repository.py"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import unifusion_core

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAX_WEIGHTS = 20e6  # bytes of all embedded parts together


def test_requirements_are_the_dependencies_without_torch() -> None:
    required = [
        line
        for line in (ROOT / "requirements.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]

    assert required == [d for d in PROJECT["project"]["dependencies"] if not d.startswith("torch>")]


def test_the_version_stands_in_one_place() -> None:
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert "version" not in PROJECT["project"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "unifusion_core.__version__"}
    read_by_the_registry = (ROOT / PROJECT["tool"]["comfy"]["version"]["path"]).read_text()
    assert f'\n__version__ = "{unifusion_core.__version__}"\n' in read_by_the_registry


def test_every_bound_has_its_reason() -> None:
    lines = (ROOT / "pyproject.toml").read_text().splitlines()

    assert [line for line in lines if re.match(r' {4}"[\w-]+[<>]', line) and "#" not in line] == []


def test_comfyui_finds_its_table() -> None:
    table = PROJECT["tool"]["comfy"]

    assert table.keys() >= {"PublisherId", "DisplayName", "Icon", "requires-comfyui"}
    assert "ComfyUI" not in PROJECT["project"]["name"]
    assert re.fullmatch(r">=\d+\.\d+\.\d+", table["requires-comfyui"])


def test_embedded_weights_stay_small() -> None:
    size = sum(
        path.stat().st_size for path in (ROOT / "unifusion_core" / "weights").rglob("*") if path.is_file()
    )

    assert size <= MAX_WEIGHTS


def test_nothing_that_may_run_code_is_shipped() -> None:
    pickles = [
        p for s in ("pt", "pth", "ckpt", "pkl", "bin") for p in (ROOT / "unifusion_core").rglob(f"*.{s}")
    ]

    assert pickles == []


def test_the_licence_is_apache_2() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert PROJECT["project"]["license"] == {"text": "Apache-2.0"}
