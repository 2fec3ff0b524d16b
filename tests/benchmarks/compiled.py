"""TorchCompileModel on a small Krea 2: the pack's MODEL against ComfyUI's own, with random weights.

    COMFYUI_DIR=FOLDER PYTHON_OF_COMFYUI tests/benchmarks/compiled.py [--repeats N]

Prints the seconds of the first image, its difference from the image without compilation, the breaks in the compiled graphs, and
the processor time of later images. PyTorch's own attention is used, as on a graphics card.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
COMFYUI = Path(os.environ.get("COMFYUI_DIR") or Path.home() / "comfy" / "ComfyUI")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="images after the first")
    return parser.parse_args()


def start() -> None:
    """ComfyUI in this process, with the pack in it."""
    sys.path[:1] = [str(COMFYUI), str(TESTS / "comfyui")]
    base = Path(tempfile.mkdtemp())
    from in_process import runner

    runner.start_comfyui(COMFYUI, base)
    import comfy.cli_args

    comfy.cli_args.args.use_pytorch_cross_attention = True
    runner.import_pack(TESTS.parent)


def main() -> None:
    arguments = parse_arguments()
    start()
    import comfy_extras.nodes_torch_compile as torch_compile
    import torch
    from in_process.cases_as_core_krea_2 import _conditions, _drawn
    from in_process.small_krea import krea_models
    from torch._dynamo.utils import counters

    conditions, latent = _conditions(60, 60), torch.zeros(1, 16, 1, 32, 32)

    def draw(model: Any) -> Any:
        return _drawn(model, conditions, latent)

    names = ("MODEL", "ComfyUI's Krea 2")
    models = dict(zip(names, krea_models(), strict=True))
    compiled = {
        name: torch_compile.TorchCompileModel.execute(model, "inductor").args[0]
        for name, model in models.items()
    }
    plain = {name: draw(model) for name, model in models.items()}
    for name, model in compiled.items():
        counters.clear()
        started = time.perf_counter()
        drawn = draw(model)
        first = time.perf_counter() - started
        difference = float((drawn - plain[name]).abs().max() / plain[name].abs().max())
        print(f"{name:17} first image {first:6.1f} s, difference {difference:.1e}", flush=True)
        for reason, count in counters["graph_break"].items():
            said, explanation = (line.strip() for line in reason.splitlines()[:2])
            print(f"    {count} breaks: {said} {explanation[:100]}")

    # the contestants take turns, so that other load slows all of them; other programs do not lengthen processor time
    used: dict[str, list[float]] = {}
    for _ in range(arguments.repeats):
        for kind, contestants in (("compiled", compiled), ("eager", models)):
            for name, model in contestants.items():
                started = time.process_time()
                draw(model)
                used.setdefault(f"{kind} {name}", []).append(time.process_time() - started)
    medians = {name: statistics.median(times) for name, times in used.items()}
    for name, seconds in medians.items():
        print(f"{name:26} {seconds:.3f} s of processor time, second image {used[name][0]:.3f} s")
    for kind in ("compiled", "eager"):
        ours, theirs = (medians[f"{kind} {name}"] for name in names)
        print(f"{kind}, later images: MODEL / ComfyUI's Krea 2 = {ours / theirs:.2f}")


if __name__ == "__main__":
    main()
