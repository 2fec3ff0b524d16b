"""Whether the scorer can still read a scene after the autoencoder.

The result is an upper bound for every generated image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import cast

import numpy as np
import torch

from ...evaluation.subject import Row, Sampling, Subject, chunks
from ...images import to_pixels
from ...models.autoencoder import Autoencoder
from ..world.render import render
from ..world.requirements import Requirement
from ..world.scenes import ASPECT_SIZES, Scene, sample_scene
from ..world.scorer import psnr, read_picture, trait_errors
from .judging import Judgement, Tally, judge_reading

BATCH = 16


def evaluate_autoencoder(subject: Subject, sampling: Sampling) -> Iterator[Row]:
    """Held-out pairs, which were in no training, and seen pairs; the trained sizes take turns."""
    for pairs, held_out in (("held-out", True), ("seen", False)):
        rng = sampling.rng(f"autoencoder {pairs}")
        scenes = [sample_scene(rng, held_out=held_out) for _ in range(sampling.samples)]
        results = []
        for number, size in enumerate(ASPECT_SIZES):
            for group in chunks(scenes[number :: len(ASPECT_SIZES)], BATCH):
                results += reconstruct(cast(Autoencoder, subject.autoencoder), group, size)
        yield _row(f"{pairs} pairs", results)


def reconstruct(
    autoencoder: Autoencoder, scenes: Sequence[Scene], size: tuple[int, int]
) -> list[tuple[Judgement, dict[str, float]]]:
    """Judgement and errors of each scene's image after the autoencoder."""
    originals = [render(scene, *size) for scene in scenes]
    # B 3 H W
    pixels = torch.from_numpy(np.stack(originals)).permute(0, 3, 1, 2).float() / 255
    device = next(autoencoder.parameters()).device
    with torch.no_grad():
        latents = autoencoder.encode(pixels.to(device))
        decoded = to_pixels(autoencoder.decode(latents))
    results = []
    for scene, original, image, latent in zip(scenes, originals, decoded, latents, strict=True):
        reading = read_picture(image)
        judgement = judge_reading(reading, Requirement.of(scene))
        errors = {"PSNR dB": psnr(image, original), "largest latent": float(latent.abs().max())}
        matched = trait_errors(reading.scene, scene, size=size).matched
        if matched:
            errors["place error px"] = fmean(m.place for m in matched) * min(size)
            errors["size error %"] = fmean(m.radius for m in matched) * 100
            errors["shade error levels"] = fmean(m.shade for m in matched)
        results.append((judgement, errors))
    return results


def _row(name: str, results: Sequence[tuple[Judgement, dict[str, float]]]) -> Row:
    names = dict.fromkeys(key for _, errors in results for key in errors)
    values = {
        key: (max if key.startswith("largest") else fmean)(
            errors[key] for _, errors in results if key in errors
        )
        for key in names
    }
    return Row(name=name, rates=Tally(tuple(j for j, _ in results)).rates(), values=values)
