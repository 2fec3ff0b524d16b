"""Whether the scorer can still read a scene after the autoencoder.

The result is an upper bound for every generated image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import cast

import numpy as np
import torch

from ...evaluation.rates import Rate
from ...evaluation.subject import Row, Sampling, Subject, chunks
from ...images import to_pixels
from ...models.autoencoder import Autoencoder
from ..world.marks import NEAR, with_marks
from ..world.render import mark_geometry, object_geometry, render
from ..world.requirements import Requirement
from ..world.scenes import ASPECT_SIZES, COLORS, Scene, SceneObject, Traits, free_rgb, sample_scene
from ..world.scorer import psnr, read_picture, trait_errors
from .judging import Judgement, Tally, judge_reading

BATCH = 16
LEVELS_OFF = 4


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
    yield _marks(cast(Autoencoder, subject.autoencoder), sampling)
    yield _flat_colors(cast(Autoencoder, subject.autoencoder), sampling)


def _marks(autoencoder: Autoencoder, sampling: Sampling) -> Row:
    """Marks of objects, present or not, and how far each is from its place."""
    rng = sampling.rng("autoencoder marks")
    right, near, total, present, false, errors = 0, 0, 0, 0, 0, []
    for number, size in enumerate(ASPECT_SIZES):
        scenes = [
            with_marks(rng, sample_scene(rng)) for _ in range(number, sampling.samples, len(ASPECT_SIZES))
        ]
        for group in chunks(scenes, BATCH):
            for scene, image in zip(
                group, round_trip(autoencoder, [render(each, *size) for each in group]), strict=True
            ):
                seen = {obj.cell: obj for obj in read_picture(image).scene.objects}
                for obj in scene.objects:
                    found_obj = seen.get(obj.cell)
                    own, found = mark_geometry(obj, *size), found_obj and mark_geometry(found_obj, *size)
                    total, present = total + 1, present + (own is not None)
                    right += (own is None) == (found is None)
                    false += own is None and found is not None
                    if own is not None and found is not None:
                        errors.append(math.dist(own[:2], found[:2]))
                        near += errors[-1] <= NEAR
    return Row(
        name="marks",
        rates={
            "present or not": Rate(right, total),
            "found and near": Rate(near, present),
            "found where there is none": Rate(false, total - present),
        },
        values={"mark error px": fmean(errors) if errors else math.nan},
    )


def _flat_colors(autoencoder: Autoencoder, sampling: Sampling) -> Row:
    """One big object on a background, both in colours from anywhere in RGB: how far each is off after the autoencoder."""
    rng = sampling.rng("autoencoder flat colors")
    off: dict[str, list[float]] = {"background": [], "object": []}
    pictures, colors, places = [], [], []
    for _ in range(sampling.samples):
        ground, own = free_rgb(rng), free_rgb(rng)
        red = COLORS["red"]
        shade = (own[0] - red[0], own[1] - red[1], own[2] - red[2])
        obj = SceneObject(shape="square", color="red", size="big", cell=(1, 1), traits=Traits(shade=shade))
        pictures.append(render(Scene(objects=(obj,), background="white"), *ASPECT_SIZES[0], ground=ground))
        colors.append((ground, own))
        places.append(object_geometry(obj, *ASPECT_SIZES[0])[:2])
    for group in chunks(range(len(pictures)), BATCH):
        decoded = round_trip(autoencoder, [pictures[number] for number in group])
        for number, image in zip(group, decoded, strict=True):
            x, y = (round(place) for place in places[number])
            parts = {
                "background": image[:6].reshape(-1, 3),
                "object": image[y - 4 : y + 4, x - 4 : x + 4].reshape(-1, 3),
            }
            for (name, part), wanted in zip(parts.items(), colors[number], strict=True):
                off[name].append(float(np.abs(np.median(part, 0) - wanted).max()))
    values = {f"{name} off, levels": fmean(each) for name, each in off.items()}
    values |= {f"{name} off at most, levels": max(each) for name, each in off.items()}
    within = [each <= LEVELS_OFF for errors in off.values() for each in errors]
    return Row(
        name="flat colours anywhere in RGB",
        rates={"within 4 levels": Rate(sum(within), len(within))},
        values=values,
    )


@torch.no_grad()
def round_trip(autoencoder: Autoencoder, images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Images of one size (H W 3, bytes) after encoding and decoding."""
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    device = next(autoencoder.parameters()).device
    return list(to_pixels(autoencoder.decode(autoencoder.encode(pixels.to(device)))))


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
