"""Every shipped workflow runs unchanged and gives the image of its prompt; its two forms, for API and browser, are equal.

pytest tests/comfyui/test_workflows_run.py

--write-pictures writes the thumbnails of the template browser (workflows/*.jpg) anew.
"""

from __future__ import annotations

import copy
import json
import re
import textwrap
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from unifusion_core.shapes.evaluation.judging import score_pictures
from unifusion_core.shapes.world.captions import parse_caption
from unifusion_core.shapes.world.render import render
from unifusion_core.shapes.world.requirements import Requirement

if TYPE_CHECKING:
    from conftest import Comfy

pytestmark = pytest.mark.comfyui

WORKFLOWS = Path(__file__).parents[2] / "workflows"
EXAMPLES = WORKFLOWS / "input"
API_GRAPHS = sorted((WORKFLOWS / "api").glob("*.json"))
# The others need files that are not installed: their errors are tested here, and test_krea2.py runs them with small files.
EMBEDDED = [path for path in API_GRAPHS if "(built in)" in path.read_text(encoding="utf-8")]
NUM_SEEDS = 5
# captions of the expected pictures, for prompts that are no captions; properties that are left out stay open
EXPECTED = {
    "UniFusion Text to Image with a Rewritten Prompt": "small blue diamond at top left, big red circle at center, "
    "white background.",
    "UniFusion Text to Image in a Style": "big green square at top left, small green star at right, white background.",
    "UniFusion Edit an Image": "small yellow star at top right, big blue circle at left, white background.",
    "UniFusion Look Inside the Layers": "small yellow star at top right, big blue circle at left, white background.",
    "UniFusion Edit a Region": "small yellow star at top right, big red circle at left, big green square at bottom right, "
    "white background.",
    "UniFusion Combine Two Images": "small blue star at top right, big red circle at left, black background.",
    "UniFusion Combine Three Images": "big red circle at left, small blue star at top right, pink background.",
    "UniFusion Vary an Image": "small yellow star at top right, big red circle at left, white background.",
}
# captions of the pictures that the blueprints give with their own values
BLUEPRINTS = {
    "Text to Image (UniFusion)": "big red circle at top left, small blue star at right, black background.",
    "Image Edit (UniFusion)": "big blue circle at left, small yellow star at top right, white background.",
}
# captions of the example images
EDITED, MASKED = "unifusion_circle_and_star", "unifusion_circle_and_star_masked"
SHOWN = {
    EDITED: "big red circle at left, small yellow star at top right, white background.",
    "unifusion_circle": "big red circle at left, white background.",
    "unifusion_star": "small blue star at top right, black background.",
    "unifusion_cross": "big green cross at center, pink background.",
}
# the front end's id for a subgraph's inputs
SUBGRAPH_INPUT = -10
SIZES_OPEN = ("UniFusion Vary an Image",)
# Required share of correct properties (count, background, and shape, colour, size and place of each object). Random pictures
# reach about a third.
FLOOR = 0.9
# thumbnails: pixels, and colours of the rows of a card
SQUARE, SOURCE, MARGIN, ARROW, BOX = 384, 112, 12, 14, 56
DARK, GRAY = (27, 27, 31), (128, 128, 128, 255)
COLORS = ((63, 120, 158), (120, 90, 160), (170, 85, 60))
# mean difference of 255 levels that JPEG compression causes
THUMBNAIL_DIFFERENCE = 3.0
NOTES = ("Note", "MarkdownNote")
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def wanted(graph: dict[str, Any], name: str) -> Requirement:
    """The requirement for the workflow's picture: its entry in EXPECTED, else the one prompt that is a caption."""
    texts = (
        [EXPECTED[name]]
        if name in EXPECTED
        else [node["inputs"].get("text") or node["inputs"].get("prompt") for node in graph.values()]
    )
    (scene,) = [scene for text in texts if text and (scene := parse_caption(text))]
    requirement = Requirement.of(scene)
    if name in SIZES_OPEN:
        return replace(requirement, objects=tuple(replace(o, size=None) for o in requirement.objects))
    return requirement


def share_right(pictures: list[np.ndarray], requirements: list[Requirement]) -> float:
    """The share of the required properties that the pictures show."""
    tally = score_pictures(pictures, requirements)
    rates = [tally.rate(name) for name in ("count", "background", "shape", "color", "size", "position")]
    return sum(rate.right for rate in rates) / sum(rate.total for rate in rates)


