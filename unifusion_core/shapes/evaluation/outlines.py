"""Suite "outlines": how round circles are, as rendered, after the autoencoder, and as drawn from captions.

Told is the largest distance of an outline from the circle that fits it best, in shares of that circle's radius
(world/roundness.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import cast

from ...contracts import Request
from ...evaluation.rates import Rate
from ...evaluation.subject import Row, Sampling, Subject, chunks
from ...images import Pixels
from ...models.autoencoder import Autoencoder
from ..world.captions import caption
from ..world.render import render
from ..world.roundness import distance_from_circle
from ..world.scenes import Scene, sample_scene
from .autoencoder import round_trip

BATCH = 16
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

    def copied(part: Sequence[tuple[int, Scene]]) -> Sequence[Pixels]:
        return round_trip(cast(Autoencoder, subject.autoencoder), [render(scene) for _, scene in part])

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
