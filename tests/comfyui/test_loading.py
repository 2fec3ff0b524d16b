"""The model loader opens a sound file once, and refuses any other in the core's words: pytest tests/comfyui/test_loading.py

load_files.py loads all files in one process of ComfyUI.
"""

from __future__ import annotations

import json
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from unifusion_core.checkpoints.generator_file import GeneratorFile
from unifusion_core.errors import CheckpointError
from unifusion_core.zoo.tiny import BUILT_IN

pytestmark = pytest.mark.comfyui

LOAD_FILES = Path(__file__).with_name("load_files.py")
SOUND = BUILT_IN.generator.read_bytes()


def without_a_weight() -> dict[str, np.ndarray]:
    weights = load_file(str(BUILT_IN.generator))
    del weights["first.weight"]
    return weights


# file name -> content, and words of the core's sentence
REFUSED: dict[str, tuple[bytes | dict[str, np.ndarray] | None, str]] = {
    "cut.safetensors": (SOUND[:-1000], "cut short"),
    "cut-in-header.safetensors": (SOUND[:100], "cut short"),
    "empty.safetensors": (b"", "cut short"),
    "flipped.safetensors": (SOUND[:20] + b"\xff" + SOUND[21:], "damaged"),
    "renamed-pickle.safetensors": (pickle.dumps({"weights": [1, 2, 3]}), "pickle"),
    "pickle.pt": (pickle.dumps({"weights": [1, 2, 3]}), "pickle"),
    "model.gguf": (b"GGUF" + bytes(1000), "GGUF"),
    "renamed-gguf.safetensors": (b"GGUF" + bytes(1000), "GGUF"),
    "gone.safetensors": (None, "there is no file"),
    "gone.ckpt": (None, "there is no file"),
    "other.safetensors": ({"down_blocks.0.weight": np.zeros((4, 4), np.float32)}, "another kind of model"),
    "hole.safetensors": (without_a_weight(), "1 weights missing"),
}
# safetensors files, whatever their names
SOUND_NAMES = ("sound.safetensors", "sound.sft", "sound.ckpt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generators")
    for name in SOUND_NAMES:
        (folder / name).write_bytes(SOUND)
    for name, (content, _) in REFUSED.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        elif content is not None:
            save_file(content, str(folder / name))
    return folder


@pytest.fixture(scope="module")
def loaded(comfyui_home: Path, comfyui_python: str, folder: Path) -> Callable[[str], dict[str, Any]]:
    """`loaded(name)`: what load_files.py says of a file."""
    files = [str(folder / name) for name in (*SOUND_NAMES, *REFUSED)]
    done = subprocess.run(
        [comfyui_python, str(LOAD_FILES), str(comfyui_home), *files],
        cwd=comfyui_home,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULTS ")]
    if not lines:
        pytest.fail(f"load_files.py ended with {done.returncode}:\n{done.stderr[-5000:]}", pytrace=False)
    return json.loads(lines[0].removeprefix("RESULTS ")).__getitem__


@pytest.mark.parametrize("name", SOUND_NAMES)
def test_a_sound_file_is_opened_once(loaded: Callable[[str], dict[str, Any]], name: str) -> None:
    assert loaded(name) == {"opened": 1, "error": None, "type": None}


@pytest.mark.parametrize("name", REFUSED)
def test_any_other_file_is_refused_in_the_cores_words(
    loaded: Callable[[str], dict[str, Any]], folder: Path, name: str
) -> None:
    with pytest.raises(CheckpointError) as refusal:
        GeneratorFile(folder / name)

    found = loaded(name)

    assert REFUSED[name][1] in found["error"]
    assert found["error"] == str(refusal.value)
    assert found["type"] == "CheckpointError"
