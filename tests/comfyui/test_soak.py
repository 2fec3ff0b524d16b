"""Prompts of every kind in a row on one server: memory, open files, threads and times do not grow.

pytest tests/comfyui/test_soak.py -m slow -s     (prints the table)

300 of them, or as many as COMFYUI_COUNT says: the workflows, a batch, LoRAs, other weights, a sampled rewrite, and prompts
that are refused, end in an error or are interrupted.
"""

from __future__ import annotations

import copy
import json
import os
import random
import statistics
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from unifusion_core.zoo.tiny import BUILT_IN

if TYPE_CHECKING:
    from conftest import Comfy

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]

WORKFLOWS = Path(__file__).parents[2] / "workflows" / "api"
# those that need nothing but the pack
API_GRAPHS = [
    path for path in sorted(WORKFLOWS.glob("*.json")) if "(built in)" in path.read_text(encoding="utf-8")
]
NUM_PROMPTS = int(os.environ.get("COMFYUI_COUNT", "300"))
# prompts after which memory must be flat: until then kinds follow each other for the first time, and caches fill to their bounds
WARM_UP = NUM_PROMPTS // 3
# prompts over which memory, files and threads are averaged, because each kind of prompt leaves them differently
WINDOW = 40
MEMORY_GROWTH, TIME_GROWTH = 1.05, 1.10


def state(process_id: int) -> dict[str, int]:
    """Resident memory in MiB, open files and threads of a process."""
    process = Path(f"/proc/{process_id}")
    fields = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    return {
        "memory": int(fields["VmRSS"].split()[0]) // 1024,
        "files": len(list((process / "fd").iterdir())),
        "threads": int(fields["Threads"]),
    }


def typical(states: list[dict[str, int]]) -> dict[str, int]:
    """The median of each number over the first `WINDOW` states."""
    return {name: int(statistics.median(each[name] for each in states[:WINDOW])) for name in states[0]}


Graph = dict[str, dict[str, Any]]
# how prompts end that are not drawn
ENDS = {
    "refused": {"refused"},
    "ends in an error": {"error"},
    # it may be done before the interrupt arrives
    "interrupted": {"interrupted", "success"},
}


def all_graphs() -> dict[str, Graph]:
    """The workflows, and variants of one by the name of what they try."""
    graphs = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in API_GRAPHS}
    plain = graphs["UniFusion Text to Image with KSampler"]
    (model,) = [name for name, node in plain.items() if node["class_type"] == "UniFusionModelLoader"]

    def changed(graph: Graph = plain, **inputs: Any) -> Graph:
        graph = copy.deepcopy(graph)
        for node in graph.values():
            node["inputs"] |= {name: value for name, value in inputs.items() if name in node["inputs"]}
        return graph

    def behind_the_model(kind: str, **inputs: Any) -> Graph:
        """The plain graph with a node between the model and what takes it."""
        graph = changed()
        for node in graph.values():
            for name, value in node["inputs"].items():
                if value == [model, 0]:
                    node["inputs"][name] = ["between", 0]
        return graph | {"between": {"class_type": kind, "inputs": {"model": [model, 0], **inputs}}}

    written = changed()
    (clip,) = [name for name, node in plain.items() if node["class_type"] == "UniFusionVLMLoader"]
    written["rewrite"] = {
        "class_type": "UniFusionVerifiRewrite",
        "inputs": {"clip": [clip, 0], "prompt": "a ball in the snow", "max_tiles": 1, "style": "caption"}
        | {"own_style": "", "locked_text": "", "seed": 0, "temperature": 0.5, "max_new_tokens": 128}
        | {"states": "automatic"},
    }
    written["shown"] = {"class_type": "PreviewAny", "inputs": {"source": ["rewrite", 1]}}
    return graphs | {
        "a batch": changed(batch_size=3),
        "a LoRA": behind_the_model("UniFusionLoraLoader", lora="soak.safetensors", strength=0.5),
        "a LoRA by the stock loader": behind_the_model(
            "LoraLoaderModelOnly", lora_name="soak.safetensors", strength_model=0.5
        ),
        "weights in bf16": changed(weight_dtype="bf16"),
        "a sampled rewrite": written,
        "refused": changed(file="absent.safetensors"),
        "ends in an error": changed(graphs["UniFusion Text to Image"], cfg=0.0),
        "interrupted": changed(steps=200),
    }


def save_lora(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with safe_open(BUILT_IN.generator, "pt") as file:
        rows, columns = file.get_slice("blocks.1.attn.wq.weight").get_shape()
    numbers = torch.Generator().manual_seed(0)
    sides = {
        f"diffusion_model.blocks.1.attn.wq.lora_{side}.weight": torch.randn(shape, generator=numbers) * 0.01
        for side, shape in (("A", (2, columns)), ("B", (rows, 2)))
    }
    save_file(sides, folder / "soak.safetensors")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="reads /proc, which only Linux has")
def test_prompts_in_a_row(comfy: Comfy) -> None:
    save_lora(comfy.models_dir / "loras")
    graphs = all_graphs()
    names = sorted(graphs)
    rng = random.Random("soak")
    seconds: dict[str, list[float]] = defaultdict(list)
    states: list[dict[str, int]] = []
    for number in range(NUM_PROMPTS):
        name = names[number % len(names)] if number < len(names) else rng.choice(names)
        graph = with_seed(graphs[name], number)
        if name in ENDS:

            def interrupt(event: dict[str, Any], name: str = name) -> None:
                if name == "interrupted" and event["type"] == "progress":
                    comfy.interrupt()

            assert comfy.run(graph, on_event=interrupt).status in ENDS[name], name
        else:
            seconds[name].append(comfy.successful(graph).seconds)
        # ComfyUI keeps the graphs of its last 10,000 prompts
        comfy.request("POST", "/history", {"clear": True})
        states.append(state(comfy.process_id))
    print()
    for begin in range(0, NUM_PROMPTS, 100):
        print(f"from prompt {begin} {typical(states[begin:])}")
    warm, end = typical(states[WARM_UP:]), typical(states[-WINDOW:])
    print(f"up to prompt {NUM_PROMPTS} {end}")
    growth = {}
    for name, times in seconds.items():
        half = len(times) // 2
        # the lower quartile, because other processes only make times longer
        first, last = (statistics.quantiles(part)[0] for part in (times[1:half], times[half:]))
        growth[name] = last / first
        print(f"  {name}: {len(times)} prompts, {first:.2f} s in the first half, {last:.2f} s in the second")
    assert end["memory"] <= MEMORY_GROWTH * warm["memory"]
    assert end["files"] <= warm["files"]
    assert end["threads"] <= warm["threads"]
    assert statistics.median(growth.values()) <= TIME_GROWTH


def with_seed(graph: dict[str, Any], seed: int) -> dict[str, Any]:
    """The workflow with another seed, so that it runs again."""
    graph = copy.deepcopy(graph)
    for node in graph.values():
        if "seed" in node["inputs"]:
            node["inputs"]["seed"] = seed
    return graph
