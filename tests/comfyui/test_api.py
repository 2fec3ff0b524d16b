"""Every command of workflows/api/README.md runs against a live server: pytest tests/comfyui/test_api.py

The one with comfy-cli is skipped where there is no `comfy` (pip install -e ".[comfyui]").
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

if TYPE_CHECKING:
    from conftest import Comfy

pytestmark = pytest.mark.comfyui

PACK = Path(__file__).parents[2]
WORKFLOWS = PACK / "workflows"
NAME = "UniFusion Text to Image"
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", (WORKFLOWS / "api" / "README.md").read_text(), re.DOTALL)
    for line in block.splitlines()
]


def command(comfy: Comfy, words: str) -> str:
    """The command of the page that contains `words`, with the port of this test's server."""
    (found,) = [line for line in COMMANDS if words in line]
    return found.replace("8188", str(comfy.port))


def run(line: str, **environment: str) -> str:
    """The output of a command, run in the pack's folder with this Python as `python`."""
    done = subprocess.run(
        ["bash", "-c", line.replace("python ", f"{shlex.quote(sys.executable)} ")],
        cwd=PACK,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_has_no_other_commands() -> None:
    assert {line.split()[0] for line in COMMANDS} == {"curl", "python", "comfy"}
    assert len(COMMANDS) == 6


def test_curl_queues_fetches_and_uploads(comfy: Comfy, tmp_path: Path) -> None:
    if not shutil.which("curl"):
        pytest.skip("no curl")
    queued = json.loads(run(command(comfy, "/prompt")))["prompt_id"]
    comfy.wait_for(queued)
    history = json.loads(run(command(comfy, "/history").replace("PROMPT_ID", queued)))
    (image,) = [i for out in history[queued]["outputs"].values() for i in out["images"]]
    picture = tmp_path / "picture.png"
    run(command(comfy, "/view").replace("FILENAME", image["filename"]).replace("picture.png", str(picture)))
    answer = json.loads(run(command(comfy, "/upload").replace("@picture.png", f"@{picture}")))

    assert Image.open(picture).size == (160, 112)
    assert (comfy.input_dir / answer["name"]).read_bytes() == picture.read_bytes()


def test_python_client_shows_progress_and_previews_and_saves(comfy: Comfy, tmp_path: Path) -> None:
    # A first run may find everything computed already: then there is nothing to show.
    line = command(comfy, "client.py").replace("8.seed=7", f"8.seed={comfy.port}")

    lines = run(f"{line} --server 127.0.0.1:{comfy.port} --out {tmp_path}").splitlines()

    assert "UniFusionSampler: 20 of 20" in lines
    assert any(re.fullmatch(r"preview of \d+ bytes", line) for line in lines)
    (saved,) = tmp_path.glob("*.png")
    assert lines[-1] == str(saved)
    with Image.open(saved) as picture:
        drawn = json.loads(picture.info["prompt"])
    assert drawn["8"]["inputs"]["seed"] == comfy.port
    assert drawn["3"]["inputs"]["prompt"] == "small red star at top, black background."


def test_python_client_ends_in_the_servers_sentence(comfy: Comfy) -> None:
    client = [sys.executable, "workflows/api/client.py", f"workflows/api/{NAME}.json"]
    done = subprocess.run(
        [*client, "--server", f"127.0.0.1:{comfy.port}", "--set", "8.steps=0"],
        cwd=PACK,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert "UniFusionSampler: Value 0 smaller than min of 1: steps" in done.stderr


def test_comfy_cli_runs_it(comfy: Comfy, comfy_cli: str, tmp_path: Path) -> None:
    path = f"{Path(comfy_cli).parent}{os.pathsep}{os.environ['PATH']}"

    told = run(command(comfy, "comfy run"), PATH=path, HOME=str(tmp_path), DO_NOT_TRACK="1")

    answer = json.loads(told.splitlines()[-1])
    assert answer["ok"]
    assert len(answer["data"]["outputs"]) == 1


def test_the_png_carries_graph_and_workflow(comfy: Comfy) -> None:
    graph = json.loads((WORKFLOWS / "api" / f"{NAME}.json").read_text())
    workflow = json.loads((WORKFLOWS / f"{NAME}.json").read_text())
    # so that SaveImage runs and is not cached
    graph["8"]["inputs"]["seed"] += 1

    result = comfy.successful(graph, extra_data={"extra_pnginfo": {"workflow": workflow}})

    (item,) = [i for out in result.outputs.values() for i in out["images"]]
    with Image.open(comfy.base / "output" / item["filename"]) as picture:
        chunks = {name: json.loads(text) for name, text in picture.info.items()}
    assert chunks == {"prompt": graph, "workflow": workflow}
