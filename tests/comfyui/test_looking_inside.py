"""Inspect UniFusion Layers and layer gains on the canvas: pytest tests/comfyui/test_looking_inside.py"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from conftest import Comfy, Graph

pytestmark = pytest.mark.comfyui


def drawn_with(graph: Graph, layer_gains: str | None) -> dict[str, list[Any]]:
    """A small image whose prompt is pooled with `layer_gains`, or without that input if None; returns the nodes by name."""
    model = graph.load_model()
    features = graph.add(
        "UniFusionImageEncode", clip=graph.load_clip(model), prompt="big red circle.", max_tiles=1
    )
    gains = {} if layer_gains is None else {"layer_gains": layer_gains}
    pooled = graph.add("UniFusionLAPPool", model=model, features=features, **gains)
    samples = graph.sample(model, pooled, pooled, cfg=1.0, seed=7301)
    graph.save_picture(samples)
    return {"model": model, "features": features, "pooled": pooled, "samples": samples}


def test_gains_change_the_picture_and_run_nothing_before_the_pooling(comfy: Comfy, graph: Graph) -> None:
    pictures = {}
    for gains in (None, "", "1, 1, 1, 1, 1", "0: 0, 1: 2"):
        graph.clear()
        nodes = drawn_with(graph, gains)
        result = comfy.successful(graph)
        (pictures[gains],) = comfy.images(result)
        if gains == "0: 0, 1: 2":
            assert nodes["features"][0] in result.cached
            assert {nodes["pooled"][0], nodes["samples"][0]} <= set(result.executed)

    assert np.array_equal(pictures[""], pictures[None])
    assert np.array_equal(pictures["1, 1, 1, 1, 1"], pictures[None])
    assert np.abs(pictures["0: 0, 1: 2"].astype(int) - pictures[None]).max() > 10


@pytest.mark.parametrize(
    ("gains", "words"),
    [
        ("1, 2", ["2 layer gains", "reads 5 layers (0, 1, 2, 3, 5)"]),
        ("4: 0.5", ['no layer "4"']),
        ("much", ['"much" is not a number']),
    ],
)
def test_gains_that_are_none_make_a_red_node(
    comfy: Comfy, graph: Graph, gains: str, words: list[str]
) -> None:
    pooled = drawn_with(graph, gains)["pooled"]

    result = comfy.run(graph)

    assert result.status == "error"
    assert result.error["node_id"] == pooled[0]
    assert all(word in result.error["exception_message"] for word in words), result.error["exception_message"]


def test_the_map_and_the_table_stand_beside_a_drawing(comfy: Comfy, graph: Graph) -> None:
    nodes = drawn_with(graph, "")
    seen = graph.add("UniFusionLAPInspect", model=nodes["model"], features=nodes["features"])
    shown = graph.add("PreviewImage", images=seen)
    told = graph.add("PreviewAny", source=[seen[0], 1])

    result = comfy.successful(graph)

    (picture,) = comfy.images(result, shown[0])
    assert picture.shape[1] > 900
    # neither empty nor full
    assert 0.2 < (picture < 250).any(-1).mean() < 0.8
    (table,) = result.outputs[told[0]]["text"]
    words = [line.split()[0] for line in table.splitlines() if "prompt" in line]
    assert words == ["big", "red", "circle", "."]
