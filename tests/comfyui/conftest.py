"""Runs the tests of this folder against a real ComfyUI server on the CPU: pytest tests/comfyui

The ComfyUI is the one in COMFYUI_DIR, else the one in ~/comfy/ComfyUI, where comfy-cli installs it. Without one these tests are
skipped. With REQUIRE_COMFYUI=1 they fail instead, so that a CI run cannot pass by testing nothing. COMFYUI_PATIENCE=10 multiplies
all time limits by ten, for busy machines. COMFYUI_COUNT says how many prompts, graphs or files the slow checks try.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from PIL import Image

PACK = Path(__file__).resolve().parents[2]
PATIENCE = int(os.environ.get("COMFYUI_PATIENCE", "1"))
START_LIMIT_SECONDS = 180 * PATIENCE
FOLDERS = ("custom_nodes", "models", "input", "output", "temp", "user")
FLAGS = [
    *("--cpu", "--disable-auto-launch", "--disable-api-nodes"),
    *("--preview-method", "latent2rgb"),
    *("--listen", "127.0.0.1"),
    # otherwise ComfyUI writes a database file into its folder
    *("--database-url", "sqlite:///:memory:"),
]
# "passive", because two busy-waiting OpenMP pools slow each other down tenfold on a few cores. The caller's environment takes
# precedence.
ENVIRONMENT = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive", "PYTHONUNBUFFERED": "1"}
BUILT_IN = "unifusion-tiny-1 (built in)"
BUILT_IN_VAE = "unifusion-tiny-1-vae.safetensors"
# ComfyUI's protocol.py: BinaryEventTypes.PREVIEW_IMAGE_WITH_METADATA
PREVIEW_WITH_METADATA = 4


@dataclass
class Preview:
    """A preview image that a node sent while it was running."""

    node: str
    # uint8, height x width x 3
    image: np.ndarray


@dataclass
class RunResult:
    """The result of one prompt, as a browser sees it."""

    # "success", "error", "interrupted"; "refused" is an HTTP 400
    status: str = "refused"
    # the HTTP 400's body, or the exception
    error: dict[str, Any] = field(default_factory=dict)
    # {"type", "data"}, in order
    events: list[dict[str, Any]] = field(default_factory=list)
    previews: list[Preview] = field(default_factory=list)
    # the history's, by node id
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: float = 0.0

    def of_type(self, kind: str) -> list[dict[str, Any]]:
        """The data of all events of one type, such as "progress"."""
        return [event["data"] for event in self.events if event["type"] == kind]

    @property
    def executed(self) -> list[str]:
        """The nodes that ran, in order. A lazy node is announced more than once and counts once."""
        return list(dict.fromkeys(d["node"] for d in self.of_type("executing") if d["node"]))

    @property
    def cached(self) -> list[str]:
        """The nodes whose results came from the cache."""
        return [node for data in self.of_type("execution_cached") for node in data["nodes"]]


@dataclass
class Comfy:
    """A running ComfyUI server, its folders and its log."""

    port: int
    base: Path
    process_id: int = 0

    @property
    def input_dir(self) -> Path:
        """The folder of LoadImage; no upload is needed."""
        return self.base / "input"

    @property
    def models_dir(self) -> Path:
        """The models folder. Files added to its subfolders (vae, loras, ...) are found without a restart."""
        return self.base / "models"

    def log(self) -> str:
        """The server's log without colours. Output of print() is not in it, because ComfyUI buffers that."""
        text = (self.base / "server.log").read_text(encoding="utf-8", errors="replace")
        return re.sub(r"\x1b\[[0-9;]*m", "", text)

    def request(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """One HTTP request: (status, decoded JSON or None)."""
        # http.client, because urllib would send even this through an HTTP_PROXY.
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read()
            return response.status, json.loads(text) if text else None
        finally:
            connection.close()

    def download(self, path: str) -> bytes:
        """A file fetched as the front end does; fails if it does not exist."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            assert response.status == 200, f"{path}: {response.status}"
            return response.read()
        finally:
            connection.close()

    def object_info(self) -> dict[str, Any]:
        """All node definitions, as the front end gets them."""
        return self.request("GET", "/object_info")[1]

    def interrupt(self) -> None:
        """Stop the running prompt, as the front end's cancel button does."""
        self.request("POST", "/interrupt", {})

    def wait_for(self, prompt_id: str, timeout: float = 120 * PATIENCE) -> None:
        """Waits until a prompt that another program queued is done."""
        deadline = time.monotonic() + timeout
        while prompt_id not in self.request("GET", f"/history/{prompt_id}")[1]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"prompt not done in time:\n{self.log()[-3000:]}")
            time.sleep(0.2)

    def run(
        self,
        api_graph: dict[str, Any],
        extra_data: dict[str, Any] | None = None,
        on_event: Callable[[dict[str, Any]], None] | None = None,
        timeout: float = 120 * PATIENCE,
    ) -> RunResult:
        """Queue a graph in API format and listen until the server is done with it.

        on_event gets each event as it arrives, for tests that act during a run.
        """
        # imported here, because collecting the tests must not need it
        import websocket

        result, client = RunResult(), uuid.uuid4().hex
        started = time.monotonic()
        listener = websocket.create_connection(
            f"ws://127.0.0.1:{self.port}/ws?clientId={client}", timeout=timeout
        )
        try:
            # Previews carry their node's id only for clients that ask, in their first message.
            flags = {"supports_preview_metadata": True}
            listener.send(json.dumps({"type": "feature_flags", "data": flags}))
            while json.loads(listener.recv())["type"] != "feature_flags":
                pass
            prompt = {"prompt": api_graph, "client_id": client, "extra_data": extra_data or {}}
            status, body = self.request("POST", "/prompt", prompt)
            if status != 200:
                result.error = body
                return result
            for event in self._events(listener, result, started + timeout):
                result.events.append(event)
                if event["data"].get("prompt_id") == body["prompt_id"]:
                    kind = event["type"]
                    if kind in ("execution_success", "execution_error", "execution_interrupted"):
                        result.status = kind.removeprefix("execution_")
                    if kind == "execution_error":
                        result.error = event["data"]
                    # Sent after the result went into the history, unlike the three above.
                    if kind == "executing" and event["data"]["node"] is None:
                        break
                if on_event:
                    on_event(event)
        finally:
            listener.close()
        result.seconds = time.monotonic() - started
        history = self.request("GET", f"/history/{body['prompt_id']}")[1]
        result.outputs = history[body["prompt_id"]]["outputs"]
        return result

    def _events(self, listener: Any, result: RunResult, deadline: float) -> Iterator[Any]:
        """The server's JSON events; previews between them are added to the result."""
        import websocket

        while True:
            listener.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                message = listener.recv()
            except websocket.WebSocketTimeoutException:
                # so that the next test does not wait behind this prompt
                self.interrupt()
                raise TimeoutError(f"prompt not done in time:\n{self.log()[-3000:]}") from None
            if isinstance(message, str):
                yield json.loads(message)
            elif struct.unpack_from(">I", message)[0] == PREVIEW_WITH_METADATA:
                size = struct.unpack_from(">I", message, 4)[0]
                metadata = json.loads(message[8 : 8 + size])
                pixels = Image.open(io.BytesIO(message[8 + size :])).convert("RGB")
                result.previews.append(Preview(metadata["node_id"], np.asarray(pixels)))

    def images(self, result: RunResult, node: str | None = None) -> list[np.ndarray]:
        """The images that a run, or one of its nodes, saved or previewed: uint8, height x width x 3."""
        outputs = result.outputs.values() if node is None else [result.outputs[node]]
        items = [item for out in outputs for item in out.get("images", [])]
        paths = [self.base / item["type"] / item["subfolder"] / item["filename"] for item in items]
        return [np.asarray(Image.open(path).convert("RGB")) for path in paths]

    def latents(self, result: RunResult) -> list[np.ndarray]:
        """The latents a run saved, one array per SaveLatent node."""
        from safetensors.numpy import load_file

        items = [item for out in result.outputs.values() for item in out.get("latents", [])]
        paths = [self.base / item["type"] / item["subfolder"] / item["filename"] for item in items]
        return [load_file(str(path))["latent_tensor"] for path in paths]

    def successful(self, api_graph: dict[str, Any], **options: Any) -> RunResult:
        """`run` for graphs that must succeed; fails with the server's message."""
        result = self.run(api_graph, **options)
        if result.status != "success":
            told = result.error.get("exception_message") or json.dumps(result.error)
            pytest.fail(f"{result.status}: {told}\n{self.log()[-3000:]}", pytrace=False)
        return result


