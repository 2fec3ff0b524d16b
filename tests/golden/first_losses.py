"""The first losses of every recipe of the embedded model, to see whether a change of the trainer changes what is trained:

    python tests/golden/first_losses.py record tests/golden/first_losses.json
    python tests/golden/first_losses.py compare tests/golden/first_losses.json

A recipe's first two steps are run as `unifusion shapes train` runs them. Losses are equal on one machine and one number of
threads; `compare` allows a relative difference of 1e-5.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

from accelerate import Accelerator

from unifusion_core.shapes.training.recipes import RECIPES
from unifusion_core.training.loop import Loop

STEPS = 2
TOLERANCE = 1e-5
# start from the folder of another run, read a language model, or read parts of the next edition, which change
OTHER_FOLDERS = (
    "tiny-finish",
    "tiny-vae-crisp",
    "tiny-vae-finish",
    "tiny-marks",
    "tiny-marks-finish",
    "tiny-marks-taught",
)
NEEDS_A_FOLDER = tuple(name for name in RECIPES if name in OTHER_FOLDERS or name.startswith("fusion-"))


def first_losses() -> Iterator[tuple[str, list[float]]]:
    """(recipe, losses of its first steps)."""
    for name, build in RECIPES.items():
        if name in NEEDS_A_FOLDER:
            continue
        with tempfile.TemporaryDirectory() as folder, chdir(folder):
            task, config = build()
            # pools are encoded as their scenes are drawn
            loop = Loop(task, config, Path(folder) / "run", Accelerator(cpu=True), name=name)
            loop.begin(resume=False)
            losses = []
            for step in range(STEPS):
                collated = task.collate([task.item(index) for index in loop.indices(step)])
                losses.append(loop.step(step, collated)["loss"])
        yield name, losses


def main() -> int:
    """0 if all is equal, or recorded."""
    command, path = sys.argv[1], Path(sys.argv[2]).resolve()
    found = {}
    for name, losses in first_losses():
        found[name] = losses
        print(f"{name:34}", *(f"{loss:.6f}" for loss in losses), flush=True)
    if command == "record":
        path.write_text(json.dumps(found, indent=1) + "\n")
        return 0
    known = json.loads(path.read_text())
    odd = [
        name
        for name in sorted(known.keys() | found.keys())
        if len(known.get(name, [])) != len(found.get(name, []))
        or not all(
            math.isclose(a, b, rel_tol=TOLERANCE) for a, b in zip(known[name], found[name], strict=True)
        )
    ]
    print(f"{len(odd)} of {len(known)} recipes differ", *odd)
    return 1 if odd else 0


if __name__ == "__main__":
    sys.exit(main())
