"""The numbers behind the nodes: sampling equals the core's, conditions are computed once, VLM states are right.

    pytest tests/comfyui/test_in_process.py

One process with ComfyUI in it runs the cases of in_process/cases_*.py, where each case has its bounds beside it. A test for every
case reports its outcome.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.comfyui

PACKAGE = Path(__file__).with_name("in_process")
LIMIT_SECONDS = 600
LONGEST_LOG = 5000


def names_of_cases() -> list[str]:
    """The decorated functions of the case files, by their source: only ComfyUI's process can import them."""
    return [
        statement.name
        for path in sorted(PACKAGE.glob("cases_*.py"))
        for statement in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(statement, ast.FunctionDef)
        and any(ast.unparse(each).startswith(("case(", "refused(")) for each in statement.decorator_list)
    ]


CASES = names_of_cases()


@pytest.fixture(scope="module")
def results(
    request: pytest.FixtureRequest,
    comfyui_home: Path,
    comfyui_python: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """What the runner prints, for the cases whose tests are selected."""
    selected = {item.name for item in request.session.items}
    chosen = [case for case in CASES if f"test_case[{case}]" in selected]
    folder = tmp_path_factory.mktemp("in_process")
    command = [comfyui_python, PACKAGE / "runner.py", comfyui_home, PACKAGE.parents[2], folder, *chosen]
    done = subprocess.run(
        [str(each) for each in command],
        cwd=comfyui_home,
        env=os.environ | {"OMP_WAIT_POLICY": "passive"},
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS * int(os.environ.get("COMFYUI_PATIENCE", "1")),
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULTS ")]
    if not lines:
        pytest.fail(f"runner.py ended with {done.returncode}:\n{done.stderr[-LONGEST_LOG:]}", pytrace=False)
    return json.loads(lines[0].removeprefix("RESULTS "))


@pytest.mark.parametrize("case", CASES)
def test_case(results: dict[str, Any], case: str) -> None:
    failure = results["outcomes"][case]["failure"]
    if failure:
        pytest.fail(failure, pytrace=False)


def test_every_case_has_a_test(results: dict[str, Any]) -> None:
    assert sorted(results["cases"]) == sorted(CASES)
