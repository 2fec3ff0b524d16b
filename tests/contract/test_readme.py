"""The README's commands, code, numbers and links hold: pytest tests/contract/test_readme.py"""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from unifusion_core.cli.main import build_parser
from unifusion_core.shapes.evaluation.page import RESULTS, headline_table, read_reports
from unifusion_core.shapes.world import scenes

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / name
    for name in (
        "README.md",
        "CONTRIBUTING.md",
        "tests/README.md",
        "workflows/krea_2.md",
        "unifusion_core/ARCHITECTURE.md",
        "unifusion_core/evaluation/README.md",
        "unifusion_core/shapes/README.md",
        "unifusion_core/training/README.md",
    )
]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CODE = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
PYTHON = [text for language, text in CODE if language == "python"]
LONGEST = 180  # lines


def commands(text: str) -> list[str]:
    """Every command of the bash blocks of a page."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [part.strip() for block in blocks for line in block.splitlines() for part in line.split(" && ")]


COMMANDS = [
    command
    for page in PAGES
    for command in commands(page.read_text(encoding="utf-8"))
    if command.startswith("unifusion ")
]


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= LONGEST


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command: str) -> None:
    build_parser().parse_args(shlex.split(command)[1:])


def test_there_is_one_command_that_draws_and_one_that_tests() -> None:
    first = CODE[0][1].strip()

    assert first.startswith("python3 -m venv")
    assert "unifusion generate" in first
    assert "\n" not in first
    assert "bash .ci/run" in README
    assert (ROOT / ".ci" / "run").is_file()


def test_python_code_runs_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = PYTHON
    monkeypatch.chdir(tmp_path)
    (tmp_path / "readme.py").write_text(code)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        names = runpy.run_path("readme.py")
    assert isinstance(names["image"], Image.Image)
    assert isinstance(names["edited"], Image.Image)
    assert names["image"].tobytes() != names["edited"].tobytes()
    assert "red circle" in printed.getvalue()


def test_python_code_prints_nothing_of_others() -> None:
    """Progress bars and warnings of the packages below."""
    result = subprocess.run([sys.executable, "-c", PYTHON[0]], capture_output=True, text=True, check=False)

    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("\n") == 1


def test_every_number_of_the_results_comes_from_a_report() -> None:
    table = headline_table(read_reports(RESULTS))

    assert "\n".join(table) in README
    assert len(table) > 2


def test_the_words_that_the_embedded_model_knows_are_listed() -> None:
    for words in (scenes.SHAPES, scenes.COLORS, scenes.SIZES, scenes.POSITIONS, scenes.BACKGROUNDS):
        assert [word for word in words if word not in README] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text) if "://" not in link]

    # a link with blanks stands in angle brackets
    assert [link for link in links if not (page.parent / link.strip("<>")).exists()] == []
