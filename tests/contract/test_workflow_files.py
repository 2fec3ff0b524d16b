"""Shipped workflows use known nodes and inputs, and each has its API twin: pytest tests/contract/test_workflow_files.py

Only the files are read; tests/comfyui runs them in a real ComfyUI.
"""

from __future__ import annotations

import json
import re
from itertools import combinations, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from unifusion_core.zoo.tiny import BUILT_IN

if TYPE_CHECKING:
    from conftest import NodeSchema

ROOT = Path(__file__).resolve().parents[2]
UI = sorted((ROOT / "workflows").glob("*.json"))
API = sorted((ROOT / "workflows" / "api").glob("*.json"))
BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))
# the front end's ids for the two edges of a subgraph
INPUT_SIDE, OUTPUT_SIDE = -10, -20
STOCK = {
    "CLIPLoader",
    "CLIPTextEncode",
    "EmptySD3LatentImage",
    "KSampler",
    "LoadImage",
    "PreviewAny",
    "PreviewImage",
    "SaveImage",
    "SetLatentNoiseMask",
    "VAEDecode",
    "VAEEncode",
    "VAELoader",
}
LOADERS = {
    "UniFusionModelLoader": "diffusion_models",
    "UniFusionVLMLoader": "vlm",
    "CLIPLoader": "text_encoders",
    "VAELoader": "vae",
}
# nodes of the front end, which the API form does not have
NOTES = {"MarkdownNote", "Note"}
# height of a node's title, which is above its position
TITLE = 30
# bytes
MAX_THUMBNAIL = 30_000


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


