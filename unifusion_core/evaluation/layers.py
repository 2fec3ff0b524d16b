"""Layer dropout: what is left of a picture when some of the tapped VLM layers are silenced (the paper's study of layers, without
any training for it; paper.md 1.3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..contracts import VLMFeatures, VLMRequest
from ..pipeline import DrawSettings, Pipeline
from ..world import wordings
from ..world.requirements import Requirement
from ..world.scenes import Scene
from .suite import Row, Sampling, Subject, chunks
from .tally import score_pictures
from .vlm import draw_scene

BATCH = 16


def evaluate_layers(subject: Subject, sampling: Sampling) -> Iterator[Row]:
    """Full captions as rewrites on held-out pairs, the same scenes and seeds in every row."""
    pipeline = subject.pipeline
    rng = sampling.rng("layers")
    scenes = [draw_scene(rng, "full", 1 + i % 3, held_out=True) for i in range(sampling.samples)]
    taps = pipeline.model.config.vlm.taps
    everything = range(len(taps))
    yield draw_without(pipeline, scenes, "all layers", [])
    for number, tap in enumerate(taps):
        yield draw_without(pipeline, scenes, f"without layer {tap}", [number])
    for number, tap in enumerate(taps):
        yield draw_without(pipeline, scenes, f"layer {tap} alone", [n for n in everything if n != number])


def draw_without(pipeline: Pipeline, scenes: Sequence[Scene], name: str, silent: Sequence[int]) -> Row:
    """Pictures of the scenes with some taps of the condition set to zero."""
    pictures = []
    for group in chunks(list(enumerate(scenes)), BATCH):
        requests = [VLMRequest(prompt="", decoded=wordings.caption(scene)) for _, scene in group]
        features = silenced(pipeline.read(requests), silent)
        pictures += pipeline.draw(features, [seed for seed, _ in group], DrawSettings())
    return Row.of(name, score_pictures(pictures, [Requirement.of(scene) for scene in scenes]))


def silenced(features: VLMFeatures, taps: Sequence[int]) -> VLMFeatures:
    """The same features with the states of some taps (counted from 0) set to zero."""
    states = features.states.clone()
    states[:, :, list(taps)] = 0
    return replace(features, states=states)
