"""Layer dropout: what is left of a picture when some of the tapped VLM layers are left out of the pooling, without any training
for it (the study of layer dropout in arXiv 2510.12789)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...contracts import Request
from ...evaluation.subject import Row, Sampling, Subject, chunks
from ...pipeline import Pipeline
from ..world import captions
from ..world.requirements import Requirement
from ..world.scenes import Scene
from .judging import row_of, score_pictures
from .vlm import draw_scene

BATCH = 16


def evaluate_layers(subject: Subject, sampling: Sampling) -> Iterator[Row]:
    """Full captions as rewrites on held-out pairs, the same scenes and seeds in every row."""
    pipeline = subject.pipeline
    rng = sampling.rng("layers")
    scenes = [draw_scene(rng, "full", 1 + i % 3, held_out=True) for i in range(sampling.samples)]
    taps = pipeline.model.config.vlm.taps
    yield draw_with_gains(pipeline, scenes, "all layers", [1.0] * len(taps))
    for left_out in taps:
        gains = [float(tap != left_out) for tap in taps]
        yield draw_with_gains(pipeline, scenes, f"without layer {left_out}", gains)
    for alone in taps:
        gains = [float(tap == alone) for tap in taps]
        yield draw_with_gains(pipeline, scenes, f"layer {alone} alone", gains)


def draw_with_gains(pipeline: Pipeline, scenes: Sequence[Scene], name: str, gains: Sequence[float]) -> Row:
    """Pictures of the scenes with a gain on each layer's weight in the pooling of the condition."""
    pictures = []
    for group in chunks(list(enumerate(scenes)), BATCH):
        requests = [Request(prompt="", rewrite=captions.caption(scene)) for _, scene in group]
        seeds = [seed for seed, _ in group]
        pictures += pipeline.sample(pipeline.encode(requests), seeds, layer_gains=gains)
    return row_of(name, score_pictures(pictures, [Requirement.of(scene) for scene in scenes]))