def wanted_size(graph: dict[str, Any]) -> tuple[int, int]:
    """The size of the workflow's latent; an edit has its image's."""
    kinds = {node["class_type"]: node["inputs"] for node in graph.values()}
    if latent := kinds.get("EmptySD3LatentImage"):
        return latent["width"], latent["height"]
    with Image.open(EXAMPLES / kinds["LoadImage"]["image"]) as example:
        return example.size


@pytest.mark.parametrize("path", EMBEDDED, ids=lambda path: path.stem)
def test_workflow_draws_its_prompt(comfy: Comfy, trained: bool, path: Path) -> None:
    graph = load(path)
    requirement, (width, height) = wanted(graph, path.stem), wanted_size(graph)
    (last,) = [name for name, node in graph.items() if node["class_type"] == "SaveImage"]
    pictures = []
    for number in range(NUM_SEEDS if trained else 1):
        changed = copy.deepcopy(graph)
        for node in changed.values():
            if "seed" in node["inputs"]:
                node["inputs"]["seed"] += number
        (picture,) = comfy.images(comfy.successful(changed), last)
        assert picture.shape == (height, width, 3)
        pictures.append(picture)
    if trained:
        right = share_right(pictures, [requirement] * NUM_SEEDS)
        assert right >= FLOOR, f"{right:.0%} of what {NUM_SEEDS} pictures should show is right"


@pytest.mark.parametrize(
    "path", [path for path in API_GRAPHS if path not in EMBEDDED], ids=lambda path: path.stem
)
def test_workflow_without_its_files_names_what_is_missing(comfy: Comfy, path: Path) -> None:
    result = comfy.run(load(path))
    assert result.status == "refused"
    said = json.dumps(result.error)
    needed = {
        model["name"]
        for node in load(WORKFLOWS / path.name)["nodes"]
        for model in node["properties"].get("models", [])
    }
    assert len(needed) == 3
    assert [name for name in needed if name not in said] == []
    assert "put it into models/diffusion_models" in said


@pytest.mark.parametrize("path", API_GRAPHS, ids=lambda path: path.stem)
def test_thumbnail_is_what_the_workflow_draws(
    comfy: Comfy, request: pytest.FixtureRequest, path: Path
) -> None:
    """The image; of an edit its source and what becomes of it. For Krea 2, whose files are not here, a card."""
    graph, thumbnail = load(path), WORKFLOWS / f"{path.stem}.jpg"
    expected = thumbnail_of(comfy, graph) if path in EMBEDDED else card(path.stem, graph)
    if request.config.getoption("--write-pictures"):
        expected.save(thumbnail, quality=85)

    with Image.open(thumbnail) as saved:
        assert saved.size == expected.size
        difference = np.abs(np.asarray(saved, dtype=np.float32) - np.asarray(expected)).mean()
    assert difference < THUMBNAIL_DIFFERENCE, f"{thumbnail.name} is stale: pytest {__file__} --write-pictures"


def thumbnail_of(comfy: Comfy, graph: dict[str, Any]) -> Image.Image:
    kinds = {node["class_type"]: name for name, node in graph.items()}
    result = comfy.successful(graph)
    (drawn,) = (Image.fromarray(each) for each in comfy.images(result, kinds["SaveImage"]))
    sources = [
        Image.open(EXAMPLES / node["inputs"]["image"]).convert("RGBA")
        for node in graph.values()
        if node["class_type"] == "LoadImage"
    ]
    if not sources:
        return drawn.resize((2 * drawn.width, 2 * drawn.height), Image.Resampling.LANCZOS)
    if map_of_layers := kinds.get("PreviewImage"):
        # what this workflow is about
        (shown,) = (Image.fromarray(each) for each in comfy.images(result, map_of_layers))
        return before_and_after([*sources, drawn], shown)
    return before_and_after(sources, drawn)


