"""Suite "speed": time from a prompt to a PNG file in a warm and in a cold process, and the time saved by one-pass VERIFI and by
the prefix cache."""

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
    """Ratios of encoding times, then seconds per image with the model's default settings. Ignores `sampling`."""
    pipeline = subject.pipeline
    yield Row(name="VERIFI, states and text / text alone", values={"ratio": one_pass_ratio(pipeline)})
    yield Row(
        name="second instruction / first, 10 tiles", values={"ratio": second_instruction_ratio(pipeline)}
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        # the first run of a process allocates
        prompt_to_file(pipeline, path)
        seconds = [timed(lambda: prompt_to_file(pipeline, path)) for _ in range(WARM_RUNS)]
        values = {"median s": median(seconds), "slowest s": max(seconds), "threads": torch.get_num_threads()}
        yield Row(name=f"warm process, {WARM_RUNS} runs", values=values)
        seconds = [timed(lambda: run_command_line(subject, path)) for _ in range(COLD_RUNS)]
        yield Row(
            name=f"cold process, {COLD_RUNS} runs",
            values={"median s": median(seconds), "slowest s": max(seconds)},
        )


def one_pass_ratio(pipeline: Pipeline) -> float:
    """Time of a one-pass rewrite (text and states) / time of the same text without states."""
    backbone, spec = pipeline.backbone, pipeline.model.config.vlm
    request = Request(prompt=PROMPT)

    def text_alone() -> None:
        backbone.generate(
            backbone.prepare([request], spec.template), max_new_tokens=pipeline.spec.max_new_tokens
        )

    return _ratio(lambda: pipeline.rewrite_requests([request]), text_alone)


def second_instruction_ratio(pipeline: Pipeline) -> float:
    """Time to encode a second instruction about an image / time of the first. The second one hits the prefix cache."""
    height, width = (4 * side for side in pipeline.spec.size)
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))
    first, second = (Request(prompt=text, images=[image]) for text in ("make it blue", "remove the star"))

    def as_first() -> None:
        pipeline.backbone.clear_image_caches()
        pipeline.encode([first])

    return _ratio(lambda: pipeline.encode([second]), as_first)


def _ratio(action: Callable[[], object], other: Callable[[], object]) -> float:
    """Median time of `action` / median time of `other`. They alternate, so that other load on the machine slows both."""
    # the first ones allocate
    times = [(timed(other), timed(action)) for _ in range(RATIO_RUNS + 1)][1:]
    return median(own for _, own in times) / median(others for others, _ in times)


def prompt_to_file(pipeline: Pipeline, path: Path) -> None:
    """Generates one image and writes it, as `unifusion generate` does."""
    (done,) = pipeline.generate([Request(prompt=PROMPT)], [0])
    write_image_file(path, done.pixels, {"prompt": PROMPT, "seed": 0})


def run_command_line(subject: Subject, path: Path) -> None:
    """The same in a new process. Raises ConfigError if the command fails."""
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
    """Duration of an action in seconds."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started
