"""Shipped workflows use known nodes and inputs, and each has its API twin: pytest tests/contract/test_workflow_files.py

Read from the files alone; tests/comfyui runs them in a real ComfyUI.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from unifusion_core import embedded

if TYPE_CHECKING:
    from conftest import NodeSchema

ROOT = Path(__file__).resolve().parents[2]
UI = sorted((ROOT / "workflows").glob("*.json"))
API = sorted((ROOT / "workflows" / "api").glob("*.json"))
STOCK = {
    "CLIPTextEncode",
    "EmptySD3LatentImage",
    "KSampler",
    "LoadImage",
    "MaskComposite",
    "PreviewAny",
    "PreviewImage",
    "SaveImage",
    "SetLatentNoiseMask",
    "SolidMask",
    "VAEDecode",
    "VAEEncode",
    "VAELoader",
}
LOADERS = {
    "UniFusionModelLoader": "diffusion_models",
    "UniFusionVLMLoader": "vlm",
    "VAELoader": "vae",
}
NOTES = {"MarkdownNote", "Note"}  # of the front end, without a twin in the API form


def test_every_node_of_the_pack_is_prefixed_and_found(own_nodes: dict[str, NodeSchema]) -> None:
    assert own_nodes
    assert all(node.startswith("UniFusion") for node in own_nodes)


@pytest.mark.parametrize("path", API, ids=lambda path: path.stem)
def test_api_workflows_use_known_nodes_and_wires(path: Path, own_nodes: dict[str, NodeSchema]) -> None:
    graph = json.loads(path.read_text())

    for node in graph.values():
        kind = node["class_type"]
        assert kind in own_nodes or kind in STOCK
        if kind in own_nodes:
            known = {socket.id for socket in own_nodes[kind].inputs}
            assert {name.partition(".")[0] for name in node["inputs"]} <= known
        for value in node["inputs"].values():
            if isinstance(value, list):
                assert value[0] in graph


@pytest.mark.parametrize("path", UI, ids=lambda path: path.stem)
def test_ui_workflows_have_an_api_twin_with_the_same_nodes(path: Path) -> None:
    kinds = [node["type"] for node in json.loads(path.read_text())["nodes"] if node["type"] not in NOTES]
    twin = json.loads((ROOT / "workflows" / "api" / path.name).read_text())

    assert sorted(kinds) == sorted(node["class_type"] for node in twin.values())


@pytest.mark.parametrize("path", [*UI, *API], ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_workflows_name_the_embedded_model_of_this_version(path: Path) -> None:
    named = set(re.findall(r"unifusion-tiny-\d+", path.read_text()))

    assert named <= {embedded.NAME}


@pytest.mark.parametrize("path", UI, ids=lambda path: path.stem)
def test_files_that_do_not_come_with_the_pack_are_named_with_their_places(path: Path) -> None:
    """As ComfyUI's box for missing models reads it: file, address and folder stand with the node that loads it."""
    for node in json.loads(path.read_text())["nodes"]:
        if node["type"] in LOADERS:
            file, models = node["widgets_values"][0], node["properties"].get("models", [])
            if embedded.NAME in file:
                assert models == []
            else:
                (model,) = models
                assert model["name"] == file
                assert model["url"].startswith("https://huggingface.co/")
                assert model["url"].endswith(file)
                assert model["directory"] == LOADERS[node["type"]]


def test_no_workflow_needs_a_file_of_this_machine() -> None:
    assert [p.name for p in [*UI, *API] if re.search(r"/(root|home|work|tmp)/", p.read_text())] == []