def before_and_after(sources: list[Image.Image], result: Image.Image) -> Image.Image:
    """A square with the sources in a row, an arrow, and the result below. What a mask covers is gray."""
    square = Image.new("RGB", (SQUARE, SQUARE), DARK)
    left = (SQUARE - len(sources) * SOURCE - (len(sources) - 1) * MARGIN) // 2
    for number, source in enumerate(sources):
        small = fitted(source, SOURCE, SOURCE).convert("RGBA")
        on_gray = Image.alpha_composite(Image.new("RGBA", small.size, GRAY), small)
        square.paste(on_gray.convert("RGB"), (left + number * (SOURCE + MARGIN), MARGIN))
    arrow_down(ImageDraw.Draw(square), SQUARE // 2, MARGIN + SOURCE + 6)
    large = fitted(result, SQUARE - 2 * MARGIN, SQUARE - SOURCE - 2 * MARGIN - ARROW - 12)
    square.paste(large, ((SQUARE - large.width) // 2, SQUARE - MARGIN - large.height))
    return square


def card(name: str, graph: dict[str, Any]) -> Image.Image:
    """A drawn card: what goes into the VLM, and that Krea 2 draws from it."""
    kinds = [node["class_type"] for node in graph.values()]
    rewritten = "UniFusionVerifiRewrite" in kinds
    square = Image.new("RGB", (SQUARE, SQUARE), DARK)
    draw = ImageDraw.Draw(square)
    title = textwrap.fill(name.removeprefix("UniFusion Krea 2 "), 20)
    # below the badge that the template browser lays over the corner
    draw.multiline_text((MARGIN, BOX), title, "white", ImageFont.load_default(30), spacing=6)
    inputs = [*["image"] * kinds.count("LoadImage"), "prompt"]
    rows = [inputs, ["Qwen3-VL rewrites" if rewritten else "Qwen3-VL"], ["Krea 2"]]
    font = ImageFont.load_default(22)
    for number, row in enumerate(rows):
        top = SQUARE - (len(rows) - number) * (BOX + ARROW + 12) + ARROW
        width = (SQUARE - (len(row) + 1) * MARGIN) // len(row)
        for place, words in enumerate(row):
            left = MARGIN + place * (width + MARGIN)
            draw.rounded_rectangle((left, top, left + width, top + BOX), 8, fill=COLORS[number])
            draw.text((left + width // 2, top + BOX // 2), words, "white", font, anchor="mm")
        if number < len(rows) - 1:
            arrow_down(draw, SQUARE // 2, top + BOX + 6)
    return square


def fitted(image: Image.Image, width: int, height: int) -> Image.Image:
    """The image, as large as fits."""
    scale = min(width / image.width, height / image.height)
    size = round(image.width * scale), round(image.height * scale)
    return image.resize(size, Image.Resampling.LANCZOS)


def arrow_down(draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
    draw.polygon([(x - ARROW, y), (x + ARROW, y), (x, y + ARROW)], fill="white")


@pytest.mark.parametrize("path", API_GRAPHS, ids=lambda path: path.stem)
def test_form_for_the_browser_says_the_same(comfy: Comfy, path: Path) -> None:
    assert to_api(load(WORKFLOWS / path.name), comfy.object_info()) == {
        name: (node["class_type"], node["inputs"]) for name, node in load(path).items()
    }


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_blueprint_draws(comfy: Comfy, trained: bool, name: str) -> None:
    blueprint = load(WORKFLOWS.parent / "subgraphs" / f"{name}.json")
    graph = {
        node: {"class_type": kind, "inputs": inputs}
        for node, (kind, inputs) in to_api(inside(blueprint), comfy.object_info()).items()
    }
    scene = parse_caption(SHOWN[EDITED])
    assert scene
    Image.fromarray(render(scene, 128, 128)).save(comfy.input_dir / "source.png")
    graph |= {
        "source": {"class_type": "LoadImage", "inputs": {"image": "source.png"}},
        "saved": {
            "class_type": "SaveImage",
            "inputs": {"images": picture_of(blueprint), "filename_prefix": "x"},
        },
    }

    pictures = comfy.images(comfy.successful(graph), "saved")

    expected = parse_caption(BLUEPRINTS[name])
    assert expected
    if trained:
        assert share_right(pictures, [Requirement.of(expected)]) >= FLOOR


def test_blueprints_are_offered(comfy: Comfy) -> None:
    _, found = comfy.request("GET", "/global_subgraphs")
    own = [entry for entry in found.values() if entry["info"]["node_pack"].endswith("comfyui-unifusion")]
    assert {entry["name"] for entry in own} == BLUEPRINTS.keys()


def test_example_images_come_along_and_show_their_captions(comfy: Comfy) -> None:
    assert {path.stem for path in EXAMPLES.iterdir()} == {*SHOWN, MASKED}
    for name, text in SHOWN.items():
        scene = parse_caption(text)
        assert scene
        with Image.open(comfy.input_dir / f"{name}.png") as example:
            assert np.array_equal(np.asarray(example), render(scene, 128, 128))
    with (
        Image.open(comfy.input_dir / f"{MASKED}.png") as example,
        Image.open(EXAMPLES / f"{EDITED}.png") as edited,
    ):
        pixels = np.asarray(example)
        assert np.array_equal(pixels[..., :3], np.asarray(edited))
        hidden = np.zeros((128, 128), dtype=bool)
        hidden[80:, 80:] = True
        assert np.array_equal(pixels[..., 3] == 0, hidden)


def test_example_images_of_the_user_are_left_as_they_are(
    serve: Callable[..., AbstractContextManager[Comfy]], tmp_path: Path
) -> None:
    inputs = tmp_path / "base" / "input"
    inputs.mkdir(parents=True)
    own = inputs / f"{EDITED}.png"
    own.write_bytes(b"of the user")
    with serve(tmp_path / "base"):
        assert own.read_bytes() == b"of the user"
        assert {path.name for path in inputs.glob("*.png")} == {path.name for path in EXAMPLES.iterdir()}


@pytest.mark.parametrize(
    "path",
    [path for path in API_GRAPHS if re.search("Edit|Combine|Vary|Inside", path.stem)],
    ids=lambda path: path.stem,
)
def test_edits_begin_with_load_image(path: Path) -> None:
    kinds = [node["class_type"] for node in load(path).values()]
    assert "LoadImage" in kinds
    assert kinds.count("UniFusionSampler") == 1


@pytest.mark.parametrize("path", API_GRAPHS, ids=lambda path: path.stem)
def test_titles_keep_the_nodes_names(comfy: Comfy, path: Path) -> None:
    """A role may follow the name, so that a node is found in the search and in other workflows."""
    info = comfy.object_info()
    for node in load(WORKFLOWS / path.name)["nodes"]:
        if node["type"] not in NOTES and "title" in node:
            assert node["title"].startswith(info[node["type"]]["display_name"] + ": ")


def test_every_workflow_has_both_forms() -> None:
    assert API_GRAPHS
    assert [path.name for path in API_GRAPHS] == sorted(path.name for path in WORKFLOWS.glob("*.json"))


def inside(blueprint: dict[str, Any]) -> dict[str, Any]:
    """A blueprint's subgraph as a workflow, with its image inputs linked to the node "source"."""
    (subgraph,) = blueprint["definitions"]["subgraphs"]
    fed = {link["id"] for link in subgraph["links"] if link["origin_id"] == SUBGRAPH_INPUT}
    for node in subgraph["nodes"]:
        for socket in node["inputs"]:
            if socket["link"] in fed and "widget" in socket:
                # the widget keeps its own value
                socket["link"] = None
    links = [
        [link["id"], *(("source", 0) if link["id"] in fed else (link["origin_id"], link["origin_slot"]))]
        for link in subgraph["links"]
    ]
    return {"nodes": subgraph["nodes"], "links": links}


def picture_of(blueprint: dict[str, Any]) -> list[Any]:
    """Node and slot of a blueprint's output image."""
    (subgraph,) = blueprint["definitions"]["subgraphs"]
    (socket,) = [socket for socket in subgraph["outputs"] if socket["type"] == "IMAGE"]
    (link,) = [link for link in subgraph["links"] if link["id"] in socket["linkIds"]]
    return [str(link["origin_id"]), link["origin_slot"]]


def to_api(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Nodes and their inputs, converted from the browser's form as the front end does."""
    origins = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    found = {}
    for node in workflow["nodes"]:
        if node["type"] in NOTES:
            continue
        info = object_info[node["type"]]
        values = iter(node.get("widgets_values", []))
        inputs = {
            socket["name"]: origins[socket["link"]] for socket in node["inputs"] if socket["link"] is not None
        }
        for group in ("required", "optional"):
            for name in info["input_order"].get(group, []):
                kind, options = (*info["input"][group][name], {})[:2]
                if isinstance(kind, list) or kind in WIDGETS:
                    value = next(values)
                    # a link into a widget takes precedence
                    inputs.setdefault(name, value)
                    if options.get("control_after_generate") or name in ("seed", "noise_seed"):
                        assert next(values) == "fixed"
        assert not list(values), f"{node['type']} has more widget values than widgets"
        found[str(node["id"])] = (node["type"], inputs)
    return found
