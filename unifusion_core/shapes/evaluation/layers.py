"""Which of the tapped VLM layers a picture depends on, without any training for it (arXiv 2510.12789, study of layer dropout).

Gains act on LAP's last step alone: the blocks before it still see every layer, so a picture that survives "without layer k" does
not show that layer k is unused. The rows with another caption's states do: they replace what LAP gets of a layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ...contracts import Features, Request
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
    others = [draw_scene(rng, "full", 1 + i % 3, held_out=True) for i in range(sampling.samples)]
    taps = pipeline.model.config.vlm.taps
    yield draw_with_gains(pipeline, scenes, "all layers", [1.0] * len(taps))
    for left_out in taps:
        gains = [float(tap != left_out) for tap in taps]
        yield draw_with_gains(pipeline, scenes, f"without layer {left_out}", gains)
    for alone in taps:
        gains = [float(tap == alone) for tap in taps]
        yield draw_with_gains(pipeline, scenes, f"layer {alone} alone", gains)
    for index, tap in enumerate(taps):
        yield draw_with_states_of(pipeline, scenes, others, f"layer {tap} of another caption", index)


def draw_with_gains(pipeline: Pipeline, scenes: Sequence[Scene], name: str, gains: Sequence[float]) -> Row:
    """Pictures of the scenes with a gain on each layer's weight in the pooling of the condition."""
    pictures = []
    for group in chunks(list(enumerate(scenes)), BATCH):
        features = encode_captions(pipeline, [scene for _, scene in group])
        pictures += pipeline.sample(features, [seed for seed, _ in group], layer_gains=gains)
    return row_of(name, score_pictures(pictures, [Requirement.of(scene) for scene in scenes]))


def draw_with_states_of(
    pipeline: Pipeline, scenes: Sequence[Scene], others: Sequence[Scene], name: str, index: int
) -> Row:
    """Pictures of the scenes with the states of one layer taken from the captions of other scenes with as many objects."""
    pictures = []
    for group in chunks(list(enumerate(scenes)), BATCH):
        own = encode_captions(pipeline, [scene for _, scene in group])
        other = encode_captions(pipeline, [others[number] for number, _ in group])
        pictures += pipeline.sample(with_states_of(own, other, index), [seed for seed, _ in group])
    return row_of(name, score_pictures(pictures, [Requirement.of(scene) for scene in scenes]))


def encode_captions(pipeline: Pipeline, scenes: Sequence[Scene]) -> Features:
    """The features of the scenes' captions, each as the rewrite of an empty prompt."""
    return pipeline.encode([Request(prompt="", rewrite=captions.caption(scene)) for scene in scenes])


def with_states_of(own: Features, other: Features, index: int) -> Features:
    """The features with the states of tap number `index` taken from another chat, token by token, as far as both reach."""
    length = min(own.mask.shape[1], other.mask.shape[1])
    both = own.mask[:, :length] & other.mask[:, :length]
    states = own.states.clone()
    mine, theirs = states[:, :length, index], other.states[:, :length, index]
    mine[both] = theirs[both]
    return replace(own, states=states)
