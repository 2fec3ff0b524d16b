"""Loads generator files as the model loader does, inside ComfyUI's process, and counts how often each is opened:

    PYTHON_OF_COMFYUI tests/comfyui/load_files.py COMFYUI_FOLDER FILE ...

prints one line of JSON: for every file how often it was opened, and the error with its type if it was refused.
"""

# ruff: noqa: E402  (safetensors is watched before, and ComfyUI parses its options before, the rest may be imported)
from __future__ import annotations

import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import safetensors

PACK = Path(__file__).resolve().parents[2]
COMFYUI, FILES = sys.argv[1], sys.argv[2:]
opened: Counter[str] = Counter()
_safe_open: Any = safetensors.safe_open


def counted(path: str, *arguments: Any, **options: Any) -> Any:
    opened[str(path)] += 1
    return _safe_open(path, *arguments, **options)


safetensors.safe_open = counted
# Python's own `open`; safetensors opens files outside of Python
sys.addaudithook(lambda event, values: opened.update([str(values[0])]) if event == "open" else None)
# what ComfyUI reads its options from
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, COMFYUI)

import comfy.options

comfy.options.enable_args_parsing()

import comfy.utils

spec = importlib.util.spec_from_file_location(
    "pack", PACK / "__init__.py", submodule_search_locations=[str(PACK)]
)
assert spec
assert spec.loader
sys.modules["pack"] = pack = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)

from pack.nodes.comfy.loading import load_model


def loaded(file: str) -> dict[str, Any]:
    opened.clear()
    try:
        load_model(Path(file))
    # every kind is looked at by the test
    except Exception as error:
        return {"opened": opened[file], "error": str(error), "type": type(error).__name__}
    return {"opened": opened[file], "error": None, "type": None}


print("RESULTS " + json.dumps({Path(file).name: loaded(file) for file in FILES}))
