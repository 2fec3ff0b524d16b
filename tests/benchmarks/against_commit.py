"""Time of the embedded model in this working tree, compared with an earlier commit, in one run:

    python tests/benchmarks/against_commit.py COMMIT [--repeats 15] [--out FILE.json]

The commit is checked out into a temporary folder. Each version runs in a process of its own, and the two take turns, so that
other load on the machine slows both. A ratio is the median time of this version divided by the median time of the earlier one:

    cold      `unifusion generate`, from the start of Python to the PNG file
    warm      a prompt to pixels in a loaded pipeline, rewriting included
    encode    the VLM's states of a prompt with one input image of 512 px
    loop      20 guided steps from features to pixels
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

REPOSITORY = Path(__file__).resolve().parents[2]
PROMPT = "a big red circle on the left and a small yellow star at the top right, on a white background"
WORKER = "--worker"
ACTIONS = ("warm", "encode", "loop")
COLD_REPEATS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description="Ratios of times: this version / an earlier commit.")
    parser.add_argument("commit")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        earlier = Path(folder) / "earlier"
        clone = ["git", "clone", "--quiet", "--no-checkout", str(REPOSITORY), str(earlier)]
        subprocess.run(clone, check=True)
        subprocess.run(["git", "-C", str(earlier), "checkout", "--quiet", arguments.commit], check=True)
        ratios = compare(REPOSITORY, earlier, arguments.repeats)
    if arguments.out:
        arguments.out.write_text(json.dumps({"earlier": arguments.commit, "rows": ratios}, indent=1) + "\n")


def compare(now: Path, earlier: Path, repeats: int) -> dict[str, dict[str, float]]:
    """The medians in seconds and their ratio, by action."""
    rows = {}
    times = [(cold(now), cold(earlier)) for _ in range(COLD_REPEATS + 1)][1:]
    rows["cold"] = row("cold", times)
    workers = [Worker(now), Worker(earlier)]
    for action in ACTIONS:
        # the first ones allocate
        times = [(workers[0].time(action), workers[1].time(action)) for _ in range(repeats + 2)][2:]
        rows[action] = row(action, times)
    for worker in workers:
        worker.end()
    return rows


def row(name: str, times: list[tuple[float, float]]) -> dict[str, float]:
    own, others = (median(column) for column in zip(*times, strict=True))
    print(f"{name:8} {own:7.3f} s  earlier {others:7.3f} s  ratio {own / others:.3f}", flush=True)
    return {"seconds": own, "earlier_seconds": others, "ratio": own / others}


def cold(checkout: Path) -> float:
    """Seconds of one `unifusion generate` of a checkout."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "unifusion_core", "generate", PROMPT, "--out", f"{folder}/image.png"]
        start = time.perf_counter()
        subprocess.run(command, check=True, cwd=checkout, env=environment(checkout), capture_output=True)
        return time.perf_counter() - start


def environment(checkout: Path) -> dict[str, str]:
    """The checkout's package instead of the installed one."""
    return os.environ | {"PYTHONPATH": str(checkout)}


class Worker:
    """A process with a loaded pipeline of a checkout. It times one action for each line that it is sent."""

    def __init__(self, checkout: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, WORKER],
            cwd=checkout,
            env=environment(checkout),
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        loaded_from = Path(self.ask("where"))
        if not loaded_from.is_relative_to(checkout.resolve()):
            raise RuntimeError(f"the worker of {checkout} loaded {loaded_from}")

    def time(self, action: str) -> float:
        return float(self.ask(action))

    def ask(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(line, file=self.process.stdin, flush=True)
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        self.process.communicate("")


def work() -> None:
    """The worker's side. Versions before 0.2.0 have other names for the same three calls."""
    import torch

    import unifusion_core
    from unifusion_core import contracts, pipeline

    pipe = pipeline.Pipeline.load()
    if hasattr(pipe, "rewrite_requests"):
        request, rewrite, encode, sample = contracts.Request, pipe.rewrite_requests, pipe.encode, pipe.sample
        settings = pipe.settings()
    else:
        request, rewrite, encode, sample = contracts.VLMRequest, pipe.rewrite, pipe.read, pipe.draw
        settings = pipeline.DrawSettings()
    image = torch.rand(3, 512, 512, generator=torch.Generator().manual_seed(0))
    images_field = "images" if "images" in request.__dataclass_fields__ else "pictures"
    forget = getattr(pipe.backbone, "clear_image_caches", None) or pipe.backbone.forget_pictures
    features = rewrite([request(prompt=PROMPT)])[0].features

    def encode_image() -> None:
        forget()
        encode([request(prompt="make it blue", **{images_field: [image]})])

    actions = {
        "warm": lambda: sample(rewrite([request(prompt=PROMPT)])[0].features, [0], settings),
        "encode": encode_image,
        "loop": lambda: sample(features, [0], settings),
    }
    for line in sys.stdin:
        if line.strip() == "where":
            print(Path(unifusion_core.__file__).resolve(), flush=True)
            continue
        start = time.perf_counter()
        actions[line.strip()]()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    if WORKER in sys.argv:
        work()
    else:
        main()
