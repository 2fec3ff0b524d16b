"""What the trainer adds to bare training, and what its caches bring, on the embedded model:

    python tests/benchmarks/training.py [--steps 60] [--out FILE.json]

"bare" encodes the condition of a batch, computes loss and gradients, clips, and steps AdamW. "trainer" is a whole step of
`unifusion train` with samples from its caches, averaging and logging included. The two take turns, so that other load on the
machine slows both. "without latent cache" is a whole step that reads and encodes its target images. "Muon" is its part of a step
alone, which orthogonalises in 32 bits or in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from unifusion_core.checkpoints.generator_file import load_generator
from unifusion_core.shapes.examples import write_examples
from unifusion_core.training.config import TrainConfig
from unifusion_core.training.loop import Loop
from unifusion_core.training.optimizer import MuonAdamW, parameter_groups
from unifusion_core.training.trainer import FlowTraining, loop_config
from unifusion_core.zoo.tiny import BUILT_IN

BATCH = 8
# the first ones allocate
WARM_UP = 5


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Overhead of the trainer, and samples per second with and without caches."
    )
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), arguments.steps + WARM_UP) | measure_muon(arguments.steps + WARM_UP)
    for name, value in rows.items():
        print(f"{name:36} {value:.4f}")
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


def measure(folder: Path, steps: int) -> dict[str, float]:
    """Medians of seconds per step, and ratios."""
    write_examples(folder / "pictures", 60)
    cached, uncached = (run_of(folder, steps, latents=latents) for latents in (True, False))
    bare = bare_step(cached)
    seconds: dict[str, list[float]] = {"bare": [], "trainer": [], "without latent cache": [], "waiting": []}
    streams = {"trainer": cached.batches(0), "without latent cache": uncached.batches(0)}
    for step in range(steps):
        seconds["bare"].append(timed(bare))
        for name, run in (("trainer", cached), ("without latent cache", uncached)):
            started = time.perf_counter()
            batch = next(streams[name])
            waited = time.perf_counter() - started
            values = run.step(step, batch)
            run._log(step + 1, values)
            seconds[name].append(time.perf_counter() - started)
            if name == "trainer":
                seconds["waiting"].append(waited)
    medians = {name: median(values[WARM_UP:]) for name, values in seconds.items()}
    latents = sum(file.stat().st_size for file in (folder / "cache" / "latents").rglob("*.safetensors"))
    return {
        "bare, s per step": medians["bare"],
        "trainer, s per step": medians["trainer"],
        "trainer / bare": medians["trainer"] / medians["bare"],
        "waiting for data, share": medians["waiting"] / medians["trainer"],
        "samples/s with latent cache": BATCH / medians["trainer"],
        "samples/s without latent cache": BATCH / medians["without latent cache"],
        "latent cache, bytes per sample": latents / 60,
    }


def run_of(folder: Path, steps: int, *, latents: bool) -> Loop:
    """A run before its first step."""
    config = TrainConfig.model_validate(
        {
            "output": folder / f"run-{latents}",
            "data": [{"folder": folder / "pictures"}],
            "steps": steps,
            "batch_size": BATCH,
            "learning_rate": 1e-4,
            "cache": {"folder": folder / "cache", "latents": latents},
        }
    )
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    task = FlowTraining(config, accelerator, say=lambda _: None)
    task.prepare((0, 1))
    loop = Loop(task, loop_config(config), config.output, accelerator)
    loop.begin(resume=False)
    return loop


def bare_step(loop: Loop) -> Callable[[], Any]:
    """The same computation without the trainer, on samples that are in memory."""
    stream = loop.batches(0)
    samples = [next(stream) for _ in range(8)]
    parameters = list(loop.trainable.values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    number = 0

    def step() -> None:
        nonlocal number
        number += 1
        loss, _ = loop.objective(loop.task.batch(samples[number % len(samples)]))
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure_muon(steps: int) -> dict[str, float]:
    """Medians of seconds of Muon's steps for the embedded generator, with both types taking turns."""
    model = load_generator(BUILT_IN.generator)[0].requires_grad_(True)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    groups = parameter_groups(model, learning_rate=1e-3, muon_learning_rate=1e-3)
    optimizers = {
        str(dtype).removeprefix("torch."): MuonAdamW([dict(group) for group in groups], precision=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    }
    seconds: dict[str, list[float]] = {name: [] for name in optimizers}
    for _ in range(steps):
        for name, optimizer in optimizers.items():
            seconds[name].append(timed(optimizer.step))
    return {f"Muon in {name}, s per step": median(each[WARM_UP:]) for name, each in seconds.items()}


def timed(action: Callable[[], Any]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
