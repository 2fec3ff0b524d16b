"""The table of stock nodes and settings on the pack's MODEL, CLIP and CONDITIONING, as Markdown:

    COMFYUI_DIR=FOLDER PYTHON_OF_COMFYUI tests/comfyui/table_of_nodes.py

A small Krea 2 with random weights is drawn by the pack's MODEL and by ComfyUI's own; nodes on CLIP get the embedded VLM. "right"
means equal within 1e-4. The exit status is 1 if anything is wrong.
"""

from __future__ import annotations

import collections
import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> int:
    home = Path(os.environ.get("COMFYUI_DIR") or Path.home() / "comfy" / "ComfyUI")
    sys.path.insert(0, str(HERE))
    from in_process import runner

    runner.start_comfyui(home, Path(tempfile.mkdtemp()))
    runner.import_pack(HERE.parents[1])
    from in_process.cases_stock_nodes import rows

    table = rows()
    print("| node | setting | difference | effect | verdict | said |\n|---|---|---|---|---|---|")
    for node, setting, difference, effect, verdict, said in table:
        numbers = ("" if value is None else f"{value:.1e}" for value in (difference, effect))
        cells = (node, setting, *numbers, verdict, said.replace("\n", " "))
        print("| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |")
    counts = collections.Counter(row[4] for row in table)
    print(
        f"\n{len(table)} nodes and settings: "
        + ", ".join(f"{n} {verdict}" for verdict, n in counts.most_common())
    )
    return any(verdict.startswith("WRONG") for verdict in counts)


if __name__ == "__main__":
    sys.exit(main())
