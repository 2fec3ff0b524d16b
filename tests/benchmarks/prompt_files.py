"""A file of 50,000 prompts with 1 % bad lines: peak memory, time per line, and what five interruptions lose.

OMP_NUM_THREADS=1 python tests/benchmarks/prompt_files.py --lines 50000 --interruptions 5

Draws 8x8 pictures in one step, so that the cost is the command's and not the model's. Every fourth line has an input picture.
Peak memory is measured on a tenth of the lines too, to show whether it grows.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from PIL import Image

QUICK = ["--steps", "1", "--size", "8x8", "--cfg", "1", "--no-rewrite", "--max-tiles", "1", "--quiet"]
BAD = ("{", '{"id": "a/b", "prompt": "x"}', '{"prompt": "x"}', '{"id": 3, "prompt": "x"}', "[]")


def write_prompts(folder: Path, count: int) -> tuple[Path, set[str]]:
    """The file, and the ids of its good lines."""
    rng, good = random.Random(0), set[str]()
    for number in range(8):
        Image.new("RGB", (64, 48), (30 * number, 90, 200)).save(folder / f"in-{number}.png")
    with (folder / "prompts.jsonl").open("w", encoding="utf-8") as file:
        for number in range(count):
            if rng.random() < 0.01:
                file.write(rng.choice(BAD) + "\n")
                continue
            line: dict[str, object] = {"id": f"{number}", "prompt": f"a red circle {number}", "seed": number}
            if number % 4 == 0:
                line["images"] = [f"in-{number // 4 % 8}.png"]
            file.write(json.dumps(line) + "\n")
            good.add(f"{number}")
    return folder / "prompts.jsonl", good


def start(file: Path, out: Path, printed: Path) -> subprocess.Popen[bytes]:
    """`unifusion generate --prompts` in a process of its own."""
    call = [
        sys.executable,
        "-m",
        "unifusion_core",
        "generate",
        "--prompts",
        str(file),
        "--out",
        str(out),
        *QUICK,
    ]
    with printed.open("ab") as stdout, printed.with_suffix(".err").open("ab") as stderr:
        return subprocess.Popen(call, stdout=stdout, stderr=stderr)


def peak_memory(process: subprocess.Popen[bytes], enough: Callable[[], bool] = lambda: False) -> float:
    """MB at most, while the process runs and has not done enough."""
    peak = 0.0
    while process.poll() is None and not enough():
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        peak = max(peak, int(found[1]) / 1000 if found else 0.0)
        time.sleep(0.2)
    return peak


def num_files(folder: Path) -> int:
    return len(os.listdir(folder)) if folder.exists() else 0  # noqa: PTH208  (names only)


def measure(count: int, interruptions: int) -> dict[str, float]:
    """Draws all lines, with interruptions at random times, and counts what is there."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file, good = write_prompts(folder, count)
        out, printed = folder / "out", folder / "printed"
        rng, began, peak = random.Random(1), time.monotonic(), 0.0
        for number in range(interruptions):
            process = start(file, out, printed)
            wanted = len(good) * (number + rng.random()) / (interruptions + 1)
            peak = max(peak, peak_memory(process, lambda wanted=wanted: num_files(out) >= wanted))
            process.send_signal(rng.choice((signal.SIGINT, signal.SIGKILL, signal.SIGTERM)))
            process.wait()
        process = start(file, out, printed)
        peak = max(peak, peak_memory(process))
        seconds = time.monotonic() - began
        names = Counter(printed.read_text().split())
        drawn = {path.stem for path in out.glob("*.png")}
        for path in out.glob("*.png"):
            with Image.open(path) as image:
                image.load()
        return {
            "lines": count,
            "good": len(good),
            "drawn": len(drawn & good),
            "lost": len(good - drawn),
            "drawn twice": sum(times > 1 for times in names.values()),
            "exit status": process.returncode,
            "seconds": round(seconds, 1),
            "ms per line": round(1000 * seconds / count, 2),
            "peak MB": round(peak),
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=50_000)
    parser.add_argument("--interruptions", type=int, default=5)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    rows = [measure(chosen.lines // 10, 0), measure(chosen.lines, chosen.interruptions)]
    print("\n".join(map(str, rows)))
    if chosen.out is not None:
        chosen.out.write_text(json.dumps(rows, indent=1) + "\n")