def _give_up(reason: str) -> NoReturn:
    if os.environ.get("REQUIRE_COMFYUI") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_ready(server: Comfy, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_LIMIT_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if server.request("GET", "/system_stats")[0] == 200:
                return
        except OSError:
            time.sleep(0.2)
    state = "is still starting" if process.poll() is None else f"exited with {process.returncode}"
    pytest.fail(f"ComfyUI {state}; its log ends with:\n{server.log()[-5000:]}", pytrace=False)


class Graph(dict[str, Any]):
    """A graph in API format, built node by node."""

    def add(self, class_type: str, **inputs: Any) -> list[Any]:
        """Adds a node and returns its first output, which is an input of other nodes."""
        number = str(len(self) + 1)
        # pictures__picture_1=... is the dotted name pictures.picture_1
        named = {name.replace("__", "."): value for name, value in inputs.items()}
        self[number] = {"class_type": class_type, "inputs": named}
        return [number, 0]

    def load_model(self, file: str = BUILT_IN, weight_dtype: str = "default") -> list[Any]:
        """The generator, the tiny one by default."""
        return self.add("UniFusionModelLoader", file=file, weight_dtype=weight_dtype)

    def load_clip(self, model: list[Any], folder: str = BUILT_IN) -> list[Any]:
        """The VLM for a generator."""
        return self.add("UniFusionVLMLoader", folder=folder, model=model, dtype="default")

    def empty_latent(self, width: int = 128, height: int = 128, batch_size: int = 1) -> list[Any]:
        """An empty latent."""
        return self.add("EmptySD3LatentImage", width=width, height=height, batch_size=batch_size)

    def sample(self, model: list[Any], positive: list[Any], negative: list[Any], **changes: Any) -> list[Any]:
        """Stock KSampler with 4 steps; `changes` replaces any of its inputs. The steps divide 1000, which makes the "simple"
        schedule uniform."""
        inputs = {
            "seed": 1,
            "steps": 4,
            "cfg": 2.5,
            "sampler_name": "euler",
            "scheduler": "simple",
            "denoise": 1.0,
        }
        inputs |= {"model": model, "positive": positive, "negative": negative} | changes
        if "latent_image" not in inputs:
            inputs["latent_image"] = self.empty_latent()
        return self.add("KSampler", **inputs)

    def save_latent(self, samples: list[Any]) -> None:
        """Latents for exact comparisons, see `Comfy.latents`."""
        self.add("SaveLatent", samples=samples, filename_prefix="latent")

    def save_picture(self, samples: list[Any], prefix: str = "picture") -> None:
        """Decode with the tiny VAE and save, see `Comfy.images`."""
        vae = self.add("VAELoader", vae_name=BUILT_IN_VAE)
        self.add("SaveImage", images=self.add("VAEDecode", samples=samples, vae=vae), filename_prefix=prefix)


@pytest.fixture
def new_graph() -> Callable[[], Graph]:
    """Makes empty graphs."""
    return Graph


@pytest.fixture
def graph(new_graph: Callable[[], Graph]) -> Graph:
    """An empty graph."""
    return new_graph()


@pytest.fixture(scope="session")
def trained() -> bool:
    """Whether the built-in generator is trained: its file then names the recipe."""
    from unifusion_core.checkpoints.generator_file import GeneratorFile

    return "recipe" in GeneratorFile("tiny").training


@pytest.fixture(scope="session")
def comfyui_home() -> Path:
    """The folder of a ComfyUI."""
    home = Path(os.environ.get("COMFYUI_DIR") or Path.home() / "comfy" / "ComfyUI").absolute()
    if not (home / "main.py").is_file():
        _give_up(f"no ComfyUI in {home}: set COMFYUI_DIR to a folder that has its main.py")
    return home


@pytest.fixture(scope="session")
def comfyui_python(comfyui_home: Path) -> str:
    """The Python that runs ComfyUI: that of its own environment, if it has one."""
    python = comfyui_home / ".venv" / "bin" / "python"
    return str(python) if python.exists() else sys.executable


@contextmanager
def serving(
    home: Path,
    python: str,
    base: Path,
    *,
    pack: Path = PACK,
    name: str = "comfyui-unifusion",
    flags: Sequence[str] = (),
) -> Iterator[Comfy]:
    """A ComfyUI server in the folder `base` with one pack, installed under `name`. Files that `base` already has are kept."""
    for folder in FOLDERS:
        (base / folder).mkdir(parents=True, exist_ok=True)
    installed = base / "custom_nodes" / name
    if not installed.exists():
        installed.symlink_to(pack, target_is_directory=True)

    server = Comfy(_free_port(), base)
    command = [python, "main.py", *FLAGS, *flags]
    command += ["--port", str(server.port), "--base-directory", str(base)]
    with (base / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=home, env=ENVIRONMENT | os.environ, stdout=log, stderr=subprocess.STDOUT
        )
    server.process_id = process.pid
    try:
        _wait_until_ready(server, process)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def comfy(
    comfyui_home: Path, comfyui_python: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Comfy]:
    """A ComfyUI server for the whole session."""
    with serving(comfyui_home, comfyui_python, tmp_path_factory.mktemp("comfyui")) as server:
        yield server


@pytest.fixture
def serve(comfyui_home: Path, comfyui_python: str) -> Callable[..., AbstractContextManager[Comfy]]:
    """`serve(base, ...)`: a separate server, for tests of its environment."""
    return partial(serving, comfyui_home, comfyui_python)


@pytest.fixture(scope="session")
def comfy_cli() -> str:
    """comfy-cli's command."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return shutil.which("comfy", path=path) or pytest.skip('no comfy-cli: pip install -e ".[comfyui]"')
