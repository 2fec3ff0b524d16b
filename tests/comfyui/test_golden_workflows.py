"""Every workflow of the built-in model computes the same latents as when golden/workflows.json was recorded.

    pytest tests/comfyui/test_golden_workflows.py

--write-golden records the file anew. Latents are compared within a tolerance, so that other machines pass; with --exact, for the
machine that recorded them and the same OMP_NUM_THREADS (conftest.py's default), bit by bit.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from conftest import Comfy

pytestmark = pytest.mark.comfyui

TESTS = Path(__file__).resolve().parents[1]
GOLDEN = TESTS / "golden" / "workflows.json"
GRAPHS = sorted((TESTS.parent / "workflows" / "api").glob("*.json"))
EMBEDDED = [path for path in GRAPHS if "(built in)" in path.read_text(encoding="utf-8")]
# for latents with a standard deviation of about 1; other processors round differently
TOLERANCE = 1e-3
# numbers stored per latent
SAMPLES = 32


def with_latents_saved(graph: dict[str, Any]) -> dict[str, Any]:
    """The graph with a SaveLatent for the input of each VAEDecode."""
    read = [node["inputs"]["samples"] for node in graph.values() if node["class_type"] == "VAEDecode"]
    return graph | {
        f"latent-{number}": {
            "class_type": "SaveLatent",
            "inputs": {"samples": samples, "filename_prefix": "golden"},
        }
        for number, samples in enumerate(read)
    }


def summary(latent: np.ndarray) -> dict[str, Any]:
    flat = np.ascontiguousarray(latent, dtype=np.float32).flatten()
    places = np.linspace(0, len(flat) - 1, SAMPLES).astype(int)
    return {
        "sha256": hashlib.sha256(flat.tobytes()).hexdigest(),
        "shape": list(latent.shape),
        "numbers": [float(f"{number:.7g}") for number in flat[places]],
    }


@pytest.mark.parametrize("path", EMBEDDED, ids=lambda path: path.stem)
def test_workflow_computes_what_it_computed(comfy: Comfy, request: pytest.FixtureRequest, path: Path) -> None:
    graph = with_latents_saved(json.loads(path.read_text(encoding="utf-8")))
    result = comfy.successful(graph)
    # in the graph's order, because independent nodes run in any order
    result.outputs = {name: result.outputs[name] for name in graph if name.startswith("latent-")}
    found = [summary(latent) for latent in comfy.latents(result)]
    assert found
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if request.config.getoption("--write-golden"):
        GOLDEN.write_text(json.dumps(golden | {path.stem: found}, indent=1) + "\n")
        return
    assert len(found) == len(golden[path.stem])
    for now, before in zip(found, golden[path.stem], strict=True):
        assert now["shape"] == before["shape"]
        assert now["numbers"] == pytest.approx(before["numbers"], abs=TOLERANCE)
        if request.config.getoption("--exact"):
            assert now["sha256"] == before["sha256"]
