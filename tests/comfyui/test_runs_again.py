"""Which nodes run again after a change, and that a cancelled run leaves no trace: pytest tests/comfyui/test_runs_again.py

The graph is the shipped edit: models and image -> rewrite of the instruction -> sample -> save.
"""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from conftest import Comfy

pytestmark = pytest.mark.comfyui

EDIT = Path(__file__).parents[2] / "workflows" / "api" / "UniFusion Edit an Image.json"
SOURCE, SIZE, REWRITE, SAMPLE, DECODE, SAVE = "14", "30", "40", "42", "43", "12"
SHOW_REWRITE = "13"


@pytest.fixture
def edit(comfy: Comfy) -> dict[str, Any]:
    """The shipped edit, which has just run."""
    graph = json.loads(EDIT.read_text())
    comfy.successful(graph)
    return graph


def test_the_graph_is_as_this_file_says(edit: dict[str, Any]) -> None:
    assert {name: edit[name]["class_type"] for name in (SOURCE, SIZE, REWRITE, SAMPLE, DECODE, SAVE)} == {
        SOURCE: "LoadImage",
        SIZE: "UniFusionLatentFromReference",
        REWRITE: "UniFusionVerifiRewrite",
        SAMPLE: "UniFusionSampler",
        DECODE: "VAEDecode",
        SAVE: "SaveImage",
    }


def test_nothing_changed_runs_nothing(comfy: Comfy, edit: dict[str, Any]) -> None:
    again = comfy.successful(edit)

    assert again.executed == []
    assert set(again.cached) == edit.keys()


def test_another_seed_runs_the_sampler_and_what_follows(comfy: Comfy, edit: dict[str, Any]) -> None:
    # a seed that no earlier run had
    edit[SAMPLE]["inputs"]["seed"] += comfy.port

    assert comfy.successful(edit).executed == [SAMPLE, DECODE, SAVE]


def test_another_instruction_leaves_models_image_and_size_alone(comfy: Comfy, edit: dict[str, Any]) -> None:
    edit[REWRITE]["inputs"]["prompt"] = "make the star green"

    again = comfy.successful(edit)

    assert set(again.executed) == {REWRITE, SHOW_REWRITE, SAMPLE, DECODE, SAVE}


def test_another_image_runs_what_looks_at_it(comfy: Comfy, edit: dict[str, Any]) -> None:
    edit[SOURCE]["inputs"]["image"] = "unifusion_circle.png"

    again = comfy.successful(edit)

    assert {SOURCE, SIZE, REWRITE, SAMPLE, DECODE, SAVE} <= set(again.executed)
    assert {"1", "2", "10"} <= set(again.cached)


@pytest.mark.parametrize("node", [REWRITE, SAMPLE])
def test_after_a_cancelled_run_the_next_draws_the_same(comfy: Comfy, edit: dict[str, Any], node: str) -> None:
    (before,) = comfy.images(comfy.successful(edit), SAVE)
    cancelled = copy.deepcopy(edit)
    cancelled[SAMPLE]["inputs"] |= {"steps": 1000, "seed": comfy.port}
    # a prompt of its own for each run; at this temperature the rewrite does not end soon
    cancelled[REWRITE]["inputs"] |= {"temperature": 2.0, "prompt": f"anything for {node}", "seed": comfy.port}
    if node == SAMPLE:
        cancelled[REWRITE]["inputs"]["temperature"] = 0.0

    def cancel(event: dict[str, Any]) -> None:
        if event["type"] == "progress" and event["data"]["node"] == node:
            comfy.interrupt()

    result = comfy.run(cancelled, on_event=cancel)
    (after,) = comfy.images(comfy.successful(edit), SAVE)

    assert result.status == "interrupted"
    assert result.executed[-1] == node
    assert sum(data["node"] == node for data in result.of_type("progress")) < 100
    assert np.array_equal(before, after)


def test_models_leave_memory_when_asked_and_come_back(comfy: Comfy, edit: dict[str, Any]) -> None:
    (before,) = comfy.images(comfy.successful(edit), SAVE)
    comfy.request("POST", "/free", {"unload_models": True, "free_memory": True})
    # the server frees memory between two prompts, without a message
    time.sleep(2)

    again = comfy.successful(edit)

    assert set(again.executed) == edit.keys()
    assert np.array_equal(before, comfy.images(again, SAVE)[0])
