"""The oldest and the newest transformers that pyproject.toml allows: the VLM's tests pass with both.

pytest -m slow tests/contract/test_transformers_versions.py
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def environment_with(requirement: str, folder: Path) -> Path:
    """The Python of a new environment with this requirement (from PyPI); for all else it looks into the one that runs this."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", requirement], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    return python


@pytest.mark.slow
@pytest.mark.parametrize(("requirement", "version"), [("~=4.57.0", "4.57."), (">=5.24,<6", "5.")])
def test_vlms_pass_their_tests_with(requirement: str, version: str, tmp_path: Path) -> None:
    python = environment_with(f"transformers{requirement}", tmp_path / "environment")
    asked = [python, "-c", "import transformers; print(transformers.__version__)"]
    found = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.startswith(version)

    tests = [python, "-m", "pytest", "-q", "tests/unit/vlm"]
    done = subprocess.run(tests, cwd=ROOT, capture_output=True, text=True, check=False)

    print(done.stdout[-300:], file=sys.stderr)
    assert done.returncode == 0, done.stdout[-5000:]
