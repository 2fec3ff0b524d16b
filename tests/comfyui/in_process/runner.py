"""Runs cases inside ComfyUI's own process, where numbers are visible that a server hides:

    PYTHON_OF_COMFYUI runner.py COMFYUI_FOLDER PACK_FOLDER EMPTY_FOLDER [CASE ...]

prints one line of JSON: the outcomes of the chosen cases (of all, if none is named), and the names of all cases.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def start_comfyui(home: Path, base: Path) -> None:
    """ComfyUI's options, which must be parsed before any other part of it is imported."""
    (base / "custom_nodes").mkdir(exist_ok=True)
    sys.argv = ["main.py", "--cpu", "--base-directory", str(base)]
    sys.path[:1] = [str(home), str(HERE.parent)]
    import comfy.options

    comfy.options.enable_args_parsing()
    import torch

    torch.set_grad_enabled(False)


def import_pack(folder: Path) -> None:
    """The pack as ComfyUI imports it: a package whose name has nothing to do with its folder's."""
    spec = importlib.util.spec_from_file_location(
        "the_pack", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec
    assert spec.loader
    pack = importlib.util.module_from_spec(spec)
    sys.modules["the_pack"] = pack
    spec.loader.exec_module(pack)

    async def start() -> None:
        extension = await pack.comfy_entrypoint()
        await extension.on_load()

    asyncio.run(start())


def main() -> None:
    home, pack, base = (Path(argument).resolve() for argument in sys.argv[1:4])
    chosen = sys.argv[4:]
    start_comfyui(home, base)
    import_pack(pack)
    for path in sorted(HERE.glob("cases_*.py")):
        importlib.import_module(f"{HERE.name}.{path.stem}")
    import torch
    from in_process.case import CASES

    outcomes = {}
    for name in chosen or CASES:
        # no case depends on those before it
        torch.manual_seed(0)
        outcomes[name] = CASES[name].outcome()
    print("RESULTS " + json.dumps({"outcomes": outcomes, "cases": list(CASES)}))


if __name__ == "__main__":
    main()
