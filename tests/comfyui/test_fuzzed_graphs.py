"""Seeded mutations of the shipped workflows cause no crash and no HTTP 500, and every refusal says where and why.

pytest tests/comfyui/test_fuzzed_graphs.py -m slow -s     (prints the table of what became of them)

500 of them, or as many as COMFYUI_COUNT says.
"""

from __future__ import annotations

import copy
import json
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from unifusion_core import errors

if TYPE_CHECKING:
    from conftest import Comfy, RunResult

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]

WORKFLOWS = Path(__file__).parents[2] / "workflows" / "api"
# those that need nothing but the pack
API_GRAPHS = [
    path for path in sorted(WORKFLOWS.glob("*.json")) if "(built in)" in path.read_text(encoding="utf-8")
]
NUM_MUTATIONS, GOOD_EVERY = int(os.environ.get("COMFYUI_COUNT", "500")), 50
NOT_NUMBERS = ("", "one", None, [], {}, [1, 2, 3, 4], {"a": {"b": 1}}, True)
NUMBERS = (-(2**63), -1, 0, 0.5, -0.001, 1e308, 2**63, 2**64, 10**40)
TEXTS = (
    *(
        "../../etc/passwd",
        "/etc/passwd",
        "..\\..\\windows\\win.ini",
        "C:\\secret.safetensors",
        "%2e%2e%2fetc%2fpasswd",
    ),
    *(
        "file:///etc/passwd",
        "a\0b.safetensors",
        "x" * 100_000,
        "한국어 프롬프트",
        "🦊" * 300,
        "\u202eabc",
        "{red|blue",
    ),
    *(
        "<|end|>",
        "<img><IMG_CONTEXT></img>",
        "embedding:../../x",
        "(red circle:1e99)",
        "$(touch /tmp/x)",
        "\n\n\n",
    ),
)
Graph = dict[str, dict[str, Any]]


def change_a_value(rng: random.Random, graph: Graph, values: tuple[Any, ...]) -> str:
    node, name = pick_input(rng, graph, widgets=True)
    value = rng.choice(values)
    graph[node]["inputs"][name] = value
    return f"{graph[node]['class_type']}.{name} = {str(value)[:40]!r}"


def pick_input(rng: random.Random, graph: Graph, *, widgets: bool = False) -> tuple[str, str]:
    """A random input; with `widgets`, one without a link, because ComfyUI passes constants on sockets unchecked."""
    return rng.choice(
        [
            (node, name)
            for node in graph
            for name, value in graph[node]["inputs"].items()
            if not (widgets and isinstance(value, list))
        ]
    )


def other_type(rng: random.Random, graph: Graph) -> str:
    return change_a_value(rng, graph, NOT_NUMBERS)


def other_number(rng: random.Random, graph: Graph) -> str:
    return change_a_value(rng, graph, NUMBERS)


def other_text(rng: random.Random, graph: Graph) -> str:
    return change_a_value(rng, graph, TEXTS)


def missing_input(rng: random.Random, graph: Graph) -> str:
    node, name = pick_input(rng, graph)
    del graph[node]["inputs"][name]
    return f"{graph[node]['class_type']} without {name}"


def missing_node(rng: random.Random, graph: Graph) -> str:
    node = rng.choice(list(graph))
    return f"no {graph.pop(node)['class_type']}"


def crossed_wire(rng: random.Random, graph: Graph) -> str:
    node, name = pick_input(rng, graph)
    target = rng.choice([*graph, "999", node])
    output = rng.choice((0, 0, 0, 1, 2, 7, -1))
    graph[node]["inputs"][name] = [target, output]
    return f"{graph[node]['class_type']}.{name} <- {target}:{output}"


def unknown_input(rng: random.Random, graph: Graph) -> str:
    node = rng.choice(list(graph))
    name = rng.choice(("bogus", "pictures.picture_99", "pictures", "self", "cls", "__class__"))
    graph[node]["inputs"][name] = rng.choice((1, "x"))
    return f"{graph[node]['class_type']} with {name}"


def unknown_class(rng: random.Random, graph: Graph) -> str:
    node = rng.choice(list(graph))
    was = graph[node]["class_type"]
    graph[node]["class_type"] = rng.choice(("NoSuchNode", "", "UniFusionSampler ", "unifusionsampler"))
    return f"{was} as {graph[node]['class_type']!r}"


MUTATIONS: tuple[Callable[[random.Random, Graph], str], ...] = (
    other_type,
    other_number,
    other_text,
    other_text,
    missing_input,
    missing_node,
    crossed_wire,
    crossed_wire,
    unknown_input,
    unknown_class,
)


def short(graph: Graph) -> Graph:
    """The graph with two sampling steps, because the image does not matter here."""
    graph = copy.deepcopy(graph)
    for node in graph.values():
        if "steps" in node["inputs"]:
            node["inputs"]["steps"] = 2
    return graph


def faults(graph: Graph, result: RunResult) -> list[str]:
    """The faults in the server's answer to a mutated graph."""
    if result.status == "success":
        return []
    if result.status == "refused":
        if not (result.error.get("error") or {}).get("message"):
            return [f"refused without a word: {result.error}"]
        found = []
        for node, report in (result.error.get("node_errors") or {}).items():
            for error in report["errors"]:
                if not error["message"] or not (error["details"] or error["extra_info"]):
                    found.append(f"node {node}: refused without saying what: {error}")
        return found
    error = result.error
    kind, words = error.get("exception_type", ""), error.get("exception_message", "").strip()
    if not words or not error["node_id"]:
        return [f"failed without a word: {error}"]
    if graph[error["node_id"]]["class_type"].startswith("UniFusion") and not hasattr(errors, kind):
        return [f"{error['node_type']} failed with {kind}: {words}"]
    return []


def test_mutated_graphs(comfy: Comfy) -> None:
    graphs = {path.stem: short(json.loads(path.read_text(encoding="utf-8"))) for path in API_GRAPHS}
    good = graphs["UniFusion Text to Image with KSampler"]
    (sampler,) = [node for node in good if good[node]["class_type"] == "KSampler"]
    beside = set(comfy.base.parent.iterdir())
    (expected,) = comfy.images(comfy.successful(good))
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    for number in range(NUM_MUTATIONS):
        rng = random.Random(f"fuzz-{number}")
        name = rng.choice(list(graphs))
        graph = copy.deepcopy(graphs[name])
        done = [rng.choice(MUTATIONS)(rng, graph) for _ in range(rng.choice((1, 1, 2, 3))) if graph]
        # raises if the server has crashed or answers with anything but JSON
        result = comfy.run(graph)
        outcomes[result.status] += 1
        wrong += [f"{number} ({name}: {'; '.join(done)}): {fault}" for fault in faults(graph, result)]
        if number % GOOD_EVERY == GOOD_EVERY - 1:
            other = copy.deepcopy(good)
            # so that nothing of the good graph stays cached
            other[sampler]["inputs"]["seed"] += number + 1
            comfy.successful(other)
            again = comfy.successful(good)
            assert sampler in again.executed
            (picture,) = comfy.images(again)
            assert np.array_equal(picture, expected), f"another picture after mutation {number}"
    print(f"\n{NUM_MUTATIONS} mutated graphs: {dict(outcomes)}, {len(wrong)} badly answered")
    outside = set(comfy.base.parent.iterdir()) - beside
    assert not outside, f"written outside of the server's folders: {outside}"
    assert not wrong, "\n".join(wrong)
