"""README's tree and commands match the disk: pytest tests/contract/test_readme.py"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from unifusion_core.cli import main

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
CODE = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
TREE = next(text for language, text in CODE if language == "" and "├── " in text)
COMMANDS = [
    command.strip()
    for language, text in CODE
    if language == "bash"
    for line in text.splitlines()
    for command in line.split(" && ")
]
IN_TREE = {"__init__.py", "nodes", "unifusion_core", "workflows", "tests", "pyproject.toml"}
LISTED = ("nodes", "unifusion_core")  # folders of which every module stands in the tree


def tree_paths() -> list[str]:
    """The paths of the annotated tree, from the indentation of its lines."""
    folders: list[str] = []
    paths = []
    for line in TREE.splitlines():
        match = re.match(r"((?:│   |    )*)[├└]── (\S+)", line)
        if match:
            depth = len(match[1]) // 4
            del folders[depth:]
            paths.append("/".join([*folders, match[2].rstrip("/")]))
            folders.append(match[2].rstrip("/"))
    return paths


def test_everything_in_the_tree_exists() -> None:
    assert [path for path in tree_paths() if not (ROOT / path).exists()] == []


def test_every_module_is_in_the_tree() -> None:
    assert set(tree_paths()) >= IN_TREE
    modules = {
        str(path.relative_to(ROOT))
        for folder in LISTED
        for path in (ROOT / folder).rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
    }

    assert sorted(modules - set(tree_paths())) == []


def test_every_line_of_the_tree_says_what_it_is() -> None:
    bare = [line for line in TREE.splitlines() if re.search(r"[├└]── \S+$", line)]

    assert bare == []


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("unifusion ")])
def test_commands_are_understood(command: str) -> None:
    main._build_parser().parse_args(shlex.split(command)[1:])


def test_scripts_named_exist() -> None:
    scripts = re.findall(r"bash (\S+)", "\n".join(COMMANDS))

    assert scripts
    assert [script for script in scripts if not (ROOT / script).is_file()] == []


def test_there_is_one_command_that_draws_and_one_that_tests() -> None:
    first, tests = CODE[0][1].strip(), "bash .ci/run"

    assert first.startswith("python3 -m venv")
    assert "unifusion generate" in first
    assert "\n" not in first
    assert tests in COMMANDS


def test_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]

    assert [link for link in links if not (ROOT / link).exists()] == []
