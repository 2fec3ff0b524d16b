"""At which times a generator of shapes is good: the squared error of its velocity, of chats in words and of chats about images.

    python tests/benchmarks/velocity_by_time.py RECIPE GENERATOR.safetensors ... [--batches 3]

Samples, VLM and autoencoder are those of the recipe of `unifusion shapes train`; "tiny" is the shipped generator. Near t = 1 a
generator decides what is where, at small t it forms outlines. Two generators with one mean error can differ by a third in either.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean
from typing import cast

import torch

from unifusion_core.checkpoints.generator_file import load_generator
from unifusion_core.flow.path import interpolate, velocity
from unifusion_core.models.unifusion import UniFusion
from unifusion_core.shapes.training.generator import Batch, GeneratorTask
from unifusion_core.shapes.training.recipes import RECIPES
from unifusion_core.zoo.tiny import BUILT_IN

TIMES = (0.98, 0.9, 0.7, 0.5, 0.3, 0.15, 0.05)
# far from the samples that a run trains on
FIRST = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description="Squared error of the velocity at fixed times.")
    parser.add_argument("recipe")
    parser.add_argument("generators", nargs="+")
    parser.add_argument("--batches", type=int, default=3, help="of 12 samples, of each kind")
    arguments = parser.parse_args()
    task, _ = RECIPES[arguments.recipe]()
    assert isinstance(task, GeneratorTask), "only recipes of generators have a velocity"
    batches = draw(task, arguments.batches)
    print(f"{'t':44}", *(f"{t:7}" for t in TIMES))
    for name in arguments.generators:
        model, _ = load_generator(BUILT_IN.generator if name == "tiny" else Path(name))
        for kind, each in batches.items():
            errors = (error_at(task, model, each, t) for t in TIMES)
            print(f"{Path(name).stem[:30] + ', ' + kind:44}", *(f"{error:.4f} " for error in errors))


def draw(task: GeneratorTask, count: int) -> dict[str, list[Batch]]:
    """So many batches in words and about images, always the same."""
    found: dict[str, list[Batch]] = {"words": [], "images": []}
    number = FIRST // task.batch_size
    while min(len(each) for each in found.values()) < count:
        first = number * task.batch_size
        batch = task.collate([task.item(index) for index in range(first, first + task.batch_size)])
        kind = found["images" if batch.shows_images else "words"]
        if len(kind) < count:
            kind.append(batch)
        number += 1
    return found


@torch.no_grad()
def error_at(task: GeneratorTask, model: UniFusion, batches: list[Batch], t: float) -> float:
    """Mean squared error of the velocity at time t, with the same noise for every generator and time."""
    errors = []
    for batch in batches:
        latents = batch.latents
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
        times = torch.full((len(latents),), t)
        patch = model.config.dit.patch_size
        grid = cast(tuple[int, int], tuple(side // patch for side in latents.shape[-2:]))
        condition = model.prepare(model.pool(task.features(batch.requests, batch.max_tiles)), grid)
        predicted = model(interpolate(latents, noise, times), times, condition)
        errors.append(float((predicted - velocity(latents, noise)).square().mean()))
    return fmean(errors)


if __name__ == "__main__":
    main()
