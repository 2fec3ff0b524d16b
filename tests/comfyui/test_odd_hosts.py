"""Unusual servers: odd paths, shared folders, no network; and equal runs give equal images.

pytest tests/comfyui/test_odd_hosts.py -m slow
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from unifusion_core.zoo.tiny import BUILT_IN

if TYPE_CHECKING:
    from conftest import Comfy, Graph

    Serve = Callable[..., AbstractContextManager[Comfy]]
    Draw = Callable[..., np.ndarray]

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]

PACK = Path(__file__).resolve().parents[2]
TINY_MODEL = f"{BUILT_IN.name} (built in)"
ASKED = "small red circle at top left, white background."
GUARD = """
import os, socket, traceback

def blocked(what, address):
    lines = "".join(traceback.format_stack())
    with open(os.environ["NETWORK_RECORD"], "a", encoding="utf-8") as file:
        file.write(f"{what} {address}\\n{lines}\\n\\f")
    raise OSError(f"no network in this test: {what} {address}")

def local(host):
    return host in (None, "", "localhost") or str(host).startswith(("127.", "::1", "0.0.0.0", "::"))

resolve, connect, connect_ex = socket.getaddrinfo, socket.socket.connect, socket.socket.connect_ex
socket.getaddrinfo = lambda host, *rest, **more: resolve(host, *rest, **more) if local(host) else blocked("resolve", host)

def guarded(original):
    def call(self, address):
        inside = self.family == getattr(socket, "AF_UNIX", None) or local(address[0])
        return original(self, address) if inside else blocked("connect", address)
    return call

socket.socket.connect, socket.socket.connect_ex = guarded(connect), guarded(connect_ex)
"""


@pytest.fixture
def draw(new_graph: Callable[[], Graph]) -> Callable[..., np.ndarray]:
    """`draw(server)`: the image of one rewritten prompt."""

    def drawn(
        server: Comfy,
        *,
        model: str = TINY_MODEL,
        vlm: str = TINY_MODEL,
        prefix: str = "picture",
        anew: bool = False,
    ) -> np.ndarray:
        graph = new_graph()
        generator = graph.load_model(model)
        clip = graph.load_clip(generator, vlm)
        features = graph.add(
            "UniFusionVerifiRewrite", clip=clip, prompt=ASKED, max_tiles=1, style="caption", own_style="",
            locked_text="", seed=0, temperature=0.0, max_new_tokens=64, states="automatic",
        )  # fmt: skip
        condition = graph.add("UniFusionLAPPool", model=generator, features=features)
        empty = graph.add("CLIPTextEncode", text="", clip=clip)
        graph.save_picture(graph.sample(generator, condition, empty), prefix)
        result = server.successful(graph)
        if anew:
            assert generator[0] in result.executed
        (picture,) = server.images(result)
        return picture

    return drawn


def test_the_same_call_gives_the_same_picture(serve: Serve, draw: Draw, tmp_path: Path) -> None:
    """Bit by bit, in one server after all models were freed, and in a second server."""
    with serve(tmp_path / "one") as server:
        first = draw(server)
        assert server.request("POST", "/free", {"unload_models": True, "free_memory": True})[0] == 200
        # the server frees memory between prompts
        time.sleep(2)
        assert np.array_equal(draw(server, prefix="again", anew=True), first)
    with serve(tmp_path / "two") as server:
        assert np.array_equal(draw(server), first)


@pytest.mark.parametrize("name", ["with some spaces", "한국어 폴더", "emoji 🦊 and (brackets) & 100%"])
def test_odd_paths(serve: Serve, draw: Draw, tmp_path: Path, name: str) -> None:
    with serve(tmp_path / name, name=name) as server:
        draw(server)


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")
def test_a_pack_that_nobody_may_write_to(serve: Serve, draw: Draw, tmp_path: Path) -> None:
    pack = tmp_path / "custom_nodes" / "comfyui-unifusion"
    shutil.copytree(PACK, pack, ignore=shutil.ignore_patterns("__pycache__", ".*", "runs", "output"))
    inside = [pack, *pack.rglob("*")]
    for path in inside:
        path.chmod(path.stat().st_mode & ~0o222)
    try:
        with serve(tmp_path) as server:
            draw(server)
    finally:
        for path in inside:
            path.chmod(path.stat().st_mode | 0o200)


def test_two_servers_on_one_models_folder(serve: Serve, draw: Draw, tmp_path: Path) -> None:
    """Shared by extra_model_paths.yaml; both servers run at once."""
    shared = tmp_path / "shared models"
    (shared / "diffusion_models").mkdir(parents=True)
    shutil.copyfile(BUILT_IN.generator, shared / "diffusion_models" / "copy.safetensors")
    shutil.copytree(BUILT_IN.vlm, shared / "vlm" / "copy")
    paths = tmp_path / "paths.yaml"
    paths.write_text(f"unifusion:\n  base_path: {shared}\n  vlm: vlm\n  diffusion_models: diffusion_models\n")
    flags = ["--extra-model-paths-config", str(paths)]
    with serve(tmp_path / "one", flags=flags) as one, serve(tmp_path / "two", flags=flags) as two:
        with ThreadPoolExecutor() as pool:
            pictures = list(
                pool.map(lambda server: draw(server, model="copy.safetensors", vlm="copy"), (one, two))
            )
        assert np.array_equal(*pictures)
        assert np.array_equal(draw(one, prefix="built_in"), pictures[0])


def guarded(monkeypatch: pytest.MonkeyPatch, folder: Path, record: Path) -> None:
    """Makes every Python that starts from here on record the addresses that it tries to reach."""
    (folder / "sitecustomize.py").write_text(GUARD)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("NETWORK_RECORD", str(record))
    # a proxy on this machine would count as loopback
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_no_network(serve: Serve, draw: Draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pack resolves no names and reaches nothing but loopback while it is imported and runs."""
    guard, record = tmp_path / "guard", tmp_path / "record"
    guard.mkdir()
    guarded(monkeypatch, guard, record)
    with serve(tmp_path / "server") as server:
        draw(server)
    tried = record.read_text(encoding="utf-8").split("\f") if record.exists() else []
    ours = [trace for trace in tried if "unifusion" in trace or "transformers" in trace]
    assert not ours, ours[0]


def test_the_guard_sees_what_it_must(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the test above would pass with a guard that does nothing."""
    import subprocess
    import sys

    guarded(monkeypatch, tmp_path, tmp_path / "record")
    code = "import urllib.request; urllib.request.urlopen('http://example.org', timeout=5)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "no network in this test" in done.stderr
    assert "example.org" in (tmp_path / "record").read_text()