@pytest.mark.parametrize("path", [*UI, *API, *BLUEPRINTS], ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_workflows_name_the_embedded_model_of_this_version(path: Path) -> None:
    named = set(re.findall(r"unifusion-tiny-\d+", path.read_text()))

    assert named <= {BUILT_IN.name}


@pytest.mark.parametrize("path", UI, ids=lambda path: path.stem)
def test_files_that_do_not_come_with_the_pack_are_named_with_their_places(path: Path) -> None:
    """In the form of ComfyUI's dialog for missing models: name, address and folder at the node that loads the file."""
    for node in json.loads(path.read_text())["nodes"]:
        if node["type"] in LOADERS:
            file, models = node["widgets_values"][0], node["properties"].get("models", [])
            if BUILT_IN.name in file:
                assert models == []
            else:
                (model,) = models
                assert model["name"] == file
                assert model["url"].startswith("https://huggingface.co/")
                assert model["url"].endswith(f"/{LOADERS[node['type']]}/{file}")
                assert model["directory"] == LOADERS[node["type"]]


def test_no_workflow_needs_a_file_of_this_machine() -> None:
    assert [
        p.name for p in [*UI, *API, *BLUEPRINTS] if re.search(r"/(root|home|work|tmp)/", p.read_text())
    ] == []


def nodes_of(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["nodes"]


def box_of(node: dict[str, Any]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a node with its title."""
    (left, top), (width, height) = node["pos"], node["size"]
    return left, top - TITLE, left + width, top + (0 if node["flags"].get("collapsed") else height)


def groups_of(path: Path) -> list[tuple[str, tuple[float, float, float, float]]]:
    """Titles and boxes of the groups, in the order of the file."""
    return [
        (group["title"], (x, y, x + width, y + height))
        for group in json.loads(path.read_text())["groups"]
        for x, y, width, height in [group["bounding"]]
    ]


@pytest.mark.parametrize("path", UI, ids=lambda path: path.stem)
def test_the_template_browser_finds_it_by_the_packs_name_and_shows_its_picture(path: Path) -> None:
    thumbnail = path.with_suffix(".jpg")

    # the template browser searches file names, and shows them as titles
    assert path.name.startswith("UniFusion ")
    assert thumbnail.stat().st_size <= MAX_THUMBNAIL
    with Image.open(thumbnail) as picture:
        assert picture.format == "JPEG"


@pytest.mark.parametrize("path", UI, ids=lambda path: path.stem)
def test_one_note_stands_first_and_says_in_three_sentences_what_to_change(path: Path) -> None:
    (note,) = [node for node in nodes_of(path) if node["type"] in NOTES]
    without_examples = re.sub(r"\*+[^*]+\*+", "x", note["widgets_values"][0])

    assert note["title"] == "What to change"
    assert len(re.findall(r"[.!?](?=\s|$)", without_examples)) == 3
    left, top, _, bottom = box_of(note)
    assert all(left <= box_of(node)[0] for node in nodes_of(path))
    assert all(top <= node_top for _, node_top, _, _ in map(box_of, nodes_of(path)))
    assert all(bottom <= y for _, (x, y, _, _) in groups_of(path) if x == left)


@pytest.mark.parametrize("path", UI, ids=lambda path: path.stem)
def test_numbered_groups_read_from_left_to_right_and_hold_every_node(path: Path) -> None:
    groups = groups_of(path)

    assert [title.split(".")[0] for title, _ in groups] == [str(i + 1) for i in range(len(groups))]
    for (_, box), (_, following) in pairwise(groups):
        assert box[2] <= following[0]
    for node in nodes_of(path):
        left, top, right, bottom = box_of(node)
        around = [
            title
            for title, (x, y, end, floor) in groups
            if x <= left and right <= end and y <= top and bottom <= floor
        ]
        assert len(around) == (node["type"] not in NOTES), f"node {node['id']} stands in {around}"


@pytest.mark.parametrize("path", UI, ids=lambda path: path.stem)
def test_no_node_covers_another(path: Path) -> None:
    for one, other in combinations(nodes_of(path), 2):
        a, b = box_of(one), box_of(other)
        apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        assert apart, f"nodes {one['id']} and {other['id']}"


def test_blueprints_of_the_usual_chains_are_there() -> None:
    assert [path.stem for path in BLUEPRINTS] == ["Image Edit (UniFusion)", "Text to Image (UniFusion)"]


@pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda path: path.stem)
def test_a_blueprint_is_one_node_whose_wires_meet(path: Path, own_nodes: dict[str, NodeSchema]) -> None:
    file = json.loads(path.read_text())
    (shown,), (subgraph,) = file["nodes"], file["definitions"]["subgraphs"]
    nodes = {node["id"]: node for node in subgraph["nodes"]}
    starts = {
        INPUT_SIDE: [socket["linkIds"] for socket in subgraph["inputs"]],
        **{i: [socket["links"] or [] for socket in node["outputs"]] for i, node in nodes.items()},
    }
    ends = {
        OUTPUT_SIDE: [socket["linkIds"][0] for socket in subgraph["outputs"]],
        **{i: [socket["link"] for socket in node["inputs"]] for i, node in nodes.items()},
    }

    assert shown["type"] == subgraph["id"]
    assert shown["title"] == subgraph["name"] == path.stem
    for side in ("inputs", "outputs"):
        assert [s["name"] for s in shown[side]] == [s["name"] for s in subgraph[side]]
    assert {node["type"] for node in nodes.values()} <= own_nodes.keys() | STOCK
    assert subgraph["description"]
    for link in subgraph["links"]:
        assert link["id"] in starts[link["origin_id"]][link["origin_slot"]]
        assert link["id"] == ends[link["target_id"]][link["target_slot"]]


def test_a_node_has_the_same_widgets_in_all_workflows_and_blueprints() -> None:
    """So a widget that is new is added to all of them; tests/comfyui compares them with the node itself."""
    files = {path.stem: json.loads(path.read_text()) for path in (*UI, *BLUEPRINTS)}
    widgets: dict[str, dict[tuple[str, ...], str]] = {}
    for name, file in files.items():
        subgraphs = file.get("definitions", {}).get("subgraphs", [])
        for node in [*file["nodes"], *(inner for each in subgraphs for inner in each["nodes"])]:
            if node["type"].startswith("UniFusion"):
                own = tuple(sorted(socket["name"] for socket in node["inputs"] if "widget" in socket))
                widgets.setdefault(node["type"], {})[own] = name
    assert len(widgets) > 5
    assert {kind: found for kind, found in widgets.items() if len(found) > 1} == {}
