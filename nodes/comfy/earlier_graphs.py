"""Graphs in API form that were saved before a node got an input: the input's default is filled in.

A new input is optional, at the end. These two stand between others, where they may not become optional: ComfyUI would move their
widgets, and the widgets' values in saved canvas files have no names. `nodes/web/earlier_graphs.js` reads older canvas files.
"""

from __future__ import annotations

import logging
from typing import Any

from server import PromptServer

from ...unifusion_core.vlm.styles import STYLES

logger = logging.getLogger(__name__)

# by node id
ADDED_LATER: dict[str, dict[str, Any]] = {
    "UniFusionVerifiRewrite": {"style": next(iter(STYLES)), "own_style": ""},
}


def read_earlier_graphs() -> None:
    """From now on every graph that is queued is filled in. Without a server, as in tests, there is none."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.add_on_prompt_handler(filled_in)


def filled_in(request: dict[str, Any]) -> dict[str, Any]:
    """A request with the missing inputs of its graph. What is no graph is left to ComfyUI, which refuses it."""
    graph = request.get("prompt")
    for node in graph.values() if isinstance(graph, dict) else ():
        if isinstance(node, dict) and isinstance(node.get("inputs"), dict):
            added = ADDED_LATER.get(str(node.get("class_type")), {})
            node["inputs"] = added | node["inputs"]
    return request
