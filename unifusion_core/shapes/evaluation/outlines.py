"""Suite "outlines": how round circles are, as rendered, after the autoencoder, and as drawn from captions.

A circle's outline is where its colour is half of the way to the background's, sought from outside along rays. Told is the largest
distance of the outline from the circle that fits it best, in shares of that circle's radius.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import median

import numpy as np
import torch
from scipy import ndimage

from ...contracts import Request
from ...evaluation.rates import Rate
from ...evaluation.subject import Row, Sampling, Subject, chunks
from ...images import Pixels, to_pixels
from ..world.captions import caption
from ..world.render import object_geometry, render
from ..world.scenes import BACKGROUNDS, Scene, SceneObject, sample_scene

BATCH = 16
SIZE = 128
RAYS = 64
# in radii: where a ray begins, outside, and ends
REACH = (1.5, 0.5)
STEPS = 200
# shares of the radius: rounder than that is what the table of goals asks for
ROUND = 0.05


def evaluate_outlines(subject: Subject, sampling: Sampling) -> Iterator[Row]:
    """`samples` scenes with a circle, of held-out and seen pairs, in each row the same."""
    rng = sampling.rng("outlines")
    scenes: list[Scene] = []
    while len(scenes) < sampling.samples:
        scene = sample_scene(rng, held_out=None)
        if any(obj.shape == "circle" for obj in scene.objects):
            scenes.append(scene)
    pipeline = subject.pipeline

    @torch.no_grad()
    def copied(part: Sequence[tuple[int, Scene]]) -> Sequence[Pixels]:
        pixels = torch.from_numpy(np.stack([render(scene) for _, scene in part])).permute(0, 3, 1, 2) / 255
        autoencoder = subject.autoencoder
        device = next(autoencoder.parameters()).device
        return list(to_pixels(autoencoder.decode(autoencoder.encode(pixels.to(device)))))

    def drawn(part: Sequence[tuple[int, Scene]]) -> Sequence[Pixels]:
        features = pipeline.encode([Request(prompt="", rewrite=caption(scene)) for _, scene in part])
        return pipeline.sample(features, [seed for seed, _ in part])

    ways: dict[str, Callable[[Sequence[tuple[int, Scene]]], Sequence[Pixels]]] = {
        "rendered": lambda part: [render(scene) for _, scene in part],
        "after the autoencoder": copied,
        "drawn": drawn,
    }
    for name, draw in ways.items():
        distances = []
        for part in chunks(list(enumerate(scenes)), BATCH):
            for (_, scene), picture in zip(part, draw(part), strict=True):
                distances += [
                    distance_from_circle(picture, obj, scene)
                    for obj in scene.objects
                    if obj.shape == "circle"
                ]
        close = Rate(sum(each <= ROUND for each in distances), len(distances))
        yield Row(
            name=f"circles, {name}",
            rates={f"within {ROUND:.0%} of the radius": close},
            values={"median distance, % of the radius": 100 * median(distances)},
        )


def distance_from_circle(picture: Pixels, obj: SceneObject, scene: Scene) -> float:
    """Largest distance of an object's outline from the best circle, share of that circle's radius.

    The image is square. Infinite if a ray finds no outline.
    """
    x, y, radius = object_geometry(obj, SIZE, SIZE)
    ground = np.array(BACKGROUNDS[scene.background], np.float64)
    way = np.array(obj.rgb, np.float64) - ground
    share = (picture.astype(np.float64) - ground) @ way / (way @ way)
    points = []
    for angle in np.arange(RAYS) * 2 * math.pi / RAYS:
        along = np.linspace(*REACH, STEPS) * radius
        # centres of pixels lie at halves
        rows, columns = y + along * math.sin(angle) - 0.5, x + along * math.cos(angle) - 0.5
        inside = ndimage.map_coordinates(share, [rows, columns], order=1, mode="nearest") >= 0.5
        if inside[0] or not inside.any():
            return math.inf
        first = along[int(inside.argmax())]
        points.append((first * math.cos(angle), first * math.sin(angle)))
    return _off_the_best_circle(np.array(points))


def _off_the_best_circle(points: np.ndarray) -> float:
    """Least squares for x² + y² = 2ax + 2by + c, the algebraic fit of a circle."""
    unknowns = np.column_stack([2 * points, np.ones(len(points))])
    (a, b, c), *_ = np.linalg.lstsq(unknowns, (points**2).sum(1), rcond=None)
    radius = math.sqrt(c + a * a + b * b)
    return float(np.abs(np.hypot(points[:, 0] - a, points[:, 1] - b) - radius).max() / radius)
