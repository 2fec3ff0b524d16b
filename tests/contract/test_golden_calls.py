"""Fixed calls compute what they computed when golden/calls.json was recorded: pytest tests/contract/test_golden_calls.py

Numbers are compared within a tolerance, so that another processor passes; golden/calls.py compares bit by bit.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
RECORDED: dict[str, Any] = json.loads((GOLDEN / "calls.json").read_text())
# calls of every kind, but few: all of them take a minute
CALLS = (
    *("as-it-is", "indirect", "wide", "no-guidance"),
    *("edit", "edit-apart", "edit-locked", "two-references", "lines"),
    *("rewrite", "rewrite-edit", "krea", "krea-raw", "krea-fp8", "krea-picture"),
)
# of the largest number of a tensor, and in levels of 255: other processors round otherwise, and steps add up
TOLERANCE, LEVELS = 1e-3, 2


@pytest.fixture(scope="module")
def recorder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_calls", GOLDEN / "calls.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(recorder: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    before = list(sys.path)
    recorder.pictures(folder)
    recorder.small_krea_2(folder)
    sys.path[:] = before
    return folder


@pytest.mark.parametrize("name", CALLS)
def test_call_computes_what_it_computed(
    recorder: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(folder)
    now = recorder.run(recorder.calls()[name], recorder.command(), folder)
    before = RECORDED[name]

    assert (now["status"], now.get("text")) == (before["status"], before.get("text"))
    assert now["tensors"].keys() == before["tensors"].keys()
    for part, tensor in before["tensors"].items():
        assert now["tensors"][part]["shape"] == tensor["shape"]
        scale = max(map(abs, tensor["numbers"]))
        assert now["tensors"][part]["numbers"] == pytest.approx(tensor["numbers"], abs=TOLERANCE * scale)
    assert now["pictures"].keys() == before["pictures"].keys()
    for file, picture in before["pictures"].items():
        found = now["pictures"][file]
        assert (found["shape"], found["rewrite"]) == (picture["shape"], picture["rewrite"])
        assert found["numbers"] == pytest.approx(picture["numbers"], abs=LEVELS)


def test_at_least_thirty_calls_are_recorded(recorder: ModuleType) -> None:
    assert len(RECORDED) >= 30
    assert RECORDED.keys() == recorder.calls().keys()
