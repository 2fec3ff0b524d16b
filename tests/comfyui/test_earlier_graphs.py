"""Graphs that earlier commits saved go on working: pytest tests/comfyui/test_earlier_graphs.py

tests/comfyui/earlier has a graph of every commit that changed the inputs of a node, as it was saved then. Its canvas files are
opened by tests/comfyui/test_browser.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Comfy

pytestmark = pytest.mark.comfyui

FOLDER = Path(__file__).with_name("earlier")
API = sorted(FOLDER.glob("*_api.json"))


@pytest.mark.parametrize("path", API, ids=lambda path: path.stem)
def test_an_earlier_api_graph_runs(comfy: Comfy, path: Path) -> None:
    done = comfy.successful(json.loads(path.read_text(encoding="utf-8")))

    assert comfy.images(done)
