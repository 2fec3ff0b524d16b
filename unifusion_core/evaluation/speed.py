"""How long a user waits: from a prompt to a PNG file, in a process that is warm and in one that has yet to start; and what is
saved by taking states while the rewrite is written, and by reading pictures once."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import torch

from ..contracts import Request
from ..errors import ConfigError
from ..images import write_image_file
from ..pipeline import Pipeline
from .subject import Row, Sampling, Subject

PROMPT = "a big red circle on the left and a small yellow star at the top right, on a white background"
WARM_RUNS = 5
COLD_RUNS = 2
RATIO_RUNS = 20


def evaluate_speed(subject: Subject, sampling: Sampling) -> Iterator[Row]:
    """20 steps with the default settings, rewriting as the model wants it; ratios of encoding times, taken in turns. Does not
    depend on `sampling`."""
    pipeline = subject.pipeline
    yield Row(name="VERIFI, states and text / text alone", values={"ratio": one_pass_ratio(pipeline)})
    yield Row(
        name="second instruction / first, 10 tiles", values={"ratio": second_instruction_ratio(pipeline)}
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        prompt_to_file(pipeline, path)  # the first run of a process allocates
        seconds = [timed(lambda: prompt_to_file(pipeline, path)) for _ in range(WARM_RUNS)]
        values = {"median s": median(seconds), "slowest s": max(seconds), "threads": torch.get_num_threads()}
        yield Row(name=f"warm process, {WARM_RUNS} runs", values=values)
        seconds = [timed(lambda: run_command_line(subject, path)) for _ in range(COLD_RUNS)]
        yield Row(
            name=f"cold process, {COLD_RUNS} runs",
            values={"median s": median(seconds), "slowest s": max(seconds)},
        )


def one_pass_ratio(pipeline: Pipeline) -> float:
    """Time of a rewrite whose states are taken while it is written, against the same text without states."""
    backbone, spec = pipeline.backbone, pipeline.model.config.vlm
    request = Request(prompt=PROMPT)

    def text_alone() -> None:
        backbone.generate(
            backbone.prepare([request], spec.template), max_new_tokens=pipeline.spec.max_new_tokens
        )

    return _ratio(lambda: pipeline.rewrite_requests([request]), text_alone)


def second_instruction_ratio(pipeline: Pipeline) -> float:
    """Time to encode another instruction about a picture that was read before, against the first."""
    height, width = (4 * side for side in pipeline.spec.size)
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))
    first, second = (Request(prompt=text, images=[image]) for text in ("make it blue", "remove the star"))

    def as_first() -> None:
        pipeline.backbone.clear_image_caches()
        pipeline.encode([first])

    return _ratio(lambda: pipeline.encode([second]), as_first)


def _ratio(action: Callable[[], object], other: Callable[[], object]) -> float:
    """Median time of one against that of the other; they take turns, so that a busy machine slows both."""
    times = [(timed(other), timed(action)) for _ in range(RATIO_RUNS + 1)][1:]  # the first ones allocate
    return median(own for _, own in times) / median(others for others, _ in times)


def prompt_to_file(pipeline: Pipeline, path: Path) -> None:
    """One picture as `unifusion generate` makes it."""
    (done,) = pipeline.generate([Request(prompt=PROMPT)], [0])
    write_image_file(path, done.pixels, {"prompt": PROMPT, "seed": 0})


def run_command_line(subject: Subject, path: Path) -> None:
    """The same in a process of its own."""
    package = Path(__file__).parents[2]
    command = [sys.executable, "-m", "unifusion_core", "generate", PROMPT, "--out", str(path)]
    for part in ("model", "vlm", "vae"):
        command += [f"--{part}", str(getattr(subject, part))]
    paths = os.pathsep.join(filter(None, (str(package), os.environ.get("PYTHONPATH"))))
    run = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise ConfigError(f"the command line failed: {run.stderr.strip()}")


def timed(action: Callable[[], object]) -> float:
    """Seconds that an action takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started
