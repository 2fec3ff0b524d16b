"""A user error ends as a red node with one sentence: what was given, what is needed, what to do.

pytest tests/comfyui/test_bad_input.py
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from unifusion_core.checkpoints.generator_file import save_generator
from unifusion_core.models.unifusion import UniFusion
from unifusion_core.zoo.tiny import BUILT_IN, TINY

if TYPE_CHECKING:
    from conftest import Comfy, Graph

pytestmark = pytest.mark.comfyui


def truncated(path: Path) -> None:
    path.write_bytes(BUILT_IN.generator.read_bytes()[:200_000])


def renamed_picture(path: Path) -> None:
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(1000))


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"weights": [1, 2, 3]}))


def of_another_kind(path: Path) -> None:
    save_file({"down_blocks.0.weight": np.zeros((4, 4), np.float32)}, str(path))


def with_a_weight_missing(path: Path) -> None:
    from safetensors.numpy import load_file

    weights = load_file(str(BUILT_IN.generator))
    del weights["first.weight"]
    save_file(weights, str(path))


@pytest.mark.parametrize(
    ("make", "name", "words"),
    [
        (
            truncated,
            "truncated.safetensors",
            ["truncated.safetensors", "cut short", "download or save it again"],
        ),
        (
            renamed_picture,
            "picture.safetensors",
            ["picture.safetensors", "not a safetensors file", "download"],
        ),
        (pickled, "pickle.pt", ["pickle.pt", "only safetensors files are opened"]),
        (
            of_another_kind,
            "other.safetensors",
            ["another kind of model", "choose a UniFusion generator file"],
        ),
        (
            with_a_weight_missing,
            "hole.safetensors",
            ["1 weights missing", "first.weight", "download or save it again"],
        ),
    ],
)
def test_a_file_that_is_no_generator(
    comfy: Comfy, graph: Graph, make: Callable[[Path], None], name: str, words: list[str]
) -> None:
    folder = comfy.models_dir / "diffusion_models"
    folder.mkdir(exist_ok=True)
    make(folder / name)
    model = graph.load_model(name)
    graph.add("ModelSave", model=model, filename_prefix="never")
    assert_red_node(comfy, graph, model, words)


def test_the_embedded_model_of_another_version(comfy: Comfy, graph: Graph) -> None:
    graph.add("ModelSave", model=graph.load_model("unifusion-tiny-0 (built in)"), filename_prefix="never")
    told = json.dumps(comfy.run(graph).error)
    assert "came with another version of this pack" in told
    assert "unifusion-tiny-1 (built in)" in told


def test_a_file_that_is_gone(comfy: Comfy, graph: Graph) -> None:
    graph.add("ModelSave", model=graph.load_model("gone.safetensors"), filename_prefix="never")
    told = json.dumps(comfy.run(graph).error)
    assert "there is no" in told
    assert "models/diffusion_models" in told


def copied_vlm(comfy: Comfy, name: str) -> Path:
    folder = comfy.models_dir / "vlm" / name
    shutil.copytree(BUILT_IN.vlm, folder, dirs_exist_ok=True)
    return folder


def test_a_vlm_without_a_tokenizer(comfy: Comfy, graph: Graph) -> None:
    (copied_vlm(comfy, "wordless") / "tokenizer.json").unlink()
    clip = graph.load_clip(graph.load_model(), "wordless")
    graph.add("CLIPTextEncode", text="", clip=clip)
    graph.add("PreviewAny", source=clip)
    assert_red_node(comfy, graph, clip, ["wordless", "no tokenizer", "copy all files"])


def test_a_vlm_that_the_generator_was_not_trained_with(comfy: Comfy, graph: Graph) -> None:
    spec = replace(TINY.config.vlm, num_layers=12, hidden_size=320, taps=(0, 11))
    config = replace(TINY.config, vlm=spec, dit=replace(TINY.config.dit, num_blocks=1))
    folder = comfy.models_dir / "diffusion_models"
    folder.mkdir(exist_ok=True)
    save_generator(UniFusion(config), folder / "wide.safetensors")
    clip = graph.load_clip(graph.load_model("wide.safetensors"))
    graph.add("PreviewAny", source=clip)
    assert_red_node(
        comfy,
        graph,
        clip,
        ["hidden size is 160, 320 is needed", "number of layers is 6, 12 is needed", "Load the VLM"],
    )


def test_a_clip_for_another_generator(comfy: Comfy, graph: Graph) -> None:
    """Both generators fit the VLM, but use different layers of it."""
    spec = replace(TINY.config.vlm, taps=(0, 2))
    config = replace(TINY.config, vlm=spec, dit=replace(TINY.config.dit, num_blocks=1))
    folder = comfy.models_dir / "diffusion_models"
    folder.mkdir(exist_ok=True)
    save_generator(UniFusion(config), folder / "two-taps.safetensors")
    clip = graph.load_clip(graph.load_model("two-taps.safetensors"))
    text = graph.add("CLIPTextEncode", text="", clip=clip)
    samples = graph.sample(graph.load_model(), text, text)
    graph.save_latent(samples)
    assert_red_node(comfy, graph, samples, ["320 wide", "800", "Load UniFusion VLM"])


def test_a_prompt_that_is_too_long(comfy: Comfy, graph: Graph) -> None:
    clip = graph.load_clip(graph.load_model())
    text = graph.add("CLIPTextEncode", text="red circle " * 2000, clip=clip)
    graph.add("PreviewAny", source=text)
    assert_red_node(comfy, graph, text, ["1024", "shorten"])


def assert_red_node(comfy: Comfy, graph: Graph, node: list[Any], words: list[str]) -> None:
    """The run fails at `node` with a sentence that has all `words`."""
    result = comfy.run(graph)
    assert result.status == "error", result.error
    assert result.error["node_id"] == node[0]
    sentence = result.error["exception_message"]
    assert all(word in sentence for word in words), sentence
