"""Queues a workflow in a running ComfyUI, shows its progress and saves its images:

    pip install websocket-client
    python workflows/api/client.py "workflows/api/UniFusion Text to Image.json" --set 8.seed=7

In your own program, import `draw` from this file.
"""

from __future__ import annotations

import argparse
import json
import struct
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import websocket

# a binary message of ComfyUI: this number, a number for JPEG or PNG, the image
PREVIEW = 1
HEADER = struct.calcsize(">II")


def draw(
    server: str,
    graph: dict[str, Any],
    on_progress: Callable[[str, int, int], None] = lambda node, done, total: None,
    on_preview: Callable[[bytes], None] = lambda image: None,
) -> dict[str, bytes]:
    """Queues a graph in API format at `server` ("127.0.0.1:8188") and waits for it; returns the saved images by file name.

    `on_progress(node, done, total)` is called for tokens and steps, `on_preview(image)` with JPEG or PNG bytes.
    Raises RuntimeError with the server's message if it refuses the graph, fails, or is interrupted.
    """
    client = uuid.uuid4().hex
    listener = websocket.create_connection(f"ws://{server}/ws?clientId={client}")
    try:
        queued = _post(f"http://{server}/prompt", {"prompt": graph, "client_id": client})["prompt_id"]
        done = False
        while not done:
            message = listener.recv()
            if isinstance(message, bytes):
                if struct.unpack_from(">I", message)[0] == PREVIEW:
                    on_preview(message[HEADER:])
                continue
            event = json.loads(message)
            kind, data = event["type"], event["data"]
            if data.get("prompt_id") != queued:
                continue
            if kind == "progress":
                on_progress(graph[data["node"]]["class_type"], data["value"], data["max"])
            elif kind == "execution_error":
                raise RuntimeError(f"{data['node_type']}: {data['exception_message'].strip()}")
            elif kind == "execution_interrupted":
                raise RuntimeError("interrupted")
            done = kind == "executing" and data["node"] is None
    finally:
        listener.close()
    with urllib.request.urlopen(f"http://{server}/history/{queued}") as answer:
        outputs = json.load(answer)[queued]["outputs"]
    saved = [i for out in outputs.values() for i in out.get("images", []) if i["type"] == "output"]
    return {image["filename"]: _view(server, image) for image in saved}


def _post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as refusal:
        told = json.load(refusal)
        details = [
            f"{node['class_type']}: {error['message']}: {error['details']}"
            for node in told["node_errors"].values()
            for error in node["errors"]
        ]
        raise RuntimeError("; ".join(details) or told["error"]["message"]) from None


def _view(server: str, image: dict[str, str]) -> bytes:
    with urllib.request.urlopen(f"http://{server}/view?{urllib.parse.urlencode(image)}") as answer:
        return answer.read()


def _setting(text: str) -> tuple[str, str, Any]:
    """ "8.seed=7" is node 8, input "seed", value 7. A value that is no JSON is a text."""
    name, _, value = text.partition("=")
    node, _, socket = name.partition(".")
    try:
        return node, socket, json.loads(value)
    except json.JSONDecodeError:
        return node, socket, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("workflow", type=Path, help="a file of workflows/api")
    parser.add_argument("--set", metavar="NODE.INPUT=VALUE", type=_setting, action="append", default=[])
    parser.add_argument("--server", default="127.0.0.1:8188")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the images")
    arguments = parser.parse_args()

    graph = json.loads(arguments.workflow.read_text(encoding="utf-8"))
    for node, socket, value in arguments.set:
        graph[node]["inputs"][socket] = value
    images = draw(
        arguments.server,
        graph,
        on_progress=lambda node, done, total: print(f"{node}: {done} of {total}"),
        on_preview=lambda image: print(f"preview of {len(image)} bytes"),
    )
    for name, image in images.items():
        (arguments.out / name).write_bytes(image)
        print(arguments.out / name)


if __name__ == "__main__":
    main()
