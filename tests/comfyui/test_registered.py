"""The pack as a new user sees it: it loads without errors, everything is explained, templates are listed.

pytest tests/comfyui/test_registered.py
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Comfy

pytestmark = pytest.mark.comfyui

NODES = (
    "UniFusionModelLoader",
    "UniFusionVLMLoader",
    "UniFusionLoraLoader",
    "UniFusionImageEncode",
    "UniFusionVerifiRewrite",
    "UniFusionPictureStrength",
    "UniFusionLAPPool",
    "UniFusionFeaturesToKrea2",
    "UniFusionLAPInspect",
    "UniFusionSampler",
    "UniFusionSchedule",
    "UniFusionLatentFromReference",
)


KINDS = ("loaders", "conditioning", "sampling", "latent")


@pytest.fixture(scope="module")
def nodes(comfy: Comfy) -> dict[str, Any]:
    return {name: node for name, node in comfy.object_info().items() if name.startswith("UniFusion")}


def test_the_pack_is_imported_without_complaint(comfy: Comfy) -> None:
    log = comfy.log()
    assert "comfyui-unifusion" in log
    # ComfyUI's own nodes may lack packages of theirs
    assert not [line for line in log.splitlines() if "IMPORT FAILED" in line and "unifusion" in line]
    assert "Error while calling comfy_entrypoint" not in log
    # ComfyUI logs this for an attribute that a model lacks
    assert "you accessed" not in log


def test_all_nodes_are_there(nodes: dict[str, Any]) -> None:
    assert set(NODES) <= set(nodes)


def test_everything_is_explained(nodes: dict[str, Any]) -> None:
    for name, node in nodes.items():
        # beside ComfyUI's own nodes of the same kind
        assert node["category"] in {f"{kind}/UniFusion" for kind in KINDS}
        assert node["display_name"] != name
        assert node["description"]
        assert node["search_aliases"]
        assert all(node["output_tooltips"]), name
        for group in node["input"].values():
            for socket, (_, options) in group.items():
                assert options.get("tooltip"), f"{name}.{socket}"


def test_help_pages_are_served_with_their_pictures(comfy: Comfy, nodes: dict[str, Any]) -> None:
    """At the addresses that the front end uses, with the inputs and outputs that ComfyUI lists."""
    for name, node in nodes.items():
        folder = "/extensions/" + node["python_module"].removeprefix("custom_nodes.") + "/docs/"
        page = comfy.download(f"{folder}{name}.md").decode()
        sockets = [socket for group in node["input"].values() for socket in group] + node["output_name"]
        assert [socket for socket in sockets if f"| `{socket}` |" not in page] == [], name
        (picture,) = re.findall(r"!\[.+\]\((.+)\)", page)
        assert comfy.download(folder + picture).startswith(b"RIFF")
        # tests/contract/test_help_translated.py compares it with the English one
        assert f"(pictures/{name}.webp)" in comfy.download(f"{folder}{name}/ko.md").decode()


def test_the_embedded_parts_stand_in_the_drop_downs(comfy: Comfy, nodes: dict[str, Any]) -> None:
    vaes = comfy.object_info()["VAELoader"]["input"]["required"]["vae_name"][0]
    assert [name for name in vaes if "unifusion" in name] == ["unifusion-tiny-1-vae.safetensors"]
    for name, socket in (("UniFusionModelLoader", "file"), ("UniFusionVLMLoader", "folder")):
        options = nodes[name]["input"]["required"][socket][1]
        assert options["default"] == options["options"][0] == "unifusion-tiny-1 (built in)"


def test_a_vlm_folder_appears_without_a_restart(comfy: Comfy) -> None:
    folder = comfy.models_dir / "vlm" / "maker" / "some-vlm"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    options = comfy.object_info()["UniFusionVLMLoader"]["input"]["required"]["folder"][1]["options"]
    assert "maker/some-vlm" in options


def test_workflows_are_offered_as_templates(comfy: Comfy) -> None:
    _, templates = comfy.request("GET", "/workflow_templates")
    assert {"UniFusion Text to Image", "UniFusion Edit an Image", "UniFusion Look Inside the Layers"} <= set(
        templates["comfyui-unifusion"]
    )
