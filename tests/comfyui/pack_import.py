"""Measures the import of the pack in a ComfyUI that has loaded all of its own modules:

    PYTHON_OF_COMFYUI tests/comfyui/pack_import.py COMFYUI_FOLDER [ABSENT_PACKAGE ...]

prints one line of JSON with the seconds, the packages that were imported, and the error if there is one. Packages named after the
folder cannot be imported meanwhile.
"""

# ruff: noqa: E402  (ComfyUI parses its options before the rest of it may be imported)
from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
import time
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]
COMFYUI, ABSENT = sys.argv[1], sys.argv[2:]
# what ComfyUI reads its options from
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, COMFYUI)

import comfy.options

comfy.options.enable_args_parsing()

import comfy_api.latest  # noqa: F401  (what follows is there before any pack is)
import execution  # noqa: F401
import server  # noqa: F401

loaded = set(sys.modules)
for name in ABSENT:
    for module in [m for m in sys.modules if m.partition(".")[0] == name]:
        del sys.modules[module]
    sys.modules[name] = None  # type: ignore[assignment]  # Python's way to say that it cannot be imported

started = time.perf_counter()
spec = importlib.util.spec_from_file_location(
    "pack", PACK / "__init__.py", submodule_search_locations=[str(PACK)]
)
assert spec
assert spec.loader
pack = importlib.util.module_from_spec(spec)
sys.modules["pack"] = pack
spec.loader.exec_module(pack)
try:
    asyncio.run(pack.comfy_entrypoint())
    error = None
except ImportError as refusal:
    error = str(refusal)
seconds = time.perf_counter() - started

new = sorted({name.partition(".")[0] for name in set(sys.modules) - loaded} - {"pack", *ABSENT})
print(json.dumps({"seconds": round(seconds, 2), "new packages": new, "error": error}))
